"""What an interrupted training goes on from: the state as it was when it was given."""

from pathlib import Path
from typing import IO, Any

import pytest
import torch

from tests.helpers.rough_times import files_up_to
from vqa.errors import mendable
from vqa.train.checkpoint import CheckpointWriter


def read(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def test_the_file_holds_the_state_as_it_was(tmp_path: Path) -> None:
    path, weight, notes = tmp_path / "checkpoint.pt", torch.ones(3, requires_grad=True), [1, (2, None)]
    history: dict[str, Any] = {"rows": [{"nll": 0.5}], "adapter": torch.zeros(2)}
    with CheckpointWriter(path) as writer:
        for step in range(3):
            writer.write({"step": step, "weights": [weight], "notes": notes}, {"extra": history})
            with torch.no_grad():
                weight += 1
            notes.append(step)
            history["rows"].append({"nll": 0.4})
    saved = read(path)
    assert torch.equal(saved.pop("weights")[0], torch.full((3,), 3.0))
    assert torch.equal(saved["extra"].pop("adapter"), torch.zeros(2))
    rows = {"rows": [{"nll": 0.5}, {"nll": 0.4}, {"nll": 0.4}]}
    assert saved == {"step": 2, "notes": [1, (2, None), 0, 1], "extra": rows}
    assert not path.with_suffix(".tmp").exists()


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    with CheckpointWriter(None) as writer:
        writer.write({"step": 1}, {})
    assert not list(tmp_path.iterdir())


def full(state: Any, file: IO[bytes]) -> None:
    file.write(b"half")
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_told_and_leaves_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    with CheckpointWriter(path) as writer:
        writer.write({"step": 1}, {})
    monkeypatch.setattr("vqa.train.checkpoint.torch.save", full)
    with pytest.raises(OSError, match="No space left"), CheckpointWriter(path) as writer:
        writer.write({"step": 2}, {})
    with CheckpointWriter(path) as writer:
        writer.write({"step": 2}, {})
        with pytest.raises(OSError, match="No space left"):
            writer.write({"step": 3}, {})
    assert read(path) == {"step": 1}


@pytest.mark.parametrize("room", [0, 1, 100, 4096, 100_000, 399_999, 400_000, 400_500])
def test_a_disk_that_fills_at_any_size_is_the_systems_error(tmp_path: Path, room: int) -> None:
    path = tmp_path / "checkpoint.pt"
    with CheckpointWriter(path) as writer:
        writer.write({"step": 1, "weights": torch.zeros(3)}, {})
    with (
        files_up_to(room),
        pytest.raises(OSError, match="File too large") as raised,
        CheckpointWriter(path) as writer,
    ):
        writer.write({"step": 2, "weights": torch.zeros(100_000)}, {})
    assert mendable(raised.value) is not None
    assert read(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]  # the half file takes no room


def test_another_error_is_not_hidden_by_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa.train.checkpoint.torch.save", full)

    def train() -> None:
        with CheckpointWriter(tmp_path / "checkpoint.pt") as writer:
            writer.write({"step": 1}, {})
            raise KeyError("the training's own")

    with pytest.raises(KeyError, match="the training's own"):
        train()
