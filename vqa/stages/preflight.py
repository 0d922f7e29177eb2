"""What must hold where a run runs, before anything is loaded or downloaded: drive, cache, hub, pictures."""

import functools
import logging
import os
import shutil
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from vqa.config.settings import Settings
from vqa.errors import UserError
from vqa.tracking.mlflow_runs import open_tracker

log = logging.getLogger(__name__)
COLAB_DRIVE = Path("/content/drive")
HUB_TIMEOUT_S = 8
SPARE_BYTES = 2 * 2**30  # left free beside copied pictures


def prepare(settings: Settings) -> None:
    """Check what this place must provide; bring the pictures to a fast disk where the profile asks for it.

    Raises:
        UserError: Results would be lost, the model can be neither found nor fetched, or nothing recorded.
    """
    for check in (drive_problem, cache_problem, hub_problem):
        if problem := check(settings):
            raise UserError(problem)
    if settings.tracking.store != "mlflow":  # MLflow says what is missing when a run begins
        open_tracker(settings.tracking).prepare()
    source, target = settings.data.get("image_root"), settings.env.copy_images_to
    if source and target and Path(source).is_dir():
        settings.data["image_root"] = str(copied_images(Path(source), Path(target)))


def drive_problem(settings: Settings) -> str | None:
    """Why results on Colab would be lost; None when they would not."""
    root = Path(settings.env.output_root)
    if not root.is_relative_to(COLAB_DRIVE) or (COLAB_DRIVE / "MyDrive").is_dir():
        return None
    return (
        f"env.output_root={root}: Google Drive is not mounted; run in a cell: "
        "from google.colab import drive; "
        "drive.mount('/content/drive')   or, to lose the results with the machine: "
        "export VQA_OUTPUT=/content/multirun"
    )


def cache_problem(settings: Settings) -> str | None:
    """Why the Hugging Face cache cannot be written; None when it can, or when nothing is to be downloaded."""
    if not _download_ahead(settings):
        return None
    home = _cache(settings)
    existing = next(p for p in (home, *home.parents) if p.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return None
    return (
        f"the Hugging Face cache {home} cannot be written ({existing} belongs to {_owner(existing)}); "
        f"run: sudo chown -R $USER {existing}   or: export HF_HOME=/a/writable/folder"
    )


def hub_problem(settings: Settings) -> str | None:
    """Why the model cannot be fetched; checked once: the hub's library would retry for 30 s."""
    if not _download_ahead(settings):
        return None
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urlopen(hub, timeout=HUB_TIMEOUT_S).close()
    except HTTPError:
        return None  # it answers
    except (URLError, TimeoutError) as error:
        return (
            f"model.path={settings.model.path} is not in the cache {_cache(settings)} and {hub} cannot "
            f"be reached ({getattr(error, 'reason', error)}); go online once, or give model.path=/a/folder"
        )
    return None


def _download_ahead(settings: Settings) -> bool:
    from vqa.model.base import model_folder

    if settings.env.offline or Path(model_folder(settings.model.path)).is_dir():
        return False
    kept = _cache(settings) / "hub" / f"models--{settings.model.path.replace('/', '--')}"
    return not any(kept.glob("snapshots/*"))


def _cache(settings: Settings) -> Path:
    default = Path.home() / ".cache" / "huggingface"
    return Path(settings.env.hf_home or os.environ.get("HF_HOME") or default).expanduser()


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a mounted folder may belong to a user this machine does not know
        return f"user {path.stat().st_uid}"


@functools.cache  # a worker runs many trials: the folder is walked once
def copied_images(source: Path, target: Path) -> Path:
    """Copy a folder of pictures to a faster disk; files that are there already are not copied again.

    Args:
        source: Usually a mounted drive, where every small file costs a request.
        target: A folder on the machine's own disk; made when missing.

    Returns:
        The copy; `source` itself where the disk is too small for one.
    """
    from filelock import FileLock

    files = [(path, path.stat()) for path in sorted(source.rglob("*")) if path.is_file()]
    target.mkdir(parents=True, exist_ok=True)
    needed = sum(status.st_size for _, status in files)
    copy = target / source.resolve().as_posix().strip("/").replace("/", "-")
    with FileLock(target / ".copying.lock"):  # workers share the machine
        missing = [path for path, status in files if not _same(copy / path.relative_to(source), status)]
        if missing and shutil.disk_usage(target).free < needed + SPARE_BYTES:
            log.warning("pictures stay at %s: %.1f GiB do not fit at %s", source, needed / 2**30, target)
            return source
        for path in missing:
            place = copy / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)
    if missing:
        log.info("copied %d pictures from %s to %s", len(missing), source, copy)
    return copy


def _same(place: Path, status: os.stat_result) -> bool:
    if not place.exists():
        return False
    there = place.stat()
    return (there.st_size, int(there.st_mtime)) == (status.st_size, int(status.st_mtime))
