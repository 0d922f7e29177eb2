"""What a mistyped word may mean: the nearest of those that exist."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache

from vqa.config.place import CONF
from vqa.config.reference import keys

LAUNCHER_PACKAGES = {
    "submitit_slurm": "hydra-submitit-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "joblib": "hydra-joblib-launcher",
    "ray": "hydra-ray-launcher ray",
}


def nearest(word: str, known: Iterable[str]) -> str:
    """ " (did you mean X?)" with the nearest known word; "" where none is near.

    A word without dots may mean the last part of a key: `epoch` is near `budget.epochs`.
    """
    words = list(known)
    if found := get_close_matches(word, words, n=1, cutoff=0.75):
        return f" (did you mean {found[0]}?)"
    ends = {name.rpartition(".")[2]: name for name in reversed(words)}
    found = get_close_matches(word.rpartition(".")[2], ends, n=1, cutoff=0.75)
    return f" (did you mean {ends[found[0]]}?)" if found else ""


@cache
def known_words() -> tuple[str, ...]:
    """Every group and every key that a command line may name."""
    return tuple(dict.fromkeys([*(key for key, _, _ in keys()), *_of_files()]))


def _of_files() -> Iterator[str]:
    """Groups, and the keys that only files name: those of library objects and of the sweeper."""
    for file in sorted(CONF.rglob("*.yaml")):
        group = file.parent.relative_to(CONF).as_posix()
        if group == ".":
            continue
        yield group
        node = group.replace("/", ".")
        for line in file.read_text(encoding="utf-8").splitlines():
            if (found := re.match(r"([a-z]\w*):", line)) and found[1] != "defaults":
                yield f"{node}.{found[1]}"


def with_advice(text: str) -> str:
    """Hydra's refusal of an override or a group, with what was probably meant."""
    found = re.search(r"Could not override '([^']+)'", text)
    of_sweep = found and found[1].startswith("hydra.sweeper.") and found[1] in known_words()
    if found and of_sweep and "={" not in text:  # of a mapping a key within may be the unknown one
        return f"{found[1]} is a key of a sweep: give the sweep too, such as +sweep=lora"
    if found and found[1] not in known_words():
        advice = nearest(found[1], known_words()) or "; --help lists those that there are"
        return f"there is no key {found[1]!r} to set{advice}"
    found = re.search(r"Could not find '([^']+)/([^/']+)'", text)
    listed = re.search(r"Available options in '[^']+':\n((?:\t\S+\n?)+)", text)
    if found and found[1] == "hydra/launcher" and (package := LAUNCHER_PACKAGES.get(found[2])):
        return f"hydra/launcher={found[2]} needs a package: pip install --pre {package}"
    if found and listed:
        group, option, options = found[1], found[2], listed[1].split()
        missing = f"Could not find '{group}/{option}'{nearest(option, options)}"
        return f"{missing}; {group} is one of {', '.join(options)}"
    return text
