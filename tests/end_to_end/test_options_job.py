"""The whole job on questions with three options, and with two, five and six: sweep to submission."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.command_line import Outcome, vqa
from vqa.question import LETTERS

pytestmark = pytest.mark.usefixtures("undrawn")
Vqa = Callable[..., Outcome]
COLOURS = {"red": "#d22", "green": "#2a2", "blue": "#22d", "yellow": "#dd2", "black": "#111", "gray": "#888"}


def write_contest(folder: Path, numbers: Sequence[int]) -> tuple[str, ...]:
    """Colour questions whose numbers of options come by turns; returns the arguments that name them."""
    draw, most = random.Random(0), max(numbers)
    header = ["id", "path", "question", *LETTERS[:most], "answer"]
    for part, size in (("train", 36), ("test", 9)):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(header)
            for i in range(size):
                n = numbers[i % len(numbers)]
                options = draw.sample(list(COLOURS), n)
                gold = i // len(numbers) % n
                Image.new("RGB", (32, 32), COLOURS[options[gold]]).save(folder / f"{part}{i}.png")
                cells = [*options, *[""] * (most - n)]
                text = f"What colour is shape {i}?"
                table.writerow([f"{part}-{i}", f"{part}{i}.png", text, *cells, LETTERS[gold]])
    found = ("data=csv", f"data.train_csv={folder}/train.csv", f"data.test_csv={folder}/test.csv")
    return (*found, f"data.image_root={folder}", f"data.fewer_options={str(len(numbers) > 1).lower()}")


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(3,), (6, 2, 5)], ids=["three", "two to six"])
def test_a_contest_of_other_numbers_of_options_goes_from_its_file_to_a_submission(
    numbers: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def command(*more: str) -> Outcome:
        out = vqa(monkeypatch, capsys, f"env.output_root={tmp_path}", "tracking=none", *more)
        assert out.code == 0, out.err
        return out

    data = write_contest(tmp_path, numbers)
    budget = ("budget=smoke", "budget.holdout_share=0.5", "loss=choice_ce", "env.threads=1")
    less = ("budget.epochs=1", "budget.subsample=null", "budget.evaluations_per_fit=1")
    small = (*budget, *less, "study=job", *data)
    checked = command("stage=doctor", *small)
    said = f"{min(numbers)} - {max(numbers)}" if len(numbers) > 1 else f"{numbers[0]}"
    assert f"{said} options" in checked.out
    first = command("-m", "+sweep=lora", "hydra.sweeper.n_trials=1", "inference=cyclic", *small)
    study = tmp_path / "job"
    final, letters = study / "final", LETTERS[: max(numbers)]
    chance = sum(1 / n for n in numbers) / len(numbers)
    metrics = json.loads((final / "metrics.json").read_text())
    assert metrics["chance"] == pytest.approx(chance, abs=0.03)
    assert f"chance {metrics['chance']:.3f}" in first.out
    answers = read_rows(final / "test_predictions.csv")
    columns = [name for name in answers[0] if name.startswith("p_")]
    assert columns == [f"p_{letter}" for letter in letters]
    for i, row in enumerate(answers):
        n = numbers[i % len(numbers)]
        p = [row[name] for name in columns]
        assert sum(map(float, p[:n])) == pytest.approx(1)
        assert p[n:] == [""] * (len(letters) - n)
        assert row["answer"] in LETTERS[:n]
    report = (study / "report.html").read_text(encoding="utf-8")
    assert f">{100 * metrics['chance']:.1f} %<" in report.replace("\n", "")
    card = (final / "adapter/README.md").read_text(encoding="utf-8")
    assert f"{min(numbers)}- to {max(numbers)}-choice" in card or f"{numbers[0]}-choice" in card
    prompt = json.loads((final / "adapter/prompt.json").read_text())
    named = dict(zip(letters, "123456", strict=False))
    assert prompt["user"].format(question="q", **named).count("(") == len(letters)
    assert sorted(prompt.get("user_of", {})) == sorted(map(str, numbers if len(numbers) > 1 else ()))

    predicted = command("stage=predict", "study=job", f"data.image_root={tmp_path}", "env.threads=1")
    assert "chance" not in predicted.err
    assert (study / "predict/submission.csv").read_bytes() == (final / "submission.csv").read_bytes()
    command("stage=evaluate", "study=job", f"data.image_root={tmp_path}", "env.threads=1")
    scored = json.loads((study / "evaluate/metrics.json").read_text())
    assert scored["n"] == 9
    assert scored["nll"] == metrics["test"]["nll"]
    members = ",".join([f"{final}/test_predictions.csv"] * 2)
    command("stage=ensemble", "study=both", f"ensemble.members=[{members}]")
    assert (tmp_path / "both/ensemble/submission.csv").read_bytes() == (final / "submission.csv").read_bytes()
