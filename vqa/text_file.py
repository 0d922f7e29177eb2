"""Text files that a reader never sees half written."""

from pathlib import Path


def replace_text(path: Path, text: str, mode: int | None = None) -> None:
    """Write `text` to `path` in one step; a file that says the same already is not touched.

    Args:
        path: Its folder must exist.
        text: The whole content.
        mode: Who may read and write it; None = as usual.
    """
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    partial = path.with_name(f".{path.name}.partial")
    if mode is not None:
        partial.touch(mode=mode)
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(path)
