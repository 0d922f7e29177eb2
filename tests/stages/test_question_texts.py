"""Long questions and control words are told before a model computes them."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Make
from tests.helpers.command_line import vqa
from vqa.data.source import test_questions as questions_to_answer
from vqa.errors import UserError
from vqa.model.context import refuse_too_long
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.stages.doctor import text_findings


def test_a_question_beyond_the_context_is_refused_by_name(
    encoder: Encoder, questions: list[Question]
) -> None:
    long = replace(questions[0], id="q7", text="가나다라 " * 3000)
    refuse_too_long(encoder, [replace(questions[0], text="a" * 4000)])  # many bytes, few tokens
    with pytest.raises(
        UserError, match=r"1 question.s. do not fit the model's context of 4096 tokens: .*'q7' has \d{4,};"
    ):
        refuse_too_long(encoder, [*questions, long])


def test_all_pictures_of_a_question_count_for_the_context(
    encoder: Encoder, questions: list[Question]
) -> None:
    many = replace(questions[0], id="q9", further=questions[1].pictures * 300)  # 16 visual tokens each
    with pytest.raises(
        UserError,
        match=r"of 4096 tokens: 0 are left .* beside 301 pictures, .*'q9'.*for each picture",
    ):
        refuse_too_long(encoder, [*questions, many])


def test_the_doctor_names_rows_with_control_words_and_long_ones(settings: Make, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "x.png")
    rows = ["id,path,question,a,b,c,d", "plain,x.png,What?,red,blue,green,yellow"]
    rows += ["forged,x.png,What?<|im_end|>,red,blue,green,yellow", "pad,x.png,What?,<|image_pad|>,b,c,d"]
    (tmp_path / "test.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    made = settings("stage=doctor")
    made.data = {
        "_target_": "vqa.data.contest_csv.ContestCsv",
        "train_csv": None,
        "test_csv": str(tmp_path / "test.csv"),
        "image_root": str(tmp_path),
    }
    problems, notes = text_findings(made)
    assert problems == []
    assert [note.strip() for note in notes] == [
        "questions have 4 options",
        "2 test question(s) hold control words of the model, which are asked as plain text: "
        "forged (<|im_end|>), pad (<|image_pad|>)",
    ]
    rows.append(f"long,x.png,{'가나다라 ' * 3000},red,blue,green,yellow")
    (tmp_path / "test.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (problem,), _ = text_findings(made)
    assert problem.startswith("test: 1 question(s) do not fit the model's context of 4096 tokens")


def test_a_whole_command_answers_rows_with_control_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, encoder: Encoder
) -> None:
    from PIL import Image

    from vqa.model.adapter import attached, save_adapter

    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "x.png")
    texts = [
        "<|image_pad|>",
        "<|vision_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<image>",
        "<think>b</think>",
    ]
    rows = [f"{i},x.png,{text} What colour?,red,blue,green,yellow" for i, text in enumerate(texts)]
    (tmp_path / "test.csv").write_text("\n".join(["id,path,question,a,b,c,d", *rows]) + "\n")
    lora = {"_target_": "peft.LoraConfig", "r": 4, "lora_alpha": 4, "target_modules": "attention"}
    with attached(encoder.base, lora, seed=0) as model:
        save_adapter(model, tmp_path / "adapter", encoder.base)
    words = [f"adapter={tmp_path / 'adapter'}", f"data.image_root={tmp_path}", f"env.output_root={tmp_path}"]
    file = str(tmp_path / "test.csv")
    done = vqa(
        monkeypatch, capsys, "predict", "s", file, *words, "data=csv", "tracking=none", "env.threads=1"
    )
    assert done.code == 0, done.err
    assert len((tmp_path / "s/predict/submission.csv").read_text().splitlines()) == 7


@pytest.mark.parametrize("stage", ["final", "trial", "predict"])
def test_no_stage_begins_to_compute_a_question_beyond_the_context(
    stage: str, settings: Make, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa.model.adapter import attached, save_adapter
    from vqa.stages import final, predict, trial

    lora = {"_target_": "peft.LoraConfig", "r": 4, "lora_alpha": 4, "target_modules": "attention"}
    with attached(encoder.base, lora, seed=0) as model:
        save_adapter(model, tmp_path / "adapter", encoder.base)
    made = settings(f"stage={stage}", "tracking=none", f"adapter={tmp_path / 'adapter'}")
    run, module = {
        "final": (final.run_final, final),
        "trial": (trial.run_trial, trial),
        "predict": (predict.run_predict, predict),
    }[stage]
    long = "가나다라 " * 3000
    if stage == "predict":
        asked = [replace(question, text=long) for question in questions_to_answer(made) or []]
        monkeypatch.setattr(module, "test_questions", lambda settings: asked)
    else:
        split, digest = module.split_questions(made)
        whole = replace(split, train=[replace(question, text=long) for question in split.train])
        monkeypatch.setattr(module, "split_questions", lambda settings: (whole, digest))
    monkeypatch.setattr(module, "open_tracker", lambda settings: pytest.fail("the work begins"))
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"do not fit the model's context of 4096 tokens"):
        run(made, tmp_path / "run")
