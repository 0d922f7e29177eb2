"""What a user sees when something is wrong: exit code 2 and one message that says where and what to do."""

import csv
import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.command_line import Outcome, vqa

pytestmark = pytest.mark.usefixtures("undrawn")
Vqa = Callable[..., Outcome]
HEADER = ["id", "path", "question", "a", "b", "c", "d", "answer"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Vqa:
    """command("a=b", ...) runs vqa with output under tmp_path/out."""

    def run(*arguments: str) -> Outcome:
        return vqa(monkeypatch, capsys, f"env.output_root={tmp_path / 'out'}", "tracking=none", *arguments)

    return run


@pytest.fixture
def contest(tmp_path: Path) -> Path:
    """A folder with train.csv, 60 good rows over 30 pictures."""
    folder = tmp_path / "contest"
    (folder / "train").mkdir(parents=True)
    rows = []
    for i in range(60):
        name = f"train/{i // 2:03d}.png"
        Image.new("RGB", (64, 64), (i // 2 * 8 % 256, 90, 40)).save(folder / name)
        rows.append([f"train_{i}", name, "무슨 색인가요?", "빨강", "파랑", "초록", "노랑", "abcd"[i % 4]])
    write(folder / "train.csv", [HEADER, *rows])
    write(folder / "test.csv", [HEADER[:-1], *[row[:-1] for row in rows[:6]]])
    return folder


def write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def csv_arguments(contest: Path) -> list[str]:
    files = [f"data.train_csv={contest / 'train.csv'}", f"data.test_csv={contest / 'test.csv'}"]
    return ["data=csv", f"data.image_root={contest}", *files]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modle=tiny"], "modle"),
        (["model=qwen9"], "Could not find 'model/qwen9'"),
        (["image=null"], "must be a string or a list. Got NoneType: a group such as image takes a file's"),
        (["lora.rnak=8"], "rnak"),
        (["+lora.rnak=8"], "lora.rnak: peft.LoraConfig has no such argument"),
        (["lora.r=[1"], "lora.r=[1"),
        (["budget.epochs=0"], "budget.epochs must be >= 1, got 0"),
        (["stage=finale"], "stage must be one of final"),
        (["env=cloud"], "DATA_PATH"),
        (["data=csv"], "data.train_csv must be a CSV file, got null"),
        (["data=csv", "data.train_csv=x.csv"], "data.train_csv=x.csv: there is no such file"),
        (["data=csv", "data.train_csv=README.md"], "data.image_root must be a folder, got None"),
        (["data=csv", "data.train_csv=x.csv", "data.image_root=."], "x.csv"),
        (["model.path=/nowhere/model"], "model.path=/nowhere/model: no config.json there"),
        (["stage=predict", "adapter=/nowhere"], "adapter=/nowhere: no adapter_config.json there"),
        (["env.device=cuda"], "env.device=cuda, but torch sees no GPU"),
        (["precision=float16"], "precision=float16 needs a GPU"),
        (["data.train_size=10"], "hold"),
        (["data.train_size=10000000"], "train_size"),
        (["lora.target_modules=nothing"], "lora:"),
        (
            ["-m", "+sweep=lora", "hydra.sweeper.n_trials=0"],
            "hydra.sweeper.n_trials must be a whole number >= 1",
        ),
        (["-m", "+sweep=lora", "hydra.sweeper.n_trails=5"], "n_trails"),
        (["-m", "+sweep=lora", "hydra.sweeper.params={lora.rnak:'choice(1,2)'}"], "rnak"),
        (
            ["-m", "+sweep=lora", "hydra/sweeper/pruner=hyperbandd"],
            "Could not find 'hydra/sweeper/pruner/hyperbandd'",
        ),
        (["-m", "+sweep=lora", "hydra.sweeper.storage=mysql://x"], "hydra.sweeper.storage must be sqlite"),
    ],
)
def test_a_mistake_on_the_command_line_ends_with_2_and_says_what(
    command: Vqa, arguments: list[str], message: str
) -> None:
    outcome = command(*arguments)
    assert outcome.code == 2, outcome.err
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def cell(column: int, value: str) -> Callable[[Path], None]:
    """Put a value into the fifth question's row, line 6 of train.csv."""

    def damage(folder: Path) -> None:
        rows = read(folder / "train.csv")
        rows[5][column] = value
        write(folder / "train.csv", rows)

    return damage


def header(names: list[str]) -> Callable[[Path], None]:
    return lambda folder: write(folder / "train.csv", [names, *read(folder / "train.csv")[1:]])


def content(data: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "train.csv").write_bytes(data)

    return damage


def picture(data: bytes | None) -> Callable[[Path], None]:
    """Break, or with None remove, the picture of lines 6 and 7."""

    def damage(folder: Path) -> None:
        (folder / "train/002.png").unlink()
        if data is not None:
            (folder / "train/002.png").write_bytes(data)

    return damage


DAMAGES = {
    "unknown answer": (cell(7, "e"), ["row 6", "answer"]),
    "no answer": (cell(7, ""), ["row 6", "answer"]),
    "empty option": (cell(4, ""), ["row 6", "b"]),
    "empty question": (cell(2, ""), ["row 6", "question"]),
    "empty id": (cell(0, ""), ["row 6", "id"]),
    "duplicate id": (cell(0, "train_0"), ["row 6", "id", "train_0"]),
    "path above the root": (cell(1, "../secret.png"), ["row 6", "path"]),
    "absolute path": (cell(1, "/etc/passwd"), ["row 6", "path"]),
    "missing picture": (picture(None), ["row 6", "002.png"]),
    "broken picture": (picture(b"no picture"), ["row 6", "002.png"]),
    "empty picture": (picture(b""), ["row 6", "002.png"]),
    "missing column": (header([*HEADER[:3], "A", *HEADER[4:]]), ["column", "a"]),
    "empty file": (content(b""), ["train.csv"]),
    "header only": (content(",".join(HEADER).encode()), ["train.csv"]),
    "not UTF-8": (content(b"id,path,\xff\xfe\xff"), ["UTF-8"]),
    "cp949, columns missing": (content("id,path,질문".encode("cp949")), ["column", "질문"]),
}


@pytest.mark.hostile
@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_data_end_with_2_and_name_file_and_place(
    command: Vqa, contest: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    damage(contest)
    outcome = command(*csv_arguments(contest))
    assert outcome.code == 2, outcome.err
    for word in ["train.csv", *words]:
        assert word in outcome.err
    assert "Traceback" not in outcome.err


def test_a_sweep_goes_on_after_its_data_were_mended(command: Vqa, contest: Path) -> None:
    small = ["budget=smoke", "hydra.sweeper.n_trials=1", "hydra.sweeper.final=false", "env.threads=1"]
    arguments = ["-m", "+sweep=lora", *csv_arguments(contest), *small]
    broken = [argument.replace("train.csv", "trian.csv") for argument in arguments]
    assert "trian.csv" in command(*broken).err
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    "word", ["study=..", "study=null", "study=../x", "env.output_root=null", "env.output_root=''"]
)
def test_a_name_that_is_no_folder_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, word: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for words in ([word], ["-m", "+sweep=lora", word]):
        outcome = vqa(monkeypatch, capsys, "tracking=none", *words)
        assert outcome.code == 2
        assert f"{word.partition('=')[0]} must be a folder" in outcome.err
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


def test_a_stage_that_writes_nothing_leaves_no_empty_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["stage=status", "study=nix"], ["stage=compare", "compare=other"], ["stage=report"]):
        assert vqa(monkeypatch, capsys, "env.output_root=out", *words).code == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
    (tmp_path / "out/mine").mkdir()
    (tmp_path / "out/mine/notes.txt").write_text("kept")
    (tmp_path / "named").mkdir()
    named = ["stage=status", "study=mine", "hydra.run.dir=named"]
    for words in (["stage=status", "study=mine"], named):
        assert vqa(monkeypatch, capsys, "env.output_root=out", *words).code == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "named", "notes.txt", "out"]


def test_an_unwritable_output_folder_is_named(command: Vqa, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for arguments in (["stage=final"], ["-m", "+sweep=lora"]):
        outcome = command(f"env.output_root={tmp_path / 'file'}", *arguments)
        assert outcome.code == 2, outcome.err
        assert str(tmp_path / "file") in outcome.err


def test_a_full_disk_is_named(command: Vqa, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/out")

    monkeypatch.setattr("vqa.stages.final.write_split", full)
    outcome = command()
    assert outcome.code == 2, outcome.err
    assert "/data/out: No space left on device; mend it, or set VQA_OUTPUT" in outcome.err


def test_a_truncated_model_is_named(command: Vqa, tmp_path: Path) -> None:
    import shutil

    from vqa.model.base import model_folder

    broken = tmp_path / "model"
    shutil.copytree(model_folder("asset:tiny"), broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    outcome = command(f"model.path={broken}")
    assert outcome.code == 2, outcome.err
    assert f"model.path={broken} cannot be loaded" in outcome.err


def test_the_doctor_lists_everything_that_is_wrong(command: Vqa, contest: Path) -> None:
    (contest / "train/003.png").write_bytes(b"no picture")
    outcome = command("stage=doctor", "optimizer=adamw_8bit", *csv_arguments(contest))
    assert outcome.code == 2
    assert "thing(s) to mend" in outcome.err
    assert "003.png" in outcome.err
    assert "needs a GPU; use optimizer=adamw" in outcome.err


def test_the_doctor_goes_on_where_bad_rows_are_left_out_and_pictures_blank(
    command: Vqa, contest: Path
) -> None:
    Image.new("RGB", (2010, 10)).save(contest / "train/000.png")  # 201 times as long as wide
    big_endian = Image.frombytes("I;16B", (64, 64), bytes(range(64)) * 128)
    big_endian.save(contest / "train/001.png", "TIFF")
    (contest / "train/003.png").write_bytes(b"no picture")
    rows = read(contest / "test.csv")
    rows[1][1] = "nowhere.png"
    write(contest / "test.csv", rows)
    lenient = ["data.on_bad_row=skip", "data.on_bad_image=blank"]
    outcome = command("stage=doctor", "env.threads=1", *csv_arguments(contest), *lenient)
    assert outcome.code == 0, outcome.err
    assert "all good" in outcome.out
    assert "left out 2 bad rows of 60" in outcome.out + outcome.err  # those of 003.png alone
    for setting in lenient:
        outcome = command("stage=doctor", *csv_arguments(contest), setting)
        assert outcome.code == 2
        assert ("nowhere.png" in outcome.err) == (setting == lenient[0])
        assert ("003.png" in outcome.err) == (setting == lenient[1])


def test_the_doctor_is_content_with_the_defaults(command: Vqa, tmp_path: Path) -> None:
    outcome = command("stage=doctor")
    assert outcome.code == 0, outcome.err
    assert "all good" in outcome.out
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_help_shows_commands_and_groups(command: Vqa) -> None:
    outcome = command("--help")
    assert outcome.code == 0
    assert "+sweep=lora" in outcome.out
    assert "qwen3_vl_8b" in outcome.out


def test_a_contest_csv_goes_through_final_predict_and_evaluate(
    command: Vqa, contest: Path, tmp_path: Path
) -> None:
    small = ["budget=smoke", "budget.subsample=null", "budget.evaluations_per_fit=1", "env.threads=1"]
    arguments = [*csv_arguments(contest), *small, "study=c", "image.max_visual_tokens=16"]
    assert command(*arguments).code == 0
    final = tmp_path / "out/c/final"
    submission = read(final / "submission.csv")
    assert submission[0] == ["id", "answer"]
    assert [row[0] for row in submission[1:]] == [f"train_{i}" for i in range(6)]
    assert {row[1] for row in submission[1:]} <= set("abcd")
    before = {path: path.stat().st_mtime_ns for path in final.rglob("*") if path.is_file()}

    again = command(*arguments)
    assert (again.code, "nothing left to do" in again.err) == (0, True)
    other = command(*arguments, "optimizer.lr=5e-4")
    assert other.code == 2
    assert "holds a run of another configuration (optimizer.lr: 0.0015 there, 0.0005 now)" in other.err
    assert {path: path.stat().st_mtime_ns for path in final.rglob("*") if path.is_file()} == before

    assert command("stage=predict", *arguments).code == 0
    assert read(tmp_path / "out/c/predict/submission.csv") == submission
    unlabelled = command("stage=evaluate", *arguments)
    assert unlabelled.code == 2
    assert "stage=evaluate needs labels, but 6 of 6 questions have none" in unlabelled.err
    labelled = [a.replace("test.csv", "train.csv") if a.startswith("data.test_csv") else a for a in arguments]
    assert command("stage=evaluate", *labelled).code == 0
    metrics = json.loads((tmp_path / "out/c/evaluate/metrics.json").read_text())
    assert metrics["n"] == 16  # budget=smoke answers the first 16 rows
    assert {"accuracy", "base_accuracy", "accuracy_ci95", "p_value_vs_base"} <= metrics.keys()
