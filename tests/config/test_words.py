"""The short form of a command, what a typo may mean, and completion in bash."""

import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from tests.helpers.command_line import vqa
from vqa.config.check import folder_name, register_resolvers, study_name
from vqa.config.near import known_words, nearest, with_advice
from vqa.config.place import CONF
from vqa.config.typed import refuse_broken_words
from vqa.config.words import completion, quoted, spelled_out
from vqa.errors import UserError


@pytest.mark.parametrize(
    ("words", "hydras"),
    [
        ([], []),
        (["-m", "+sweep=lora"], ["-m", "+sweep=lora"]),
        (["final"], ["stage=final"]),
        (["status", "mine", "lang=ko"], ["stage=status", "study='mine'", "lang=ko"]),
        (["predict", "mine", "a b.csv"], ["stage=predict", "study='mine'", "++data.test_csv='a b.csv'"]),
        (["compare", "a", "b"], ["stage=compare", "study='a'", "compare='b'"]),
        (["stage=evaluate", "data.test_csv=x.csv"], ["stage=evaluate", "++data.test_csv=x.csv"]),
        (["stage=final", "data.test_csv=x.csv"], ["stage=final", "data.test_csv=x.csv"]),
    ],
)
def test_short_words_become_overrides(words: list[str], hydras: list[str]) -> None:
    assert spelled_out(words) == hydras


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predcit", "mine"], r"there is no stage 'predcit' \(did you mean predict\?\); vqa STAGE"),
        (["predict", "new.csv"], r"the study comes before the file: vqa predict STUDY new.csv"),
        (["merge", "mine", "new.csv"], r"vqa merge: 'new.csv' is one word too many; .* take a FILE"),
        (["compare", "a"], r"vqa compare takes two studies, got 1: vqa compare STUDY STUDY"),
        (["predict", "mine", "a.csv", "b.csv"], r"vqa predict: 'b.csv' is one word too many"),
    ],
)
def test_words_in_no_order_say_which_order(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        spelled_out(words)


@pytest.mark.parametrize(
    "text", ["a b", "it's", "\\", "a\\'b", "문제 (1).csv", "x,y", "[a]{b}", "end\\\\", "a=b", "''"]
)
def test_a_quoted_text_is_read_as_it_was(text: str) -> None:
    parsed = OverridesParser.create().parse_override(f"key={quoted(text)}")
    assert parsed.value() == text


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("study=대회", "대회"),
        ("data.train_csv=/자료/문제 (1).csv", "/자료/문제 (1).csv"),
        ("data.train_csv=it's 자료.csv", "it's 자료.csv"),
        ("data.train_csv='자료.csv'", "자료.csv"),
        (
            "data.columns={id: 번호, path: 파일 이름, question: Q}",
            {"id": "번호", "path": "파일 이름", "question": "Q"},
        ),
        ('data.columns={id: "번호", a: 보기1}', {"id": "번호", "a": "보기1"}),
        ("ensemble.members=[가/x.csv,b/y.csv]", ["가/x.csv", "b/y.csv"]),
    ],
)
def test_korean_needs_no_quotes(word: str, value: object) -> None:
    (made,) = spelled_out([word])
    assert OverridesParser.create().parse_override(made).value() == value


def test_korean_choices_and_options_stay_what_they_are() -> None:
    (made,) = spelled_out(["prompt.system=가,나"])
    assert made == "prompt.system='가','나'"
    assert OverridesParser.create().parse_override(made).is_choice_sweep()
    assert spelled_out(["--config-dir=/설정", "-m", "lora.r=8,16"]) == [
        "--config-dir=/설정",
        "-m",
        "lora.r=8,16",
    ]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lora.rnak", "lora.r"),
        ("modle", "model"),
        ("budget.epoch", "budget.epochs"),
        ("lora.alpha", "lora.lora_alpha"),
        ("hydra.sweeper.n_trails", "hydra.sweeper.n_trials"),
        ("data.trian_csv", "data.train_csv"),
    ],
)
def test_a_typo_gets_the_nearest_real_key(word: str, meant: str) -> None:
    assert nearest(word, known_words()) == f" (did you mean {meant}?)"
    refused = with_advice(f"Could not override '{word}'.\nTo append to your config use +{word}=1")
    assert refused == f"there is no key '{word}' to set (did you mean {meant}?)"


def test_a_word_like_no_other_gets_no_advice() -> None:
    assert nearest("zzzzzz", known_words()) == ""
    assert "--help lists" in with_advice("Could not override 'zzzzzz'.")


def test_a_launcher_without_its_package_says_what_to_install() -> None:
    hydra = "Could not find 'hydra/launcher/joblib'\n\nAvailable options in 'hydra/launcher':\n\tbasic\n"
    assert with_advice(hydra) == (
        "hydra/launcher=joblib needs a package: pip install --pre hydra-joblib-launcher"
    )


@pytest.mark.parametrize("name", ["..", ".", "", None, "a/b", "a\\b", "a\nb", "\x00", " a", "a ", ". ."])
def test_a_study_is_the_name_of_one_folder(name: str | None) -> None:
    with pytest.raises(UserError, match=r"study must be a folder name, got"):
        study_name(name)


def test_a_studys_name_leaves_room_in_a_file_systems_255_bytes() -> None:
    assert study_name("가" * 66)
    with pytest.raises(UserError, match=r"study must be at most 200 bytes long .*\(201 bytes\)"):
        study_name("가" * 67)


def complete(line: str, folder: Path) -> list[str]:
    """What Tab offers in bash at the end of a line."""
    (folder / "complete.sh").write_text(completion(), encoding="utf-8")
    script = f"""
compopt() {{ :; }}
source {folder}/complete.sh
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}
_vqa_completion
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_tab_completes_stages_options_keys_and_studies(tmp_path: Path) -> None:
    (tmp_path / "multirun/mine").mkdir(parents=True)
    assert complete("vqa pred", tmp_path) == ["predict"]
    assert complete("vqa model=qwen3_vl_3", tmp_path) == ["qwen3_vl_32b"]  # bash replaces what follows =
    assert complete("vqa -m +sw", tmp_path) == [f"+sweep={name}" for name in sweeps()]
    assert complete("vqa budget.epo", tmp_path) == ["budget.epochs="]
    assert complete("vqa final study=mi", tmp_path) == ["mine"]
    assert complete("vqa data.test_csv=a", tmp_path) == []  # a file: bash's own completion


def sweeps() -> list[str]:
    return sorted(file.stem for file in (CONF / "sweep").glob("*.yaml"))


def test_a_folder_of_a_multirun_is_named_by_its_overrides() -> None:
    assert folder_name("prompt.system='가, (나)/b'") == "prompt.system='가, (나)_b'"
    assert folder_name("a\nb") == "a_b"
    first, second = folder_name("가" * 300), folder_name("가" * 300 + "b")
    assert first != second
    assert len(first.encode()) <= 200


def test_a_plain_multirun_makes_one_folder_of_values_with_slashes() -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF)):
        config = compose("config", return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    with open_dict(config.hydra):
        config.hydra.job.override_dirname = "data.train_csv=/my/train.csv"
    assert config.hydra.sweep.subdir == "data.train_csv=_my_train.csv"


def test_the_program_prints_its_completion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = vqa(monkeypatch, capsys, "--completion")
    assert (printed.code, printed.out) == (0, f"{completion()}\n")


def test_a_mistyped_option_gets_the_nearest_one() -> None:
    hydra = "Could not find 'model/qwen3_vl_2'\n\nAvailable options in 'model':\n\tqwen3_vl_2b\n\ttiny\n"
    assert with_advice(hydra) == (
        "Could not find 'model/qwen3_vl_2' (did you mean qwen3_vl_2b?); model is one of qwen3_vl_2b, tiny"
    )


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("tracking=[mlflow,wandb]", "tracking takes one option, got [mlflow,wandb]"),
        ("+sweep=[lora,image]", "sweep takes one option, got [lora,image]"),
        ("hydra/sweeper/pruner=[none,median]", "(hydra.sweeper.pruner.key=value)"),
    ],
)
def test_several_options_of_a_group_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, shown: str
) -> None:
    found = vqa(monkeypatch, capsys, "-m", word)
    assert found.code == 2
    assert shown in found.err


def test_one_option_in_brackets_and_several_experiments_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["tracking=[none]", "+experiment=[team_a_baseline,team_b_final]", "ensemble.members=[a,b]"]
    monkeypatch.setattr("sys.argv", ["vqa", *words])
    refuse_broken_words()
