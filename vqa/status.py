"""`stage=status`: where a study stands, read without touching it."""

import json
import sys
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console
from rich.text import Text

from vqa.board import Board
from vqa.errors import UserError
from vqa.leaderboard import Standing, describe_scores, describe_ties, rank
from vqa.search_space import overrides_of
from vqa.storage import open_storage_to_read, shown_address
from vqa.sweep_settings import SweepSettings
from vqa.text_file import replace_text
from vqa.winner import winner_of
from vqa.worker_state import read_states

ADDRESS = ".sweep.json"  # where a study's storage is, and how many trials it shall have
FILE_WIDTH = 160  # characters, where no terminal says how wide it is


def write_address(folder: Path, settings: SweepSettings, n_trials: int, names: list[str]) -> None:
    """Leave in the study's folder what `show_status` needs to find the study."""
    storage = settings.storage
    if storage.startswith("sqlite:///"):
        storage = f"sqlite:///{Path(storage.removeprefix('sqlite:///')).absolute()}"
    address = {
        "study_name": settings.study_name,
        "storage": storage,
        "direction": settings.direction,
        "n_trials": n_trials,
        "names": names,
    }
    # only for the user's own eyes: the storage's address may hold a password
    replace_text(folder / ADDRESS, json.dumps(address) + "\n", mode=0o600)


def show_status(folder: Path, console: Console | None = None) -> None:
    """Print the trials, the workers that are alive and the best trial so far.

    Args:
        folder: The study's folder.
        console: Where to print; None = standard output.

    Raises:
        UserError: There is no study, or its storage cannot be read.
    """
    if not (folder / ADDRESS).exists():
        known = sorted(path.parent.name for path in folder.parent.glob(f"*/{ADDRESS}"))
        raise UserError(
            f"study={folder.name}: there is no sweep in {folder}. "
            f"Sweeps beside it: {', '.join(known) or 'none'}."
        )
    address: dict[str, Any] = json.loads((folder / ADDRESS).read_text(encoding="utf-8"))
    url = address["storage"]
    moved = folder / Path(url).name
    if url.startswith("sqlite:///") and moved.exists():
        url = f"sqlite:///{moved.absolute()}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name=address["study_name"], storage=open_storage_to_read(url))
    standings = rank(study.get_trials(deepcopy=False), folder, address["direction"])
    console = console or Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    board = Board(address["study_name"], address["names"], address["n_trials"], console)
    board.show(standings, workers := read_states(folder))
    console.print(board.picture())
    remarks = [*_remarks(folder, standings, len(workers)), f"storage: {shown_address(url)}"]
    console.print(Text("\n".join(remarks)))


def _remarks(folder: Path, standings: list[Standing], workers: int) -> list[str]:
    lines = [] if workers else ["no worker is up"]
    if (best := winner_of(standings)) is not None:
        chosen = " ".join(overrides_of(best.params))
        lines.append(f"best: trial {best.trial}, {describe_scores(best)}: {chosen}")
        lines.append(describe_ties(standings))
    lines += [f"trial {s.trial} failed: {s.error}" for s in standings if s.state == "FAIL"]
    final = folder / "final"
    if (final / "manifest.json").exists():
        lines.append(f"final run: done, see {final}")
    elif final.exists():
        lines.append("final run: begun")
    return lines
