"""Every error, warning and alarm of the code has Korean words, and lang=ko shows them."""

import logging
import re
import string
import sys
from pathlib import Path

import pytest

from tests.helpers.command_line import vqa
from tests.helpers.said_in_code import said_in
from vqa import run
from vqa.config.korean import Pattern, catalogue, in_korean
from vqa.config.reference import keys, rule
from vqa.sweep.settings import _RULES
from vqa.terminal import TerminalHandler

ROOMS = (
    *("errors.py", "run.py", "stage.py", "config", "data", "machine", "model", "results"),
    *("tracking", "train", "answer", "report", "sweep", "stages"),
)
# Expressions whose words are not in the source at that place -> where they come from.
PASSED_ON = {
    "str(error)": "what Pillow or the path says",
    "str(error.strerror or error)": "the operating system's words",
    "str(found)": "an ImageError, whose words are counted where it is raised",
    "str(does_not_fit(doing, device, error))": "a DoesNotFitError, counted where it is made",
    "note": "notes of the reading, tested below",
    "reason": "why votes have no winner: `_winner`, which is counted",
    "problem": "drive_problem, cache_problem and hub_problem of the preflight, tested below",
    "message": "an alarm of `collapse_alarm`, which is counted",
    "refusal.read_text(encoding='utf-8')": "a worker's UserError, counted where it is raised",
}
IN_BOTH_LANGUAGES = re.compile(
    r"plain_message\(|self\._say\(|describe_ties\(|^edges$|^text$"
)  # by name already


def has_words(text: str) -> bool:
    """Whether there is something to translate: letters outside of fields, keys and names."""
    fixed = " ".join(literal for literal, *_ in string.Formatter().parse(text))
    return bool(re.search(r"(?<![\w.=/'<])[a-z]{2,}(?![\w.=/':])", fixed))


def filled_in(text: str) -> str:
    """A sentence with a value at each field; fields that touch are one value."""
    merged = re.sub(r"(?:\{\d\}){2,}", "{0}", text)
    return merged.format(*(f"<{n}>" for n in range(10)))


@pytest.mark.parametrize("room", ROOMS)
def test_every_sentence_of_a_room_has_korean_words(room: str) -> None:
    lacking = [
        said.text
        for said in said_in(room)
        if said.text is not None and has_words(said.text) and not is_korean(in_some_sentence(said.text))
    ]
    assert lacking == []


def in_some_sentence(text: str) -> str:
    """The Korean of a sentence, or of a phrase, which is only looked for within one."""
    filled = filled_in(text)
    first = "\n".join(in_korean(line) for line in filled.split("\n"))
    return first if is_korean(first) else in_korean(f"key must be {filled}, got 1").partition("만 쓸")[0]


def is_korean(text: str) -> bool:
    return bool(re.search("[가-힣]", text))


@pytest.mark.parametrize("room", ROOMS)
def test_no_sentence_hides_from_the_count(room: str) -> None:
    hidden = [
        said.place
        for said in said_in(room)
        if said.text is None and said.source not in PASSED_ON and not IN_BOTH_LANGUAGES.search(said.source)
    ]
    assert hidden == []


def test_sentences_are_counted() -> None:
    sentences = {said.text for room in ROOMS for said in said_in(room) if said.text and has_words(said.text)}
    assert len(sentences) >= 300


@pytest.mark.parametrize("pattern", catalogue(), ids=lambda pattern: pattern.english[:40])
def test_a_pattern_takes_no_field_that_the_english_lacks(pattern: Pattern) -> None:
    assert fields(pattern.korean) <= fields(pattern.english)


def fields(text: str) -> set[str]:
    return {name for _, name, *_ in string.Formatter().parse(text) if name}


def test_no_pattern_is_out_of_use() -> None:
    said = {said.text for room in (*ROOMS, "question.py") for said in said_in(room)}
    lines = {line for text in said if text for line in text.split("\n")}
    source = "\n".join(path.read_text(encoding="utf-8") for path in Path("vqa").rglob("*.py"))
    gone = [
        pattern.english
        for pattern in catalogue()
        if not pattern.is_phrase and pattern.english not in lines and not in_source(pattern, source)
    ]
    assert gone == []


def in_source(pattern: Pattern, source: str) -> bool:
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    return all(words.strip(" ;:,") in joined for words in pattern.words)


RULES = sorted({rule(declared, with_kind) for _, declared, _ in keys() for with_kind in (True, False)})


@pytest.mark.parametrize("rule", [*RULES, *(rule for rule, _ in _RULES.values())])
def test_the_rule_of_every_key_has_korean_words(rule: str) -> None:
    said = in_korean(f"key must be {rule}, got 0")
    assert said.startswith("key: ")
    left = said.removeprefix("key: ").removesuffix("만 쓸 수 있습니다 (지금 값: 0)")
    assert is_korean(left) or not has_words(rule), said


@pytest.mark.parametrize(
    ("english", "korean"),
    [
        ("lora.r must be an integer >= 1, got 0", "lora.r: 1 이상의 정수만 쓸 수 있습니다 (지금 값: 0)"),
        (
            "2 problems in a.csv:\n  a.csv:row 3, column b: is empty\n  a.csv:row 4, column answer: "
            "must be a or b, got 'z'\n"
            "Mend these rows, or leave bad training rows out with data.on_bad_row=skip.",
            "a.csv에 문제 2개:\n  a.csv:3행, b 열: 비어 있습니다\n  a.csv:4행, answer 열: "
            "a 또는 b만 쓸 수 있습니다 (지금 값: 'z')\n"
            "이 행들을 고치거나, data.on_bad_row=skip으로 잘못된 학습 행을 빼고 진행하세요.",
        ),
        (
            "a job of this sweep cannot be composed (lora.r=0): lora.r must be an integer >= 1, got 0",
            "이 스윕의 작업을 구성할 수 없습니다 (lora.r=0): "
            "lora.r: 1 이상의 정수만 쓸 수 있습니다 (지금 값: 0)",
        ),
        (
            "  - data: data.image_root must be a folder, got None: "
            "set data.image_root=FOLDER or the environment variable DATA_PATH",
            "  - 데이터: data.image_root: None은(는) 폴더가 아닙니다. "
            "data.image_root=FOLDER 또는 환경 변수 DATA_PATH를 지정하세요",
        ),
        ("trial 7 pruned at step 3 with 1.0568", "시도 7 중단 (3단계, 1.0568)"),
        ("what no pattern knows: is it so?", "what no pattern knows: is it so?"),
        (
            "1 thing(s) to mend:\n"
            "  - device: precision=float16 needs a GPU; use precision=auto (float32 on a CPU)",
            "고칠 것 1개:\n  - 장치: precision=float16에는 GPU가 필요합니다. "
            "precision=auto를 쓰세요(CPU에서는 float32)",
        ),
    ],
)
def test_values_stay_and_words_become_korean(english: str, korean: str) -> None:
    assert in_korean(english) == korean


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lora.r=0"], "1 이상의 정수만 쓸 수 있습니다"),
        (["lora.rr=8"], "설정할 수 있는 키 가운데 'lora.rr'이(가) 없습니다 (혹시 lora.r?)"),
        (["model=nope"], "찾을 수 없음: 'model/nope'"),
        (["stage=nope"], "stage: 다음 중 하나("),
        (["data=csv", "data.train_csv=no.csv"], "data.train_csv=no.csv: 다음 위치에 그런 파일이 없습니다"),
        (["stage=predict", "study=s"], "adapter_config.json이 없습니다"),
        (["stage=report", "study=s"], "보고서로 만들 것이 없습니다"),
        (["stage=status", "study=s"], "스윕이 없습니다"),
        (
            ["-m", "+sweep=lora", "hydra.sweeper.n_trials=0"],
            "n_trials: 1 이상의 정수만 쓸 수 있습니다",
        ),
        (["-m", "+sweep=lora", "data=csv", "data.train_csv=no.csv"], "그런 파일이 없습니다"),
        (["stage=doctor", "data=csv", "data.train_csv=null", "data.image_root=."], "고칠 것 1개:"),
    ],
)
def test_the_command_line_refuses_in_korean(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = vqa(monkeypatch, capsys, *words, "tracking=none", "lang=ko")
    assert (refused.code, said in refused.err) == (2, True), refused.err
    assert vqa(monkeypatch, capsys, *words, "tracking=none").code == 2
    assert not is_korean(capsys.readouterr().err)


@pytest.mark.parametrize("words", [["stage=predict", "study=s"], ["-m", "+sweep=lora"], ["stage=doctor"], []])
def test_an_unknown_language_is_refused_by_name(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = vqa(monkeypatch, capsys, *words, "tracking=none", "lang=kr")
    assert (refused.code, refused.err) == (2, "vqa: lang must be one of en, ko, got 'kr'\n")


def test_a_warning_reaches_the_terminal_in_korean_and_the_runs_log_in_english(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vqa.config.messages._spoken", "ko")
    monkeypatch.setattr(TerminalHandler, "worded", staticmethod(run._told))
    handler = TerminalHandler(sys.stderr)
    record = logging.makeLogRecord(
        {"msg": "out of memory: %d questions at a time from here, same answers", "args": (4,)}
    )
    assert handler.format(record) == "메모리 부족: 이제부터 한 번에 4문항씩. 답은 같습니다"
    assert logging.Formatter().format(record).startswith("out of memory: 4 questions")
