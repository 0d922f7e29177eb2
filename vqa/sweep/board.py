"""What a user sees of a sweep: a table or lines of log while it runs, and `stage=status` at any time.

Status is read without touching the study.
"""

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna
from optuna.exceptions import StorageInternalError
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from vqa.config.messages import plain_message, worded
from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.machine.retry import reason_of
from vqa.machine.safe_text import shown
from vqa.results.folder import StudyFolder, read_json
from vqa.sweep.leaderboard import (
    Standing,
    describe_edges,
    describe_front,
    describe_scores,
    describe_ties,
    ranking,
    winner_of,
)
from vqa.sweep.search.space import override_value, overrides_of
from vqa.sweep.settings import SweepSettings
from vqa.sweep.storage import open_storage_to_read, shown_address, without_password
from vqa.sweep.workers.state import WorkerState, read_states, seconds_left
from vqa.terminal import LivePart
from vqa.terminal import console as terminal

log = logging.getLogger(__name__)

REFRESH_S = 0.5  # a trial may report much more often than an eye can follow
SHOWN_TRIALS = 25
ENDED = ("COMPLETE", "PRUNED", "FAIL")
COLUMNS = ("trial", "state", "folds", "nll", "accuracy")  # then the searched keys, then the seconds
LEAST_STEPS = 3  # of training before their pace is told
AROUND = 6  # lines of a table that are no trial: title, head, rules, caption
STYLES = {
    "COMPLETE": "green",
    "PAUSED": "blue",
    "PRUNED": "yellow",
    "FAIL": "red",
    "RUNNING": "cyan",
    "WAITING": "dim",
}


class Board:
    """Shows the trials of one study.

    Args:
        study: The study's name.
        names: Searched keys.
        n_trials: Trials of the study in all.
        console: Where to draw; a terminal gets the table, anything else the log. None: the one console.
        lang: "en" or "ko".
        folds: Of a trial, to tell the time left before one has ended; None: not known.
    """

    def __init__(
        self,
        study: str,
        names: Sequence[str],
        n_trials: int,
        console: Console | None = None,
        lang: str = "en",
        folds: int | None = None,
    ) -> None:
        self.study = study
        self.names = names
        self.n_trials = n_trials
        self.console = console or terminal()
        self.lang = lang
        self.pace = Pace(folds)
        self.live = LivePart(self.picture, self.console)
        self.standings: Sequence[Standing] = ()
        self.workers: Sequence[WorkerState] = ()
        self._progress: tuple[str, int, int] | None = None
        self._drawn_at = 0.0

    def __enter__(self) -> Self:
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress = None
        self.workers = ()  # nobody is at work any more
        self.live.__exit__(kind, error, trace)

    @property
    def wants_update(self) -> bool:
        """Whether a terminal shows the table and the last drawing is old enough for another one."""
        return self.live.is_shown and time.monotonic() - self._drawn_at >= REFRESH_S

    def event(self, text: str) -> None:
        """Log an event, unless the table shows it."""
        self._progress = None  # that piece of work is over
        if not self.live.is_shown:
            log.info(text)

    def show(self, standings: Sequence[Standing], workers: Sequence[WorkerState] = ()) -> None:
        """Draw the table anew.

        Args:
            standings: All trials in order, as `vqa.sweep.leaderboard.ranking` gives them.
            workers: What the workers that are alive are doing.
        """
        self.standings = standings
        self.workers = workers
        self.pace.observe(workers)
        self._draw()

    def progress(self, text: str, done: int, total: int) -> None:
        """Show how far the running trial is; a sink for `vqa.progress.progress_to`."""
        self._progress = (text, done, total)
        if self.wants_update or (done >= total and self.live.is_shown):
            self._draw()

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        self.live.redraw()

    def picture(self) -> RenderableType:
        """Return the table of trials, and under it what each worker is doing."""
        parts: list[RenderableType] = [self._table()]
        if self.workers:
            parts.append(self._worker_lines())
        elif self._progress is not None:
            line = Table.grid(padding=(0, 1))
            text, at, total = self._progress
            line.add_row(*_progress_cells(worded(self.lang, text), at, total))
            parts.append(line)
        return Group(*parts)

    def _worker_lines(self) -> Table:
        lines = Table.grid(padding=(0, 1))
        for worker in self.workers:
            at = self._say("between trials") if worker.trial is None else self._say("trial", n=worker.trial)
            where = self._say("worker", slot=worker.slot, host=worker.host)
            cells = (
                _progress_cells(worded(self.lang, worker.text), worker.done, worker.total)
                if worker.total
                else ("", "", "")
            )
            lines.add_row(Text(where), at, *cells, f"{worker.memory_gib:.2f} GiB")
        return lines

    def _time_left(self) -> str:
        done = [s for s in self.standings if s.state in ENDED]
        seconds = [standing.seconds for standing in done if standing.seconds is not None]
        left = seconds_left(seconds or self.pace.trial_s(), self.n_trials - len(done), len(self.workers))
        return "" if not left else self._say("time left", time=describe_seconds(left, self.lang))

    def _table(self) -> Table:
        done = sum(standing.state in ENDED for standing in self.standings)
        paused = sum(standing.state == "PAUSED" for standing in self.standings)
        title = self._say("study", study=self.study, done=done, n=self.n_trials)
        title += (self._say("paused", n=paused) if paused else "") + self._time_left()
        table = Table(title=escape(title), title_justify="left")
        # running ones always show; of the others the best
        running = [standing for standing in self.standings if standing.state == "RUNNING"]
        others = [standing for standing in self.standings if standing.state not in ("RUNNING", "WAITING")]
        running = running[: self._room()]
        shown = others[: max(0, self._room() - len(running))]
        bests = [s is self.standings[0] and s.state == "COMPLETE" for s in [*shown, *running]]
        names, rows = self._content(list(zip([*shown, *running], bests, strict=True)))
        for place, name in enumerate(names):
            table.add_column(Text(name), justify="left" if place == 1 else "right", no_wrap=True)
        for row, best in zip(rows, bests, strict=True):
            table.add_row(*row, style="bold" if best else None)
        notes = [self._say("error")] if any(standing.nll_se is not None for standing in shown) else []
        if len(shown) < len(others):
            notes.append(self._say("more trials", n=len(others) - len(shown)))
        table.caption, table.caption_justify = "; ".join(notes) or None, "left"
        return table

    def _content(
        self, standings: Sequence[tuple[Standing, bool]]
    ) -> tuple[list[str], list[list[RenderableType]]]:
        """Heads and cells that fit the width: with short names, then fewer digits, then fewer columns."""
        for names, digits in ((self.names, 4), (short_names(self.names), 4), (short_names(self.names), 3)):
            head = [*(self._say(f"column {name}") for name in COLUMNS), *names, self._say("column seconds")]
            rows = [self._cells(standing, best, digits) for standing, best in standings]
            widths = [
                max(cell_len(str(cell)) for cell in column) + 3 for column in zip(head, *rows, strict=True)
            ]
            if sum(widths) + 1 <= self.console.width:
                break
        kept = _fitting(widths, self.console.width)
        return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]

    def _room(self) -> int:
        """Rows that the table may have: on a live terminal it must fit, or it scrolls away."""
        if not self.live.is_shown:
            return SHOWN_TRIALS
        under = max(1, len(self.workers))
        return max(1, min(SHOWN_TRIALS, self.console.height - AROUND - under))

    def _cells(self, standing: Standing, best: bool, digits: int) -> list[RenderableType]:
        state = self._say(f"state {standing.state}")
        if standing.last_step is not None and standing.state in ("PAUSED", "PRUNED", "RUNNING"):
            state = self._say("at step", state=state, step=standing.last_step)
        mark = " *" if best else " =" if standing.tied else ""
        return [
            str(standing.trial),
            Text(state + mark, style=STYLES[standing.state]),
            str(standing.scores.folds),
            _with_error(standing.nll, standing.nll_se, digits),
            _with_error(standing.accuracy, standing.accuracy_se, digits),
            *(_short(standing.params.get(name)) for name in self.names),
            "" if standing.seconds is None else f"{standing.seconds:.1f}",
        ]

    def _say(self, name: str, **values: object) -> str:
        return plain_message(self.lang, f"board {name}", **values)


class Pace:
    """How long a whole trial takes, from the training steps of those that run: before the first has ended.

    Args:
        folds: Of a trial; None: not known, and no estimate.
    """

    def __init__(self, folds: int | None) -> None:
        self.folds = folds
        self._first: dict[tuple[int, int], tuple[int, float]] = {}  # by worker and trial: steps, and when
        self._trial_s: dict[int, float] = {}  # by worker

    def observe(self, workers: Sequence[WorkerState]) -> None:
        """Take note of what the workers are at."""
        now = time.monotonic()
        for worker in workers:
            if self.folds is None or worker.trial is None or worker.text != "training":
                continue
            done, since = self._first.setdefault((worker.slot, worker.trial), (worker.done, now))
            if worker.done < done:  # the next fold has begun
                self._first[worker.slot, worker.trial] = (worker.done, now)
            elif worker.done >= done + LEAST_STEPS:
                fold_s = (now - since) / (worker.done - done) * worker.total
                self._trial_s[worker.slot] = fold_s * self.folds

    def trial_s(self) -> list[float]:
        """Estimated seconds of a whole trial, one number for each worker that tells."""
        return list(self._trial_s.values())


def short_names(names: Sequence[str]) -> list[str]:
    """Searched keys without their group where that is clear: `lora.lora_alpha` is alpha."""
    found = []
    for name in names:
        group, _, last = name.rpartition(".")
        found.append(last.removeprefix(f"{group.rpartition('.')[2]}_") or name)
    return [short if found.count(short) == 1 else name for short, name in zip(found, names, strict=True)]


def _fitting(widths: Sequence[int], width: int) -> list[int]:
    """Which columns fit the width; trial, state and NLL always stay."""
    seconds, searched = len(widths) - 1, range(len(widths) - 2, len(COLUMNS) - 1, -1)
    kept = list(range(len(widths)))
    dropped = [seconds, COLUMNS.index("folds"), *searched[:-1], COLUMNS.index("accuracy"), *searched[-1:]]
    for column in dropped:
        if sum(widths[i] for i in kept) + 1 <= width:
            break
        kept.remove(column)
    return kept


def _progress_cells(text: str, done: int, total: int) -> tuple[RenderableType, ...]:
    bar = ProgressBar(total=max(total, 1), completed=done, width=30)
    return Text(text), bar, f"{done}/{total}"


def describe_seconds(seconds: float, lang: str = "en") -> str:
    """Write seconds as seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return plain_message(lang, "board unit s", n=f"{seconds:.0f}")
    if seconds < 7200:
        return plain_message(lang, "board unit min", n=f"{seconds / 60:.0f}")
    return plain_message(lang, "board unit h", n=f"{seconds / 3600:.1f}")


def _with_error(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else override_value(value)


def describe_start(number: int, overrides: Sequence[str], resumed: bool, lang: str = "en") -> str:
    """Say that a trial starts, and with what."""
    name = "trial goes on" if resumed else "trial starts"
    return plain_message(lang, name, n=number, values=" ".join(overrides))


def describe_end(standing: Standing, lang: str = "en") -> str:
    """Say how a trial ended."""
    if standing.state == "FAIL":
        return plain_message(lang, "trial failed", n=standing.trial, error=standing.error)
    state = standing.state if standing.state in ("PAUSED", "PRUNED") else "COMPLETE"
    scores = describe_scores(standing, lang)
    if standing.seconds is not None:
        scores += ", " + plain_message(lang, "board unit s", n=f"{standing.seconds:.1f}")
    return plain_message(lang, f"trial {state}", n=standing.trial, step=standing.last_step, scores=scores)


ADDRESS = ".sweep.json"  # where a study's storage is, and how many trials it shall have
FILE_WIDTH = 160  # characters, where no terminal says how wide it is


def write_address(folder: Path, settings: SweepSettings, n_trials: int, names: list[str]) -> None:
    """Write into the study's folder what `show_status` needs to find the storage."""
    storage = settings.storage
    if storage.startswith("sqlite:///"):
        storage = f"sqlite:///{Path(storage.removeprefix('sqlite:///')).absolute()}"
    address = {
        "study_name": settings.study_name,
        "storage": without_password(storage),
        "direction": settings.direction,
        "objective": settings.objective,
        "costs": settings.costs,
        "final_trial": settings.final_trial,
        "n_trials": n_trials,
        "names": names,
    }
    # without a password: whoever looks has it in ~/.pgpass, or in PGPASSWORD with PGHOST, and the storage's
    # user is no one else's business either
    replace_text(folder / ADDRESS, json.dumps(address) + "\n", mode=0o600)


def show_status(folder: Path, console: Console | None = None, lang: str = "en") -> None:
    """Print the trials, the workers that are alive and the best trial so far.

    Args:
        folder: The study's folder.
        console: Where to print; None = standard output.
        lang: "en" or "ko".

    Raises:
        UserError: There is no study, or its storage cannot be read.
    """
    if not (folder / ADDRESS).exists():
        known = sorted(path.parent.name for path in folder.parent.glob(f"*/{ADDRESS}"))
        raise UserError(
            f"study={folder.name}: there is no sweep in {folder}. "
            f"Sweeps beside it: {', '.join(known) or 'none'}."
        )
    address = _read_address(folder / ADDRESS)
    url = address["storage"]
    moved = folder / Path(url).name
    if url.startswith("sqlite:///") and moved.exists():
        url = f"sqlite:///{moved.absolute()}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _load_study(address["study_name"], url)
    trials, objective = study.get_trials(deepcopy=False), address.get("objective", "nll")
    standings = ranking(trials, folder, address["direction"], objective, address.get("costs", ()))
    console = console or Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    board = Board(address["study_name"], address["names"], address["n_trials"], console, lang)
    board.show(standings, workers := read_states(folder))
    console.print(board.picture())
    storage = plain_message(lang, "status storage", address=shown_address(url))
    final_trial = address.get("final_trial")
    remarks = [*_remarks(folder, standings, final_trial, len(workers), lang), storage]
    console.print(Text(shown("\n".join(remarks)).replace("\n  ", "\n")))


def _read_address(path: Path) -> dict[str, Any]:
    address = read_json(path)
    kinds = {"study_name": str, "storage": str, "direction": str, "n_trials": int, "names": list}
    if wrong := [key for key, kind in kinds.items() if not isinstance(address.get(key), kind)]:
        raise UserError(f"{path}: lacks {', '.join(wrong)}; the command of the sweep writes it again")
    return address


def _load_study(name: str, url: str) -> optuna.Study:
    try:
        return optuna.load_study(study_name=name, storage=open_storage_to_read(url))
    except (KeyError, SQLAlchemyError, StorageInternalError) as error:
        raise UserError(
            f"hydra.sweeper.storage {shown_address(url)} has no study {name!r} ({reason_of(error)}); "
            "the command of the sweep begins it again: what its trials left in their folders is used"
        ) from error


def _remarks(
    folder: Path, standings: list[Standing], final_trial: int | None, workers: int, lang: str
) -> list[str]:
    lines = [] if workers else [plain_message(lang, "status no worker")]
    if (best := winner_of(standings)) is not None:
        chosen, scores = " ".join(overrides_of(best.params)), describe_scores(best, lang)
        lines.append(plain_message(lang, "status best", n=best.trial, scores=scores, values=chosen))
        lines.append(describe_ties(standings, lang))
        if front := describe_front(standings, final_trial, lang):
            lines.append(front)
        if edges := describe_edges(best, StudyFolder(folder).ranges(), lang):
            lines.append(edges)
    lines += [
        plain_message(lang, "trial failed", n=s.trial, error=s.error) for s in standings if s.state == "FAIL"
    ]
    final = StudyFolder(folder).final
    if final.complete:
        lines.append(plain_message(lang, "status final done", folder=final.path))
    elif final.path.exists():
        lines.append(plain_message(lang, "status final begun"))
    return lines
