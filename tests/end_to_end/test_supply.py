"""What others make that this project installs is named with version and licence."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.version import Version

from tests.helpers.scripts import script

ROOT = Path(__file__).parents[2]
SUPPLY = script(ROOT / ".ci/supply.py")


def test_the_page_of_licences_names_every_library_and_keeps_share_alike_apart() -> None:
    page = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    for name, version in SUPPLY.pins((ROOT / "constraints.txt").read_text(encoding="utf-8")).items():
        assert f"| {name} | {version} |" in page, "make licences"
    assert re.search(r"Share-alike .*: `vqa/assets/openmoji/LICENSES.md`\.", page)
    for path in (ROOT / "vqa/assets").rglob("LICENSES.md"):
        of_others = path.parent.name != "openmoji"
        assert f"`{path.relative_to(ROOT)}`" in page
        assert ("Licence: Creative Commons Attribution-ShareAlike" in path.read_text()) != of_others


def test_hashes_are_those_of_the_pinned_versions() -> None:
    text = (ROOT / "constraints-hashes.txt").read_text(encoding="utf-8")
    pinned = SUPPLY.pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    del pinned["torch"]  # its build, and so its hash, depends on the machine
    assert SUPPLY.pins(text) == pinned, "make hashes"
    lines = text.replace("\\\n", " ").splitlines()
    assert len(lines) == len(pinned)
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.+-]+( +--hash=sha256:[0-9a-f]{64})+", line), line[:80]


def test_hydra_is_a_release_candidate_only_as_long_as_there_is_nothing_else() -> None:
    # fails on the day that Hydra 1.4 itself is installed: then raise pyproject.toml's lower bounds to 1.4.0
    # (omegaconf's to 2.4.0), pin them in constraints.txt, and take the release candidates out of the pages
    ranges = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pinned = SUPPLY.pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    for name in ("hydra-core", "hydra-optuna-sweeper", "omegaconf"):
        [lowest] = re.findall(rf'"{name}>=([^,"]+)', ranges)
        for version in (metadata.version(name), pinned[name]):
            assert Version(version).is_prerelease == Version(lowest).is_prerelease, f"{name} {version} is out"


def test_every_extra_that_is_named_exists_and_installs_what_it_says() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    named = set()
    pages = [ROOT / "Makefile", *ROOT.glob("README*.md")]
    for folder, ending in (("docs", "md"), ("conf", "yaml"), ("vqa", "py"), ("vqa", "yaml")):
        pages += (ROOT / folder).rglob(f"*.{ending}")
    for page in pages:
        for names in re.findall(r"""["'](?:vqa|\.)\[([\w,]+)\]""", page.read_text(encoding="utf-8")):
            named |= set(names.split(","))
    assert {"serve", "wandb", "tensorboard", "qwen3_5", "postgresql"} <= named <= extras.keys()
    for name, library in (("wandb", "wandb"), ("serve", "fastapi"), ("ray", "hydra-ray-launcher")):
        assert any(wanted.startswith(f"{library}>=") for wanted in extras[name])
    # none brings torch, which is the machine's own build
    assert not [wanted for some in extras.values() for wanted in some if wanted.startswith("torch")]
