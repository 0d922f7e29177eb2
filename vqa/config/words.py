"""The short form of a command: `vqa predict mine new.csv` is stage=predict study=mine data.test_csv=new.csv.

Hydra reads what comes out of here. `vqa --completion` prints a bash function that completes groups, options,
keys, stages and studies. Hydra has a completion of its own, which starts Python at every Tab; this one is a
list, made once.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from vqa.config.near import known_words, nearest
from vqa.config.place import CONF
from vqa.config.stages import STAGES
from vqa.errors import UserError

# The variables that conf/ reads paths from. MLflow's address is left out: it may hold a password.
PATHS_SET = ("DATA_PATH", "HF_HOME", "VQA_OUTPUT")
TAKE_A_FILE = ("predict", "evaluate")
USAGE = "vqa STAGE [STUDY] [FILE, or for compare another STUDY] [key=value ...]"
SCRIPT = r"""# put this into ~/.bashrc: eval "$(vqa --completion)"
_vqa_completion() {
    local word="${COMP_LINE:0:COMP_POINT}" words folder
    word="${word##* }"
    words="WORDS"
    if [[ $word == study=* ]]; then
        words=""
        for folder in "${VQA_OUTPUT:-multirun}"/*/; do
            [[ -d $folder ]] && words+=$'\n'"study=$(basename "$folder")"
        done
    fi
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ ${#COMPREPLY[@]} == 0 ]]; then compopt -o default; return; fi
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    # bash takes = for a word of its own: only what stands after it is replaced
    if [[ $word == *=* && $COMP_WORDBREAKS == *"="* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
    fi
}
complete -F _vqa_completion vqa"""


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
    made = [*_spelled(named), *(with_quotes(word) for word in rest)]
    if any(f"stage={stage}" in made for stage in TAKE_A_FILE):
        made = [f"++{word}" if word.startswith("data.") and "=" in word else word for word in made]
    return made


def _is_plain(word: str) -> bool:
    return bool(word) and "=" not in word and word[0] not in "-+~"


def with_quotes(word: str) -> str:
    """An override whose bare Korean letters, or any beyond ASCII, stand in quotes: Hydra's grammar has none.

    Args:
        word: `key=value`; a value may be a path, choices, a list, a mapping or a function of Hydra's.
    """
    key, equals, value = word.partition("=")
    if not equals or word.startswith("-") or value.isascii():
        return word
    if not re.match(r"[{[]|[A-Za-z_]\w*\(", value):
        whole = not value.startswith(("'", '"')) and ("'" in value or '"' in value)
        return f"{key}={quoted(value) if whole else _quote_runs(value, ',')}"
    return f"{key}={_quote_runs(value, ',()[]{}' + (':' if value.startswith('{') else ''))}"


def _quote_runs(value: str, between: str) -> str:
    """Quote each run of letters between the given signs, unless it is ASCII or stands in quotes already."""
    pieces = re.compile(rf"""'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|[^{re.escape(between)}'"]+|.""", re.DOTALL)

    def quote(found: re.Match[str]) -> str:
        text = found[0]
        if text.isascii() or text[0] in "'\"":
            return text
        bare = text.strip()
        return text.replace(bare, quoted(bare))

    return pieces.sub(quote, value)


def _spelled(named: Sequence[str]) -> list[str]:
    if not named:
        return []
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


def command_line(words: Sequence[str]) -> str:
    """A command of this program that runs as it stands, from the same folder in any shell.

    It begins as this process was started, with the variables that name its paths before it.

    Args:
        words: What comes after the program.
    """
    variables = [f"{name}={shlex.quote(os.environ[name])}" for name in PATHS_SET if os.environ.get(name)]
    return " ".join([*variables, shell_line([*_started_as(), *words])])


def _started_as() -> list[str]:
    typed, script = sys.orig_argv, sys.argv[0]
    if typed[1:3] == ["-m", "vqa.run"]:
        return [typed[0], "-m", "vqa.run"]
    if Path(script).name == "vqa":
        return ["vqa" if shutil.which("vqa") == script else script]
    return ["python", "-m", "vqa.run"]


def shell_line(words: Sequence[str]) -> str:
    """A command as a shell takes it; a word that holds single quotes stands in double ones."""
    return " ".join(_shell_word(word) for word in words)


def _shell_word(word: str) -> str:
    if "'" in word and not re.search(r'["$`\\!]', word):
        return f'"{word}"'
    return shlex.quote(word)


def completion() -> str:
    """The function as text, for `eval`."""
    options = sorted(_options())
    chosen = {option.partition("=")[0] for option in options}
    keys = [f"{word}=" for word in known_words() if word not in chosen and "/" not in word]
    stages = [*STAGES, *(f"stage={stage}" for stage in STAGES)]
    return SCRIPT.replace("WORDS", "\n".join([*stages, *options, *keys, "--help", "--completion"]))


def _options() -> set[str]:
    """Every `group=option`; a sweep or an experiment is added with + in front."""
    found = set()
    for file in CONF.rglob("*.yaml"):
        group = file.parent.relative_to(CONF).as_posix()
        if group not in (".", "hydra/help"):
            found.add(f"{'+' if group == 'sweep' else ''}{group}={file.stem}")
    return found
