"""`stage=compare`: a table, a page, refusals."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import Make
from tests.helpers.written_study import answers, write_study
from vqa.data.easy_vqa import EasyVqa
from vqa.errors import UserError
from vqa.results.folder import RunFolder
from vqa.results.pairing import paired
from vqa.results.predictions import write_predictions
from vqa.stages.compare import comparison_verdict, run_compare


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two studies `a` and `b`; b answers every second question wrongly, with another rank."""
    for name in ("a", "b"):
        write_study(tmp_path / name)
    final = RunFolder(tmp_path / "b/final")
    write_predictions(final.valid_predictions, answers(EasyVqa(60, 12, 0).train(), wrong_every=2))
    config = OmegaConf.load(final.config_file)
    config.lora.r = 32
    OmegaConf.save(config, final.config_file)
    return tmp_path


def compare(settings: Make, root: Path, *words: str) -> Path:
    run_compare(settings("stage=compare", f"env.output_root={root}", *words), root / "a/compare")
    return root / "a/compare"


def test_two_studies_are_compared_in_a_table_and_on_a_page(
    settings: Make, studies: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    folder = compare(settings, studies, "study=a", "compare=b")
    said = capsys.readouterr().out
    assert "60 held-out questions on 60 pictures, the same for both; b minus a" in said
    assert re.search(r"accuracy +75\.0 % +50\.0 % +-25\.0 \(", said)
    assert "a is more accurate: -25.0 points (" in said
    assert re.search(r"test accuracy .* tie", said)
    page = (folder / "b.html").read_text(encoding="utf-8")
    for part in ("verdict", "scores", "settings", "questions"):
        assert f'id="{part}"' in page
    assert '<th scope="row">lora.r</th><td>8</td><td>32</td>' in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)


def test_a_folder_of_a_run_can_be_compared_and_korean_is_spoken(
    settings: Make, studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = compare(settings, studies, "study=a", f"compare={studies}/b/final", "lang=ko")
    assert "검증 문항 60개" in capsys.readouterr().out
    assert '<html lang="ko"' in next(folder.glob("*b_final.html")).read_text(encoding="utf-8")


def test_equal_answers_are_called_a_tie() -> None:
    rows = answers(EasyVqa(60, 12, 0).train())
    english, korean = comparison_verdict(("a", "b"), paired(rows, rows))
    assert english == "a and b tie: accuracy +0.0 points (+0.0 to +0.0); NLL +0.000 (+0.000 to +0.000)."
    assert "동률" in korean


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("study=a", "compare=bb"), r"there is no study 'bb' in .*; studies: a, b"),
        (("study=a", "compare=a"), r"compare must be another run than a, got 'a': the same one"),
        (
            ("study=a", "compare=c"),
            r"c has no held-out answers to compare: .*valid_predictions.csv is not there",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    settings: Make, studies: Path, words: tuple[str, ...], message: str
) -> None:
    if "compare=c" in words:
        (studies / "c").mkdir()
    with pytest.raises(UserError, match=message):
        compare(settings, studies, *words)


def test_studies_of_other_questions_are_refused(settings: Make, studies: Path) -> None:
    rows = answers(EasyVqa(60, 12, 1).train())
    renamed = [type(row)(f"x{row.id}", row.answer, row.p, row.option_mass, row.gold) for row in rows]
    write_predictions(studies / "b/final/valid_predictions.csv", renamed)
    with pytest.raises(UserError, match="share no held-out question"):
        compare(settings, studies, "study=a", "compare=b")


def test_compare_wants_another_study(settings: Make) -> None:
    with pytest.raises(UserError, match="compare must be another study, or the folder of a run, got None"):
        settings("stage=compare")
