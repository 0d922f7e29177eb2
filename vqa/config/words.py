"""The short form of a command: `vqa predict mine new.csv` is stage=predict study=mine data.test_csv=new.csv.

Hydra reads what comes out of here.
"""

import re
from collections.abc import Sequence

from vqa.config.near import nearest
from vqa.config.stages import STAGES
from vqa.errors import UserError

TAKE_A_FILE = ("predict", "evaluate")
USAGE = "vqa STAGE [STUDY] [FILE, or for compare another STUDY] [key=value ...]"


def spelled_out(words: Sequence[str]) -> list[str]:
    """The words of a command line as Hydra knows them.

    Stages that answer with an adapter take the class of its data from the adapter's record, after Hydra has
    composed the rest: their keys of `data` are forced, since Hydra knows the default data's keys only.

    Args:
        words: Of the command line, without the program.

    Raises:
        UserError: The first words are no stage, study and file.
    """
    plain = next((i for i, word in enumerate(words) if not _is_plain(word)), len(words))
    named, rest = list(words[:plain]), list(words[plain:])
    made = [*_spelled(named), *rest] if named else rest
    if any(f"stage={stage}" in made for stage in TAKE_A_FILE):
        made = [f"++{word}" if word.startswith("data.") and "=" in word else word for word in made]
    return made


def _is_plain(word: str) -> bool:
    return bool(word) and "=" not in word and word[0] not in "-+~"


def _spelled(named: Sequence[str]) -> list[str]:
    stage, *others = named
    if stage not in STAGES:
        raise UserError(
            f"there is no stage {stage!r}{nearest(stage, STAGES)}; {USAGE}, "
            f"with STAGE one of {', '.join(STAGES)}"
        )
    made = [f"stage={stage}"]
    if others:
        if others[0].lower().endswith((".csv", ".tsv", ".jsonl", ".parquet")):
            raise UserError(f"vqa {stage}: the study comes before the file: vqa {stage} STUDY {others[0]}")
        made.append(f"study={quoted(others[0])}")
    if stage == "compare":
        if len(others) != 2:
            raise UserError(f"vqa compare takes two studies, got {len(others)}: vqa compare STUDY STUDY")
        return [*made, f"compare={quoted(others[1])}"]
    if len(others) > 1:
        if stage not in TAKE_A_FILE or len(others) > 2:
            raise UserError(
                f"vqa {stage}: {others[-1]!r} is one word too many; {USAGE}; predict and evaluate take a FILE"
            )
        made.append(f"data.test_csv={quoted(others[1])}")
    return made


def quoted(text: str) -> str:
    """A text as a quoted value of Hydra's grammar."""
    # backslashes count only before a quotation mark
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"
