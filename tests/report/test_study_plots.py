from pathlib import Path

import pytest
from PIL import Image

from vqa.report.report import study_charts
from vqa.report.study_plots import _Scale, study_plots
from vqa.results.trials import TrialRow


def trial(number: int, nll: float, state: str = "COMPLETE", **parameters: float | str) -> TrialRow:
    searched = {name.replace("_", "."): value for name, value in parameters.items()}
    return TrialRow(number, state, 3, nll, 0.02, 0.9, 0.01, 10.0, searched, False)


def assert_is_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors() or []) > 20  # something is drawn


def test_every_picture_of_a_study_is_drawn(tmp_path: Path) -> None:
    trials = [
        trial(i, 0.3 + 0.1 * (i % 3), optimizer_lr=0.01 / 10 ** (i % 3), lora_r=4.0 + i % 4, scheduler=word)
        for i, word in enumerate(["cosine", "linear"] * 4)
    ]
    trials.append(trial(8, 0.9, "PRUNED", optimizer_lr=0.02, lora_r=8.0, scheduler="linear"))
    trials.append(trial(9, float("nan"), "FAIL", optimizer_lr=0.03, lora_r=8.0, scheduler="linear"))
    drawn = study_plots(trials, tmp_path)
    assert [path.stem for path in drawn] == [
        "optimisation_history",
        "parallel_coordinates",
        "parameter_importance",
        "learning_rate_by_rank",
    ]
    for path in drawn:
        assert_is_picture(path)


@pytest.mark.parametrize(
    ("trials", "names"),
    [
        ([], []),
        ([trial(0, 0.9, "PRUNED", lora_r=8.0)], []),
        ([trial(0, 0.3, lora_r=8.0)], ["optimisation_history"]),
        (
            [trial(0, 0.3, lora_r=8.0), trial(1, 0.4, lora_r="")],  # a parameter of some trials only
            ["optimisation_history", "parallel_coordinates"],
        ),
    ],
)
def test_a_small_study_gets_the_pictures_it_has_data_for(
    tmp_path: Path, trials: list[TrialRow], names: list[str]
) -> None:
    assert [path.stem for path in study_plots(trials, tmp_path)] == names


def test_a_parameter_that_some_trials_did_not_search_is_drawn_below_its_numbers() -> None:
    scale = _Scale([8.0, "", 32.0])
    assert (scale.place(8.0), scale.place(32.0)) == (0.0, 1.0)  # it stays a scale of numbers
    assert scale.place("") < 0
    assert scale.ticks()[0][1] == "–"
    assert scale.filled("") == 20.0
    words = _Scale(["tent", ""])
    assert (words.words, words.filled("")) == (["tent"], "")


def test_importance_takes_trials_that_did_not_search_a_parameter(tmp_path: Path) -> None:
    trials = [
        trial(i, 0.3 + 0.1 * i, lora_r=8.0 * (1 + i % 2) if i % 3 else "", adapt="tent" if i % 3 else "none")
        for i in range(6)
    ]
    drawn = study_plots(trials, tmp_path)
    assert "parameter_importance" in [path.stem for path in drawn]
    charts = study_charts(trials)
    assert "adapt = none." in charts["parallel_coordinates"].text[0]  # the best trial's, without lora.r
