"""The page of licences: `python .ci/supply.py > docs/licences.md`, from installed packages and assets."""

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARE_ALIKE = "ShareAlike"


def pins(text: str) -> dict[str, str]:
    """Name in lower case with hyphens -> version, of the lines `name==version` of a file."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s\\]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def licence(name: str) -> str:
    """What an installed package says of its licence, in a few words."""
    try:
        found = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return "not installed here"
    stated = found.get("License-Expression") or ""
    kinds = [
        line.split(" :: ")[-1] for line in found.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    lines = (found.get("License") or "").strip().splitlines()
    return stated or ", ".join(kinds) or (lines[0][:60] if lines else "not stated")


def licences() -> str:
    """The page."""
    rows = [
        f"| {name} | {version} | {licence(name)} |"
        for name, version in sorted(pins((ROOT / "constraints.txt").read_text(encoding="utf-8")).items())
    ]
    files = sorted((ROOT / "vqa/assets").rglob("LICENSES.md"))
    apart = [path for path in files if SHARE_ALIKE in path.read_text(encoding="utf-8")]
    others = [path for path in files if path not in apart]
    named = {path: f"`{path.relative_to(ROOT)}`" for path in files}
    return "\n".join(
        [
            "# Licences",
            "",
            "This project is under the Apache License 2.0. This page lists what it installs and brings.",
            "`python .ci/supply.py > docs/licences.md` makes it.",
            "",
            "## Pictures, names and the embedded model",
            "",
            f"- Apache-2.0, CC BY 4.0 and Unicode-3.0: {', '.join(named[path] for path in others)}.",
            f"- Share-alike (CC BY-SA 4.0), apart: {', '.join(named[path] for path in apart)}.",
            "  Whoever passes on pictures made from these passes them on under the same licence.",
            "- The embedded model `vqa/assets/tiny`: Apache-2.0, trained from random weights.",
            "",
            "The wheel holds these files beside the pictures.",
            "",
            "## Libraries",
            "",
            "As each package states it. None of them is part of the wheel.",
            "",
            "| package | version | licence |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    print(licences(), end="")
