"""Choices over texts: commas, Korean, parentheses and quotes, from the space to the final run and back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.toy_app.app import main
from tests.helpers.toy_app.harness import board_rows, run_toy, stamps, trials_of
from vqa.errors import UserError
from vqa.sweep.final_run import read_winner
from vqa.sweep.search.space import override_value, plain_value, read_enqueued, read_search_space

APP = Path(__file__).parents[1] / "helpers" / "toy_app" / "app.py"
TEXTS = (
    "a, b",
    "한글 (가)",
    "it's",
    'say "a"',
    "C:\\temp\\",
    "{a: 1",
    "",
    "null",
    "8",
    "x = ${y",
    "two\nlines",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_written_so_that_hydra_reads_it_back(text: str) -> None:
    for value in (text, [text, "x"], {"key": text}):
        assert plain_value(override_value(value)) == value


@pytest.mark.parametrize(
    "syntax", ["choice('a, b','한글 (가)',native,8,'8')", "'a, b','한글 (가)',native,8,'8'"]
)
def test_quoted_choices_are_the_texts_between_the_quotes(syntax: str) -> None:
    space = read_search_space({"note": syntax}, [])
    assert [sample["note"] for sample in space.samples()] == ["a, b", "한글 (가)", "native", 8, "8"]


def test_null_and_lists_are_choices_with_their_own_values() -> None:
    space = read_search_space({"note": "null,[q,v],{a: 1}"}, [])
    assert [sample["note"] for sample in space.samples()] == [None, ["q", "v"], {"a": 1}]


def test_an_enqueued_text_is_found_among_quoted_choices() -> None:
    space = read_search_space({"note": "choice('a, b','한글 (가)')"}, [])
    assert read_enqueued([{"note": "한글 (가)"}], space) == [{"note": override_value("한글 (가)")}]
    with pytest.raises(UserError, match=r"note must lie in .*, got '한글'"):
        read_enqueued([{"note": "한글"}], space)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A whole sweep over texts in two processes, its first setting enqueued."""
    folder = tmp_path_factory.mktemp("quoted")
    words = (
        "note=choice('a, b','한글 (가)','it\\'s')",
        "lr=1e-3",
        "image=native",
        "lora.r=16",
        "hydra.sweeper.enqueue=[{note: '한글 (가)'}]",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_workers=2",
        "hydra/sweeper/pruner=none",
    )
    subprocess.run(
        [sys.executable, str(APP), "-m", "+sweep=toy", *words], cwd=folder, check=True, timeout=120
    )
    return folder, words


def test_a_sweep_over_texts_reaches_its_jobs_and_the_final_run(study: tuple[Path, tuple[str, ...]]) -> None:
    folder, _ = study
    place = folder / "multirun/toy"
    notes = {trial.number: plain_value(trial.params["note"]) for trial in trials_of(folder)}
    assert notes[0] == "한글 (가)"
    assert set(notes.values()) <= {"a, b", "한글 (가)", "it's"}
    for number, note in notes.items():
        config = yaml.safe_load((place / f"trials/{number:03d}/.hydra/config.yaml").read_text("utf-8"))
        assert config["note"] == note
    [best, *_] = board_rows(folder)
    won = notes[int(best["trial"])]
    assert plain_value(best["note"]) == won
    assert yaml.safe_load((place / "best.yaml").read_text("utf-8"))["note"] == won
    assert f"++note={override_value(won)}" in read_winner(place / "best.yaml")
    assert json.loads((place / "final/metrics.json").read_text("utf-8"))["note"] == won


def test_a_complete_sweep_over_texts_is_left_as_it_is(study: tuple[Path, tuple[str, ...]]) -> None:
    folder, words = study
    before = stamps(folder)
    run_toy(folder, *words)
    assert stamps(folder) == before


def test_best_yaml_with_a_text_composes(
    study: tuple[Path, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = study
    monkeypatch.chdir(folder)
    for chosen in (
        "experiment=best --config-dir multirun/toy",
        read_winner(folder / "multirun/toy/best.yaml"),
    ):
        words = chosen.split() if isinstance(chosen, str) else chosen
        monkeypatch.setattr(sys, "argv", ["app.py", *words, "--cfg", "job"])
        main()
        shown = yaml.safe_load(capsys.readouterr().out)
        assert shown["note"] == yaml.safe_load((folder / "multirun/toy/best.yaml").read_text("utf-8"))["note"]
