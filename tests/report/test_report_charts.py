"""Every chart has its text in both languages, and every label that has words is translated."""

import re
from pathlib import Path

from tests.helpers.written_study import write_leaderboard
from vqa.report.report import run_charts, study_charts
from vqa.results.predictions import Prediction
from vqa.results.trials import read_trials

UNTRANSLATED = ("optimizer.lr", "lora.r", "(log)", "NLL", "(nats)")


def test_a_study_gets_its_four_charts_and_their_texts(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, 12)
    charts = study_charts(read_trials(tmp_path / "leaderboard.csv"))
    assert list(charts) == [
        "optimisation_history",
        "parallel_coordinates",
        "parameter_importance",
        "learning_rate_by_rank",
    ]
    english, in_korean = charts["optimisation_history"].text
    assert english.startswith("NLL of each of 12 trials in the order tried: 9 complete, 3 pruned.")
    assert "시도 12회" in in_korean


def test_no_chart_is_drawn_without_a_complete_trial() -> None:
    assert study_charts([]) == {}
    assert run_charts([], []) == {}


def test_every_label_with_words_has_its_korean(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, 12)
    history = [{"step": 1, "nll": 1.0, "train_loss": 1.2, "accuracy": 0.5}]
    labelled = [Prediction(str(i), "a", (0.7, 0.1, 0.1, 0.1), 1.0, "a") for i in range(9)]
    charts = study_charts(read_trials(tmp_path / "leaderboard.csv")) | run_charts(history, labelled)
    for name, chart in charts.items():
        alone = re.findall(r"<text (?!lang)[^>]*>([^<]*[A-Za-z][^<]*)</text>", chart.svg)
        assert [label for label in alone if label not in UNTRANSLATED] == [], name


def test_numbers_keep_their_places_in_korean(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, 12)
    svg = study_charts(read_trials(tmp_path / "leaderboard.csv"))["optimisation_history"].svg
    labels = dict(re.findall(r'<text lang="(..)" [^>]*>([^<]*12[^<]*)</text>', svg))
    assert labels["en"] == "Optimisation history: 9 of 12 trials complete"
    assert labels["ko"] == "탐색 과정: 시도 12회 중 9회 완료"


def test_names_and_numbers_are_not_translated(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, 12)
    svg = study_charts(read_trials(tmp_path / "leaderboard.csv"))["learning_rate_by_rank"].svg
    assert re.search(r"<text (?!lang)[^>]*>optimizer.lr</text>", svg)
    assert re.search(r"<text (?!lang)[^>]*>8</text>", svg)
