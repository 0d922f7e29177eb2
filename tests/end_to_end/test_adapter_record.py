"""An adapter answers as it was trained, whatever a command leaves out; other words are used and told."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.command_line import Outcome, vqa
from vqa.results.adapter_record import RECORD

pytestmark = pytest.mark.usefixtures("undrawn")
Vqa = Callable[..., Outcome]
HEADER = ["id", "path", "question", "a", "b", "c", "d", "answer"]
SMALL = ["budget=smoke", "budget.subsample=null", "budget.evaluations_per_fit=1", "env.threads=1"]


def write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files for a study `mine` of another prompt, other pixels and another read-out."""
    folder = tmp_path_factory.mktemp("place")
    rows = []
    for i in range(40):
        Image.new("RGB", (80, 48), (i * 6, 90, 40)).save(folder / f"{i}.png")
        options = ["빨강", "파랑", "초록", "노랑"]
        rows.append([f"q{i}", f"{i}.png", f"무슨 색인가요? {i}", *options, "abcd"[i % 4]])
    write(folder / "train.csv", [HEADER, *rows])
    write(folder / "test.csv", [HEADER[:-1], *[row[:-1] for row in rows[:6]]])
    write(folder / "new [2].csv", [HEADER[:-1], *[row[:-1] for row in rows[6:14]]])
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path) -> Vqa:
    """command("a=b", ...) runs vqa with output under the place."""
    return lambda *words: vqa(
        monkeypatch, capsys, *words, f"env.output_root={place / 'out'}", "tracking=none", "env.threads=1"
    )


@pytest.fixture
def final(command: Vqa, place: Path) -> Path:
    """The study's final run."""
    folder = place / "out/mine/final"
    if not folder.exists():
        files = [f"data.{part}_csv={place / part}.csv" for part in ("train", "test")]
        how = ["prompt=direct_ko", "image=resize_448", "image.size=96", "inference=cyclic", "seed=3"]
        made = command("final", "mine", "data=csv", *files, f"data.image_root={place}", *how, *SMALL)
        assert made.code == 0, made.err
    return folder


def test_a_prediction_without_words_answers_as_the_final_run_did(command: Vqa, final: Path) -> None:
    predicted = command("predict", "mine")
    assert predicted.code == 0, predicted.err
    assert "as the adapter was trained" in predicted.err
    files = [folder / "test_predictions.csv" for folder in (final, final.with_name("predict"))]
    assert files[0].read_text() == files[1].read_text()


def test_a_second_file_is_answered_beside_the_first(command: Vqa, final: Path, place: Path) -> None:
    assert command("predict", "mine").code == 0
    first = (final.with_name("predict") / "submission.csv").read_bytes()
    for _ in range(2):  # the same command again finds its own folder
        again = command("predict", "mine", str(place / "new [2].csv"))
        assert again.code == 0, again.err
    assert "nothing left to do" in again.err
    second = final.with_name("predict_new [2]")
    assert [line.split(",")[0] for line in (second / "submission.csv").read_text().split()[1:]] == [
        f"q{i}" for i in range(6, 14)
    ]
    assert (final.with_name("predict") / "submission.csv").read_bytes() == first
    assert not list(second.parent.glob("predict_new [[]2]_*"))


def test_rows_that_changed_in_a_file_are_not_taken_for_answered(
    command: Vqa, final: Path, place: Path
) -> None:
    shutil.copy(place / "test.csv", place / "changing.csv")
    assert command("predict", "mine", str(place / "changing.csv")).code == 0
    shutil.copy(place / "new [2].csv", place / "changing.csv")
    again = command("predict", "mine", str(place / "changing.csv"))
    assert again.code == 2
    assert "changing.csv has other rows now" in again.err


def test_an_adapter_that_was_trained_again_is_not_taken_for_answered(
    command: Vqa, final: Path, place: Path
) -> None:
    copied = place / "copied [red]"
    shutil.copytree(final / "adapter", copied)
    named = [f"adapter='{copied}'", f"data.image_root={place}"]
    words = ["evaluate", "mine", str(place / "train.csv"), *named]
    first = command(*words)
    assert first.code == 0
    assert f"as the adapter was trained ({copied / RECORD})" in first.err  # brackets are no markup
    weights = copied / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    again = command(*words)
    assert again.code == 2
    assert f"{copied} has other weights now" in again.err


def test_a_word_that_differs_is_used_and_told(command: Vqa, final: Path) -> None:
    told = command("predict", "mine", "prompt=direct_en", "hydra.run.dir=${env.output_root}/english")
    assert told.code == 0, told.err
    assert "though the adapter was trained otherwise: prompt.user=" in told.err
    found = final.parents[1] / "english/test_predictions.csv"
    assert found.read_text() != (final / "test_predictions.csv").read_text()


def test_a_copied_adapter_brings_its_record_without_paths(command: Vqa, final: Path, place: Path) -> None:
    record = (final / "adapter" / RECORD).read_text(encoding="utf-8")
    assert str(place) not in record
    shutil.copytree(final / "adapter", place / "elsewhere")
    words = [f"adapter={place / 'elsewhere'}", f"data.image_root={place}"]
    made = command("predict", "other", str(place / "test.csv"), *words)
    assert made.code == 0, made.err
    found = place / "out/other/predict/test_predictions.csv"
    assert found.read_text() == (final / "test_predictions.csv").read_text()


def test_a_known_option_keeps_what_else_was_set_of_it(command: Vqa, final: Path) -> None:
    words = ["image=resize_448", "data=csv", "hydra.run.dir=${env.output_root}/same"]
    same = command("predict", "mine", *words)
    assert same.code == 0, same.err
    assert "trained otherwise" not in same.err
    found = final.parents[1] / "same/test_predictions.csv"
    assert found.read_text() == (final / "test_predictions.csv").read_text()


def test_an_adapter_without_a_record_is_told(command: Vqa, final: Path, place: Path) -> None:
    bare = place / "bare"
    shutil.copytree(final / "adapter", bare, ignore=shutil.ignore_patterns(RECORD))
    made = command("predict", "bare", f"adapter={bare}", "data=easy_vqa", "budget.test_limit=2")
    assert made.code == 0, made.err
    assert "does not say how it was trained" in made.err


def test_a_merge_takes_the_adapters_model(command: Vqa, final: Path) -> None:
    assert command("merge", "mine", "model=qwen3_vl_8b", "model=tiny").code == 0
    assert json.loads((final.with_name("merge") / "metrics.json").read_text())["base"] == "asset:tiny"
