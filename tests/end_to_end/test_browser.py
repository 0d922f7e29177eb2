"""Pages in a real browser: no error, no request outside, keyboard, languages, filters. Needs Chromium."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.conftest import Compose, served
from tests.helpers.browser_pages import DESKTOP, PHONE, opened
from tests.helpers.written_study import answers, write_study
from vqa.answer.score import score
from vqa.config.check import read_settings
from vqa.data.easy_vqa import EasyVqa
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.report.report import write_report
from vqa.results.folder import RunFolder
from vqa.results.predictions import write_predictions
from vqa.stages.compare import compare_runs, write_comparison
from vqa.stages.doctor import write_doctor_page
from vqa.stages.serve import make_app

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 trials and 4,000 answers."""
    final = write_study(tmp_path_factory.mktemp("study"), trials=40, train_size=3000, test_size=1000)
    return write_report(final, "en")


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_report_opens_within_three_seconds_without_an_error(
    browser: Any, report: Path, viewport: dict[str, int]
) -> None:
    begun = time.perf_counter()
    page, trouble = opened(browser, report.as_uri(), viewport, dark=viewport == PHONE)
    assert page.locator("#cards .card").count() == 24
    assert time.perf_counter() - begun < 3
    assert trouble == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0  # nothing sticks out


def test_the_gallery_sorts_and_filters(browser: Any, report: Path) -> None:
    page, _ = opened(browser, report.as_uri(), DESKTOP)
    sure = [float(t.split()[0]) for t in page.locator("li.wrong span:last-child").all_inner_texts()]
    assert sure == sorted(sure, reverse=True)
    page.select_option("select[name=gold]", "b")
    page.select_option("select[name=kind]", "shape")
    footers = page.locator(".card footer").all_inner_texts()
    assert footers
    assert all("shape" in footer for footer in footers)
    assert all(t.startswith("b") for t in page.locator("li.gold span:first-child").all_inner_texts())
    page.fill("input[name=find]", "no such text")
    assert page.inner_text("#count") == "nothing matches"


def test_the_language_switch_changes_texts_charts_and_filters(browser: Any, report: Path) -> None:
    page, trouble = opened(browser, report.as_uri(), DESKTOP)
    page.click("#language")
    assert page.inner_text("#search") == "순위표"
    assert page.locator("select[name=result] option").all_inner_texts() == ["오답", "정답", "전체"]
    assert page.locator("svg text:visible", has_text="지금까지 최고").count() == 1
    assert page.locator("svg text:visible", has_text="best so far").count() == 0
    assert trouble == []


def test_everything_can_be_reached_with_the_keyboard(browser: Any, report: Path) -> None:
    page, _ = opened(browser, report.as_uri(), DESKTOP)
    seen = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.name || ''"))
    assert {
        "language",
        "theme",
        "part",
        "result",
        "gold",
        "answer",
        "kind",
        "sort",
        "find",
        "more",
        "price",
    } <= seen


def test_the_serve_page_gives_the_probabilities_of_the_command_line(
    browser: Any, encoder: Encoder, questions: list[Question]
) -> None:
    question = questions[0]
    expected = score(encoder, [question], 1)[0]
    app = make_app(lambda q: score(encoder, [q], 1)[0], "en", "tiny")
    with served(app) as address:
        page, trouble = opened(browser, address, PHONE)
        page.set_input_files("input[name=picture]", str(question.image))
        page.fill("textarea", question.text)
        for letter, option in zip("abcd", question.choices, strict=True):
            page.fill(f"input[name={letter}]", option)
        page.click("button[type=submit]")
        page.wait_for_selector("#result li")
        shown = [
            float(p) for p in page.locator("#result li").evaluate_all("all => all.map(x => x.dataset.p)")
        ]
        assert shown == list(expected.p)
        assert page.inner_text("#result li.gold span") == expected.answer
        assert trouble == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_doctor_page_opens_without_an_error(
    browser: Any, composed: Compose, tmp_path: Path, viewport: dict[str, int]
) -> None:
    rows = ["id,path,question,a,b,c,d,answer"]
    for i in range(60):
        Image.effect_noise((80 + i, 60), 50 + i).save(tmp_path / f"{i // 2}.png")
        rows.append(f"q{i},{i // 2}.png,무슨 색인가요?,빨강,파랑,초록,노랑,{'abcd'[i % 4]}")
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    given = [
        f"data.train_csv={tmp_path}/train.csv",
        f"data.image_root={tmp_path}",
        f"env.output_root={tmp_path}",
    ]
    written = write_doctor_page(
        read_settings(composed("data=csv", "lang=ko", "tracking=none", *given)), ["x: y"]
    )
    assert written is not None
    page, trouble = opened(browser, written.as_uri(), viewport, dark=viewport == PHONE)
    assert page.inner_text("#leaks") == "중복과 누출"
    page.click("#language")
    assert page.inner_text("#leaks") == "Twins and leaks"
    assert page.locator(".sheet img").count() == 30
    assert trouble == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_the_leaderboard_sorts_by_any_column(browser: Any, report: Path) -> None:
    page, trouble = opened(browser, report.as_uri(), DESKTOP)
    trials = page.locator("#leaderboard tbody th")
    written = trials.all_inner_texts()
    button = page.locator("#leaderboard button.sort").first
    button.click()
    assert trials.all_inner_texts() == sorted(written, key=int)
    button.click()
    assert trials.all_inner_texts() == sorted(written, key=int, reverse=True)
    assert page.locator("#leaderboard th[aria-sort=descending]").count() == 1
    button.click()
    assert trials.all_inner_texts() == written
    assert trouble == []


def test_the_gallery_enlarges_compares_and_saves(browser: Any, report: Path) -> None:
    page, trouble = opened(browser, report.as_uri(), DESKTOP)
    page.select_option("select[name=change]", "fixed")
    rows = int(page.inner_text("#count").split()[0])
    assert rows > 0
    assert page.locator(".change.fixed").count() == page.locator("#cards .card").count()
    with page.expect_download() as download:
        page.click("#export")
    assert len(download.value.path().read_text(encoding="utf-8-sig").splitlines()) == rows + 1
    page.locator("button.enlarge").first.click()
    assert page.locator("#large").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    assert trouble == []


def test_the_bars_of_the_tables_are_seen_whole(browser: Any, report: Path) -> None:
    for viewport in (DESKTOP, PHONE):
        page, _ = opened(browser, report.as_uri(), viewport)
        cut = page.locator(".meter").evaluate_all(
            "all => all.filter(bar => bar.getBoundingClientRect().right > "
            "bar.closest('.scroll').getBoundingClientRect().right + 1).length"
        )
        assert cut == 0


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies of 600 answers each; the names are long, and they differ in rank, rate and answers."""
    root = tmp_path_factory.mktemp("studies")
    names = ("first-study-with-a-long-name", "second-study-with-a-long-name")
    first, second = (RunFolder(write_study(root / name, train_size=600, test_size=60)) for name in names)
    write_predictions(second.valid_predictions, answers(EasyVqa(600, 60, 0).train(), wrong_every=3))
    config = OmegaConf.load(second.config_file)
    config.lora.r, config.optimizer.lr = 32, 0.0002
    OmegaConf.save(config, second.config_file)
    return write_comparison(compare_runs(first, second, names), root / "page.html", "en")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_comparison_fits_its_window_without_an_error(
    browser: Any, comparison: Path, viewport: dict[str, int], dark: bool
) -> None:
    page, trouble = opened(browser, comparison.as_uri(), viewport, dark=dark)
    assert page.inner_text("#verdict").startswith("first-study-with-a-long-name is more accurate")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0  # nothing sticks out
    paper, ink = (
        page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
    )
    assert (luminance(paper) < luminance(ink)) == dark
    assert trouble == []


def luminance(colour: str) -> float:
    """The mean of red, green and blue of `rgb(...)`."""
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_the_tables_of_the_comparison_sort_by_any_column(browser: Any, comparison: Path) -> None:
    page, trouble = opened(browser, comparison.as_uri(), DESKTOP)
    keys = page.locator("#differing tbody th")
    written = keys.all_inner_texts()
    assert written == ["lora.r", "optimizer.lr"]
    page.locator("#differing button.sort").first.click()
    page.locator("#differing button.sort").first.click()
    assert keys.all_inner_texts() == written[::-1]
    cells = page.locator("table.changed").first.locator("tbody tr td:nth-child(3)")
    page.locator("table.changed").first.locator("button.sort").nth(2).click()
    sure = [float(cell.split()[-1]) for cell in cells.all_inner_texts()]
    assert len(sure) > 100
    assert sure == sorted(sure)
    assert trouble == []


def test_the_comparison_speaks_korean(browser: Any, comparison: Path) -> None:
    page, trouble = opened(browser, comparison.as_uri(), PHONE)
    page.click("#language")
    assert page.inner_text("#scores") == "점수"
    assert "정확도가 더 높음" in page.inner_text("#verdict")
    assert page.locator("#differing button.sort").first.inner_text() == "키"
    left = page.locator("main").inner_text()
    assert not {"training speed", "tie", "differ", "held-out"} & set(left.split("\n"))
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert trouble == []
