"""One page for a study: complete, self-contained, small enough, and the same when it is rebuilt."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from tests.helpers.written_study import write_study
from vqa.errors import UserError
from vqa.report.report import write_report


def rows_of(page: str) -> list[list[object]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    rows: list[list[object]] = json.loads(found[1])["rows"]
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The English page of a study."""
    folder = tmp_path_factory.mktemp("study")
    made = write_report(write_study(folder), "en")
    assert made == folder / "report.html"
    return made


def test_a_studys_page_has_all_its_parts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for part in ("run", "search", "learning", "answers", "gallery", "cost", "again"):
        assert f'id="{part}"' in text
    first = re.search(r'<p class="verdict" id="verdict"><span lang="en">([^<]*)', text)
    assert first
    assert first[1].startswith("tuned 75 %, base ")
    assert first.start() < min(text.index(f'id="{part}"') for part in ("run", "search", "answers"))
    assert text.count("<figure") == 6
    assert "75.0 %" in text
    assert "python -m vqa.run -m +sweep=lora data.train_size=60" in text
    assert "git checkout abc123" in text
    assert {row[0] for row in rows_of(text)} == {"valid", "test"}
    assert len(rows_of(text)) == 72
    # plus-minus means the same in tiles, tables and charts, and the page says what
    assert "± and ranges on this page are 95 % intervals" in text
    assert "complete (± 95 %)" in text
    assert "s.e." not in text
    assert "<b>0.040</b>" in text
    assert "0.020 at temperature 1.20" in text
    assert "; chance alone 0.030" in text
    best = re.findall(r'<tr class="best.*?</tr>', text, re.DOTALL)
    assert '<span lang="en">best</span>' in best[0]  # not "yes": it does not tie with itself


def test_the_page_has_what_its_scripts_look_for(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wanted = {*re.findall(r'getElementById\("([\w-]+)"\)', text)}
    assert {"filters", "cards", "large", "export"} <= wanted
    assert wanted <= {*re.findall(r'\bid="([\w-]+)"', text)}
    fields = {*re.findall(r"form\.elements\.(\w+)|want\.(\w+)", text)}
    named = {*re.findall(r'<(?:select|input)[^>]* name="(\w+)"', text)}
    assert {name or other for name, other in fields} <= named
    (leaderboard,) = re.findall(r'<table class="sortable" id="leaderboard">.*?</thead>', text, re.DOTALL)
    assert leaderboard.count("<th ") == leaderboard.count('<button type="button" class="sort">') > 5


def test_the_page_fits_a_phone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width' in text
    assert not [tag for tag in re.findall(r"<svg[^>]*>", text) if re.search(r'\b(width|height)="', tag)]


def test_the_page_refers_to_nothing_outside_itself(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)


def test_what_data_say_cannot_become_part_of_the_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;{a}&lt;/b&gt;" in text  # the prompt of the study has a tag in it
    assert "<b>{a}" not in text


def test_every_chart_has_its_text(tmp_path: Path) -> None:
    text = write_report(write_study(tmp_path), "ko").read_text(encoding="utf-8")
    assert '<html lang="ko"' in text
    labels = re.findall(r'role="img" aria-label="([^"]+)"', text)
    assert len(labels) == 6
    assert text.count("<svg") == len(re.findall(r'<svg[^>]*aria-hidden="true"', text)) == 6


def test_rebuilding_the_page_leaves_it_alone(page: Path) -> None:
    before = page.stat().st_mtime_ns
    assert write_report(page.with_name("final"), "en").stat().st_mtime_ns == before


def test_a_final_run_alone_and_a_search_alone_have_pages_too(tmp_path: Path) -> None:
    final = write_study(tmp_path / "a")
    (tmp_path / "a/leaderboard.csv").unlink()
    alone = write_report(final, "en").read_text(encoding="utf-8")
    assert 'id="search"' not in alone
    assert "python -m vqa.run +sweep=lora optimizer.lr=0.001" in alone

    final = write_study(tmp_path / "b")
    trial = tmp_path / "b/trials/000"
    shutil.copytree(final / ".hydra", trial / ".hydra")
    shutil.copy(final / "valid_predictions.csv", trial / "oof_predictions.csv")
    shutil.rmtree(final)
    search = write_report(final, "en").read_text(encoding="utf-8")
    assert "The final run is not done yet" in search
    assert {row[0] for row in rows_of(search)} == {"oof"}


def test_a_run_in_a_folder_of_its_own_keeps_its_page_there(tmp_path: Path) -> None:
    final = write_study(tmp_path / "a")
    (tmp_path / "a/leaderboard.csv").unlink()
    other = final.rename(tmp_path / "a/by_hand")
    assert write_report(other, "en") == other / "report.html"


def test_pictures_that_moved_away_leave_a_page_that_says_so(tmp_path: Path) -> None:
    final = write_study(tmp_path)
    stored = final / ".hydra/config.yaml"
    stored.write_text(stored.read_text().replace("train_size: 60", "train_size: 0"))
    text = write_report(final, "en").read_text(encoding="utf-8")
    assert "data.train_size must be &gt;= 1, got 0" in text
    assert len(rows_of(text)) == 72


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nothing to report: neither .*leaderboard.csv nor .*metrics.json is"
    ):
        write_report(tmp_path / "final", "en")


@pytest.mark.slow
def test_forty_trials_and_4000_answers_make_a_page_below_15_mb(tmp_path: Path) -> None:
    final = write_study(tmp_path, trials=40, train_size=3000, test_size=1000)
    begun = time.perf_counter()
    page = write_report(final, "en")
    assert page.stat().st_size < 15e6
    assert len(rows_of(page.read_text(encoding="utf-8"))) == 4000
    assert time.perf_counter() - begun < 60
