"""`stage=compare`: two studies, or runs, on the held-out questions that both share."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vqa.config.messages import message, shows
from vqa.config.near import nearest
from vqa.config.settings import Settings
from vqa.errors import UserError
from vqa.report.comparison import Compared, compare_runs, comparison_verdict, write_comparison
from vqa.results.folder import RunFolder, StudyFolder
from vqa.results.pairing import Difference


def run_compare(settings: Settings, folder: Path) -> None:
    """Print a table and write a page that compare `study` with `compare`.

    Args:
        settings: The run; `study` names one study, `compare` another one, or the folder of a run.
        folder: Gets the page, named after the other study.

    Raises:
        UserError: One of them is not there, has no held-out answers, or they share no held-out question.
    """
    other = str(settings.compare)
    root = Path(settings.env.output_root)
    first, second = _run(root, settings.study), _run(root, other)
    compared = compare_runs(first, second, (settings.study, other))
    folder.mkdir(parents=True, exist_ok=True)
    page = write_comparison(compared, folder / f"{other.strip('/').replace('/', '_')}.html", settings.lang)
    lang = "ko" if settings.lang == "ko" and shows("ko") else "en"
    console = Console(soft_wrap=True)
    found = compared.held_out
    first_name, second_name = compared.names
    console.print(
        message(lang, "compared", n=found.n, pictures=found.pictures, first=first_name, second=second_name)
    )
    console.print(_table(compared, lang))
    verdict = comparison_verdict(compared.names, found)[lang == "ko"]
    console.print(verdict, style="bold", markup=False, highlight=False)
    console.print(message(lang, "look", path=page))


def _run(root: Path, name: str) -> RunFolder:
    """The final run of a study of that name, else the run in a folder of that name."""
    study = StudyFolder(root / name)
    if "/" not in name and study.path.is_dir():
        return study.final
    if Path(name).is_dir():
        given = StudyFolder(Path(name))
        return given.final if given.final.path.is_dir() else RunFolder(Path(name))
    known = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    there = ", ".join(sorted(known)) or "none"
    raise UserError(f"there is no study {name!r} in {root}{nearest(name, known)}; studies: {there}")


def _table(compared: Compared, lang: str) -> Table:
    korean = lang == "ko"
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in compared.names:
        table.add_column(Text(name), justify="right")
    table.add_column("차이 (95 % 구간)" if korean else "difference (95 % interval)", justify="right")
    table.add_column("p", justify="right")
    table.add_column("")
    held_out, test = compared.held_out, compared.test
    rows = [("", d) for d in (held_out.accuracy, held_out.nll, *held_out.kinds)]
    rows += [("테스트 " if korean else "test ", d) for d in (test.accuracy, test.nll)] if test else []
    for prefix, difference in rows:
        title = "정확도" if korean and difference.name == "accuracy" else difference.name
        tie = ("동률" if korean else "tie") if difference.tie else ""
        p = "" if difference.p is None else f"{difference.p:.2g}"
        table.add_row(Text(f"{prefix}{title}"), *_cells(difference), p, tie)
    return table


def _cells(difference: Difference) -> tuple[str, str, str]:
    low, high = difference.interval
    if difference.name == "NLL":
        return (
            f"{difference.first:.4f}",
            f"{difference.second:.4f}",
            f"{difference.by:+.4f} ({low:+.4f} .. {high:+.4f})",
        )
    return (
        f"{100 * difference.first:.1f} %",
        f"{100 * difference.second:.1f} %",
        f"{100 * difference.by:+.1f} ({100 * low:+.1f} .. {100 * high:+.1f})",
    )
