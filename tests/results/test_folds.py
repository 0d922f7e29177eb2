"""folds.csv reads back as it was written; a broken one is named."""

from pathlib import Path

import pytest

from vqa.errors import UserError
from vqa.results.trials import FoldResult, read_folds, write_folds


def test_folds_read_back_with_all_their_digits(tmp_path: Path) -> None:
    folds = [FoldResult(0, 20, 12, 0.1 + 0.2, 1 / 3, 2.5), FoldResult(1, 22, 10, 1.25, 0.5, 3.0)]
    write_folds(tmp_path / "folds.csv", folds)
    assert read_folds(tmp_path / "folds.csv") == folds
    first = (tmp_path / "folds.csv").read_text().splitlines()[0]
    assert first == "fold,n_train,n_valid,nll,accuracy,seconds"


def test_without_a_file_no_fold_is_finished(tmp_path: Path) -> None:
    assert read_folds(tmp_path / "folds.csv") == []


@pytest.mark.parametrize("row", ["0,1,2,low,0.5,1.0", "0,1"])
def test_a_broken_file_is_refused(tmp_path: Path, row: str) -> None:
    path = tmp_path / "folds.csv"
    path.write_text(f"fold,n_train,n_valid,nll,accuracy,seconds\n{row}\n")
    with pytest.raises(UserError, match=r"folds.csv: cannot be read .*remove the trial's folder"):
        read_folds(path)
