"""A contest's file of a test, and what reads it."""

from pathlib import Path

from vqa.data.contest_csv import ContestCsv


def contest(root: Path, text: str | bytes, part: str = "train") -> ContestCsv:
    """Write `train.csv` or `test.csv`; its pictures lie beside it."""
    path = root / f"{part}.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ContestCsv(
        train_csv=str(path) if part == "train" else None,
        test_csv=str(path) if part == "test" else None,
        image_root=str(root),
    )
