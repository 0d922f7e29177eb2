"""Features on disk come back bit for bit, damage is made good, and the limit holds."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from vqa.errors import UserError
from vqa.model.base import Base
from vqa.model.vision.disk import FOLDER, SUFFIX, FeatureStore, tower_digest

KIB = 2**-20  # in GiB


def features(seed: int, n: int = 64) -> dict[str, torch.Tensor]:
    made = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return {"pooled": made, "deepstack.0": made + 1}


def stored(store: FeatureStore) -> list[str]:
    return sorted(path.stem for path in store.folder.iterdir())


def age(store: FeatureStore, key: str, seconds: float) -> None:
    moment = store.began - seconds
    os.utime(store.folder / f"{key}{SUFFIX}", (moment, moment))


def test_what_was_stored_comes_back_bit_for_bit(tmp_path: Path) -> None:
    FeatureStore(tmp_path, 1.0).write("k", features(0), {"grid_hw": "16 16"})
    store = FeatureStore(tmp_path, 1.0)  # another process, another day
    found = store.read("k")
    assert found is not None
    tensors, notes = found
    assert notes == {"grid_hw": "16 16"}
    assert all(torch.equal(tensors[name], value) for name, value in features(0).items())
    assert store.read("other") is None
    assert store.nbytes == (tmp_path / FOLDER / f"k{SUFFIX}").stat().st_size


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_ignored_and_made_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = FeatureStore(tmp_path, 1.0)
    store.write("k", features(0), {})
    path = store.folder / f"k{SUFFIX}"
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[:-9], "flipped": whole[:-1] + bytes([whole[-1] ^ 1]), "empty": b""}[damage]
    )
    assert store.read("k") is None
    assert "is ignored and made again" in caplog.text
    store.write("k", features(0), {})
    assert store.read("k") is not None


def test_the_limit_evicts_what_was_not_used_for_longest(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 7 * KIB)  # three files of 2 KiB and a header
    for seed, key in enumerate("abc"):
        store.write(key, features(seed), {})
    for key, seconds in (("a", 30), ("b", 90), ("c", 60)):
        age(store, key, seconds)
    store.write("d", features(4), {})
    assert stored(store) == ["a", "c", "d"]
    assert store.read("a") is not None  # used: now c is the oldest
    store.write("e", features(5), {})
    assert stored(store) == ["a", "d", "e"]


def test_files_in_use_are_not_evicted_for_new_ones(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 7 * KIB)
    for seed, key in enumerate("abcdef"):
        store.write(key, features(seed), {})
    assert stored(store) == ["a", "b", "c"]
    assert store.nbytes <= store.limit_bytes


def write_often(folder: Path) -> None:
    store = FeatureStore(folder, 1.0)
    for _ in range(40):
        store.write("k", features(0, 4096), {})
        assert store.read("k") is not None


def test_two_processes_may_write_the_same_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_often, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    store = FeatureStore(tmp_path, 1.0)
    assert stored(store) == ["k"]
    found = store.read("k")
    assert found is not None
    assert torch.equal(found[0]["pooled"], features(0, 4096)["pooled"])


def test_a_disk_that_fails_ends_the_storing_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FeatureStore(tmp_path, 1.0)
    store.folder.rmdir()
    store.write("k", features(0), {})
    assert "nothing more is stored" in caplog.text
    assert store.full


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"image.cache_dir=.*file cannot be written .*image.cache_dir=null"):
        FeatureStore(tmp_path / "file", 1.0)


def test_other_weights_have_another_digest(base: Base) -> None:
    visual, processor = base.model.model.visual, base.vision.processor
    before = tower_digest(visual, processor)
    weight = next(visual.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[0] += 1
        changed = tower_digest(visual, processor)
        weight.copy_(kept)
    assert changed != before == tower_digest(visual, processor)
