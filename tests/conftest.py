"""What several test files need: composed settings and the embedded model."""

import gc
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vqa.answer.adapt.method import Adapting
from vqa.config import place
from vqa.config.check import read_settings, register_resolvers
from vqa.config.settings import Settings
from vqa.model.adapter import attached
from vqa.model.base import Base, load_base
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.stages.serve import HOST

pytest.register_assert_rewrite("tests.helpers")
CONF = Path(__file__).parents[1] / "conf"
SMALL = ["tracking=none", "env.threads=1", "data.train_size=60", "data.test_size=12", "budget=smoke"]
MEMORY, ROOM_BYTES = Path("/dev/shm"), 4 * 2**30  # a whole run takes less than 1 GiB

Compose = Callable[..., DictConfig]
Make = Callable[..., Settings]
Adapt = Callable[..., Adapting]


def pytest_configure(config: pytest.Config) -> None:
    """Compose quickly in this process, and put the tests' folders into memory where it has room for them.

    A disk takes milliseconds for each fsync, and a study of two trials makes over a hundred.
    """
    from tests.helpers.quick_compose import compose_quickly

    compose_quickly()
    there = config.option.basetemp is None and os.access(MEMORY, os.W_OK)
    if there and shutil.disk_usage(MEMORY).free >= ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what imports and collected tests hold: they stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("DATA_PATH", "HF_HOME", "VQA_OUTPUT", "MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # so that it goes after the test where what is tested sets it
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra keeps the last command of the process, which an earlier test may have run."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)


@pytest.fixture
def composed() -> Iterator[Compose]:
    """composed("a=b", ...) is what Hydra makes of these overrides."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF)):
        yield lambda *overrides: compose("config", overrides=list(overrides))


_read: dict[tuple[object, ...], Settings] = {}


@pytest.fixture
def settings(composed: Compose) -> Make:
    """settings("a=b", ...) is the small configuration with these overrides, checked.

    Composing takes longer than most tests: each process does it once for the same overrides and environment.
    """

    def read(*overrides: str) -> Settings:
        environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        key = (overrides, place.ROOT, tuple(sorted(environment.items())))
        if key not in _read:
            _read[key] = read_settings(composed(*SMALL, *overrides))
        return deepcopy(_read[key])

    return read


@pytest.fixture
def base(settings: Make) -> Base:
    """The embedded model, loaded once per test process."""
    import torch

    torch.set_num_threads(1)
    return load_base(settings())


@pytest.fixture
def encoder(base: Base, settings: Make) -> Encoder:
    made = settings()
    return Encoder(base, made.prompt, made.image)


@pytest.fixture
def questions(settings: Make) -> list[Question]:
    """48 labelled easy-VQA questions."""
    from vqa.data.source import split_questions

    split, _ = split_questions(settings())
    return list(split.train)  # the split itself is shared by the whole process


@pytest.fixture
def adapting(encoder: Encoder, settings: Make) -> Iterator[Adapt]:
    """adapting("adapt=tent", ...) is what a test-time method gets: the embedded model, a fresh adapter."""
    with attached(encoder.base, settings().lora, seed=0) as model:
        model.eval()
        yield lambda *overrides: Adapting(encoder, settings(*overrides).adapt)


def environment(**more: str) -> dict[str, str]:
    """The process environment for a command-line test: one thread, no user settings."""
    drop = ("DATA_PATH", "HF_HOME", "VQA_OUTPUT", "MLFLOW_TRACKING_URI")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return kept | {"OMP_NUM_THREADS": "1"} | more


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are files without a picture: drawing takes longer than a small training, and has own tests."""
    from matplotlib.figure import Figure

    def write(figure: Figure, path: Path, **how: Any) -> None:
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')

    monkeypatch.setattr(Figure, "savefig", write)


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """unwritable(folder) makes the folder look like somebody else's, also to root."""
    access = os.access

    def forbid(folder: Path) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and Path(path) != folder)

    return forbid


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of an application on a free port of this machine."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host=HOST, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://{HOST}:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
