"""Which folders the wheel holds. Everything else about the package stands in pyproject.toml.

`conf/` is a visible folder at the top of the repository. Installed it is `vqa/conf`, because a top-level
package named `conf` would collide with other people's. In pyproject.toml, setuptools can find packages or
map folders, not both.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["vqa", "vqa.*"]), "vqa.conf"],
    package_dir={"vqa.conf": "conf"},
)
