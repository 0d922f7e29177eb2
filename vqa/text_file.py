"""Text files that a reader never sees half written."""

from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step; a file that says the same already is not touched.

    Args:
        path: Its folder must exist.
        text: The whole content.
    """
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(path)
