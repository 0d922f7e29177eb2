"""Each place a run may run in is recognised and checked before anything is loaded; inputs are only read."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Compose, Make
from tests.helpers.command_line import vqa
from vqa.config.check import read_settings
from vqa.config.place import detect
from vqa.errors import UserError
from vqa.stages import preflight
from vqa.stages.preflight import cache_problem, copied_images, drive_problem, hub_problem, prepare

HUB = "model=qwen3_vl_2b"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """place("kaggle") rebuilds that place's folders below a root of its own."""
    folders = {
        "kaggle": ["kaggle/input/quiz/train", "kaggle/working", "kaggle/temp"],
        "colab": ["content/sample_data", "content/drive/MyDrive"],
        "local": ["home/me"],
    }
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)

    def rebuild(name: str) -> Path:
        root = tmp_path / name
        for folder in folders[name]:
            (root / folder).mkdir(parents=True)
        monkeypatch.setattr("vqa.config.place.ROOT", root)
        monkeypatch.setattr(preflight, "COLAB_DRIVE", root / "content/drive")
        return root

    return rebuild


@pytest.mark.parametrize(
    ("name", "data", "output"),
    [
        ("kaggle", "/kaggle/input", "/kaggle/working/multirun"),
        ("colab", "/content/data", "/content/drive/MyDrive/vqa/multirun"),
        ("local", None, "multirun"),
    ],
)
def test_a_place_is_recognised_by_its_folders(
    place: Callable[[str], Path], composed: Compose, name: str, data: str | None, output: str
) -> None:
    place(name)
    assert detect() == name
    made = read_settings(composed())
    assert (made.env.data_path, made.env.output_root) == (data, output)
    assert read_settings(composed(f"env={name}")).env == made.env
    assert read_settings(composed("env=local")).env.output_root == "multirun"  # what is named overrules


def test_a_place_is_recognised_by_its_variables(
    place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    place("local")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    assert detect() == "colab"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert detect() == "kaggle"


def test_variables_overrule_what_a_place_suggests(
    place: Callable[[str], Path], composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    place("kaggle")
    monkeypatch.setenv("VQA_OUTPUT", "/elsewhere")
    assert read_settings(composed()).env.output_root == "/elsewhere"


def test_a_drive_that_is_not_mounted_is_noticed_before_results_are_lost(
    place: Callable[[str], Path], settings: Make
) -> None:
    root = place("colab")
    made = settings(f"env.output_root={root}/content/drive/MyDrive/vqa")
    assert drive_problem(made) is None
    (root / "content/drive/MyDrive").rmdir()
    with pytest.raises(
        UserError, match=r"Google Drive is not mounted; run in a cell: from google.colab import"
    ):
        prepare(made)


def test_a_cache_that_belongs_to_root_comes_with_the_fix(
    settings: Make, tmp_path: Path, unwritable: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "owner", lambda self: "root")
    made = settings(HUB, f"env.hf_home={tmp_path}/cache")
    assert cache_problem(made) is None  # not there yet, but can be made
    unwritable(tmp_path)
    assert cache_problem(made) == (
        f"the Hugging Face cache {tmp_path}/cache cannot be written ({tmp_path} belongs to root); "
        f"run: sudo chown -R $USER {tmp_path}   or: export HF_HOME=/a/writable/folder"
    )
    assert cache_problem(settings(f"env.hf_home={tmp_path}/cache")) is None  # asset:tiny needs no cache
    assert cache_problem(settings(HUB, f"env.hf_home={tmp_path}/cache", "env.offline=true")) is None


def test_the_cache_is_looked_for_where_the_hub_library_looks(
    settings: Make, tmp_path: Path, unwritable: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    default = tmp_path / ".cache/huggingface"
    default.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    unwritable(default)
    assert f"sudo chown -R $USER {default} " in str(cache_problem(settings(HUB)))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "elsewhere"))
    assert cache_problem(settings(HUB)) is None


def test_an_owner_the_machine_does_not_know_is_named_by_number(
    settings: Make, tmp_path: Path, unwritable: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(path: Path) -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(Path, "owner", unknown)
    unwritable(tmp_path)
    found = str(cache_problem(settings(HUB, f"env.hf_home={tmp_path}")))
    assert f"({tmp_path} belongs to user {tmp_path.stat().st_uid})" in found


def test_a_model_that_is_there_may_lie_in_a_cache_that_is_read_only(
    settings: Make, tmp_path: Path, unwritable: Callable[[Path], None]
) -> None:
    (tmp_path / "hub/models--Qwen--Qwen3-VL-2B-Instruct/snapshots/abc").mkdir(parents=True)
    unwritable(tmp_path)
    prepare(settings(HUB, f"env.hf_home={tmp_path}"))  # asks the hub nothing either
    with pytest.raises(UserError, match="cannot be written"):
        prepare(settings("model=qwen3_vl_4b", f"env.hf_home={tmp_path}"))


def test_a_hub_that_cannot_be_reached_is_told_at_once(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens on the discard port
    begun = time.perf_counter()
    with pytest.raises(
        UserError, match=r"model.path=Qwen/Qwen3-VL-2B-Instruct is not in the cache .*go online"
    ):
        prepare(settings(HUB, f"env.hf_home={tmp_path}"))
    assert time.perf_counter() - begun < 5
    assert hub_problem(settings(f"env.hf_home={tmp_path}")) is None  # asset:tiny needs no hub
    assert hub_problem(settings(HUB, f"env.hf_home={tmp_path}", "env.offline=true")) is None


def test_pictures_are_copied_once_and_only_what_changed_again(tmp_path: Path) -> None:
    source, target = tmp_path / "drive", tmp_path / "fast"
    (source / "train").mkdir(parents=True)
    for name in ("a", "b"):
        (source / f"train/{name}.png").write_bytes(name.encode())
    copy = copied_images(source, target)
    assert (copy / "train/b.png").read_bytes() == b"b"
    before = (copy / "train/a.png").stat().st_ino
    (source / "train/b.png").write_bytes(b"new b")
    os.utime(source / "train/b.png", (time.time() + 5, time.time() + 5))
    copied_images.cache_clear()
    assert copied_images(source, target) == copy
    assert (copy / "train/b.png").read_bytes() == b"new b"
    assert (copy / "train/a.png").stat().st_ino == before


def test_pictures_stay_where_they_are_when_the_fast_disk_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive/a.png").write_bytes(b"a")
    monkeypatch.setattr(preflight, "SPARE_BYTES", 2**60)
    assert copied_images(tmp_path / "drive", tmp_path / "fast") == tmp_path / "drive"


def test_a_run_reads_the_copy_and_its_configuration_names_the_original(
    composed: Compose, tmp_path: Path
) -> None:
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive/a.png").write_bytes(b"a")
    given = [f"data.image_root={tmp_path}/drive", f"env.copy_images_to={tmp_path}/fast"]
    made = read_settings(composed("data=csv", *given))
    prepare(made)
    assert made.data["image_root"].startswith(f"{tmp_path}/fast/")
    assert made.plain["data"]["image_root"] == f"{tmp_path}/drive"


def test_inputs_are_only_read_and_results_go_where_the_place_keeps_them(
    place: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = place("kaggle")
    quiz, working = root / "kaggle/input/quiz", root / "kaggle/working"
    rows = ["id,path,question,a,b,c,d,answer"]
    for i in range(60):
        Image.new("RGB", (64, 64), (i * 4, 90, 40)).save(quiz / f"train/{i}.png")
        rows.append(f"q{i},train/{i}.png,색은?,빨강,파랑,초록,노랑,{'abcd'[i % 4]}")
    (quiz / "train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in quiz.rglob("*")}
    for path in (*quiz.rglob("*"), quiz):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setenv("DATA_PATH", str(quiz))
    monkeypatch.setenv("VQA_OUTPUT", str(working / "multirun"))
    monkeypatch.chdir(working)
    small = ["budget=smoke", "budget.subsample=null", "budget.evaluations_per_fit=1", "env.threads=1"]
    given = ["data=csv", f"data.train_csv={quiz}/train.csv", "image.max_visual_tokens=16", "tracking=none"]
    outcome = vqa(monkeypatch, capsys, *given, *small)
    assert outcome.code == 0, outcome.err
    assert (working / "multirun/default/final/manifest.json").exists()
    assert (working / "multirun/default/report.html").exists()
    assert {path: path.stat().st_mtime_ns for path in quiz.rglob("*")} == before
    for path in (quiz, *quiz.rglob("*")):  # so that pytest can clear up
        path.chmod(0o755)
