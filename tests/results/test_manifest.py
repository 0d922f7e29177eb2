import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vqa.data.source import data_sha256
from vqa.machine.safe_text import mask_secrets
from vqa.question import Question
from vqa.results.folder import RunFolder
from vqa.results.work import (
    Provenance,
    device_name,
    git_state,
    package_versions,
    write_manifest,
)

QUESTION = Question("1", Path("a.png"), "ff", "What?", ("w", "x", "y", "z"), "a")


def write(path: Path, **extra: Any) -> None:
    config = {"lora": {"r": 8}, "env": {"hf_token": "hf_abc"}}
    write_manifest(path, Provenance(config, 0, time.time() - 5, "d", "s", extra))


def test_manifest_says_what_made_the_run(tmp_path: Path) -> None:
    write(tmp_path / "final" / "manifest.json", best_epoch=2)
    content = RunFolder(tmp_path / "final").manifest()
    assert content["seed"] == 0
    assert (content["data_sha256"], content["split_sha256"], content["best_epoch"]) == ("d", "s", 2)
    assert content["config"] == {"lora": {"r": 8}, "env": {"hf_token": "***"}}
    assert 5 <= content["wall_time_s"] < 60
    assert content["finished_utc"].endswith("+00:00")
    assert content["versions"]["python"].startswith("3.")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["manifest.json"]


def test_extra_facts_may_not_hide_the_manifests_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not use the manifest's own names, got seed"):
        write(tmp_path / "manifest.json", seed=3)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "2"},
        {"image_sha256": "00"},
        {"text": "Why?"},
        {"choices": ("x", "w", "y", "z")},
        {"answer": None},
    ],
)
def test_data_hash_follows_the_content(change: dict[str, Any]) -> None:
    assert data_sha256([replace(QUESTION, **change)]) != data_sha256([QUESTION])


def test_data_hash_ignores_where_the_images_lie() -> None:
    assert data_sha256([replace(QUESTION, image=Path("/other/a.png"))]) == data_sha256([QUESTION])


def test_data_hash_keeps_rows_apart() -> None:
    assert data_sha256([QUESTION, QUESTION]) != data_sha256([QUESTION])


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ({"password": "x", "n": 1}, {"password": "***", "n": 1}),
        ({"a": {"hub.api_key": "x"}}, {"a": {"hub.api_key": "***"}}),
        ({"visual_tokens": "256", "tokenizer": "own"}, {"visual_tokens": "256", "tokenizer": "own"}),
        ({"token": None, "use_token": True}, {"token": None, "use_token": True}),
        ("postgresql+psycopg://me:s3:cr@t@db:5432/x", "postgresql+psycopg://me:***@db:5432/x"),
        ("postgresql://me@db/x", "postgresql://me@db/x"),
        ("https://hf_abc@host/repo", "https://***@host/repo"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://h/x?token=abc&y=1", "http://h/x?token=***&y=1"),
        (["lora.r=8", "+env.hf_token=abc"], ["lora.r=8", "+env.hf_token=***"]),
        (["s=postgresql://me:pw@db/x"], ["s=postgresql://me:***@db/x"]),
    ],
)
def test_secrets_are_masked(value: object, masked: object) -> None:
    assert mask_secrets(value) == masked


def test_git_state_names_a_commit_or_nothing() -> None:
    state = git_state()
    assert state is None or (len(state["commit"]) == 40 and isinstance(state["dirty"], bool))


def test_versions_cover_what_decides_the_numbers() -> None:
    assert {"python", "torch", "transformers", "peft", "optuna"} <= package_versions().keys()


def test_device_has_a_name() -> None:
    assert device_name()
