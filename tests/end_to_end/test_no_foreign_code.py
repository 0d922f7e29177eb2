"""A configuration, checkpoint, adapter or model of a stranger runs nothing: canaries stay silent."""

import ast
import contextlib
import json
import os
import pickle
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vqa as package
from tests.helpers.command_line import Outcome, vqa
from vqa.config.library import TRUSTED, check_target
from vqa.errors import UserError
from vqa.sweep.search.sampling import build_pruner
from vqa.sweep.storage import open_storage_to_read

pytestmark = pytest.mark.hostile
Command = Callable[..., Outcome]
RUNNERS = [
    *("os.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "importlib.import_module"),
    *("runpy.run_path", "pickle.load", "torch.load", "numpy.load", "hydra.utils.get_object"),
    *("hydra.utils.instantiate", "shutil.rmtree", "pathlib.Path.unlink", "webbrowser.open", "vqa.run.main"),
]
HUB = "transformers.utils.hub"
THROUGH = {
    "data": [
        *("vqa.data.image.io.open", "vqa.data.source.build", "vqa.data.csv_rows.csv.reader"),
        "vqa.database.X",
    ],
    "lora": [
        *("peft.import_utils.importlib.import_module", "peft.PeftModel.from_pretrained"),
        *("peft.get_peft_model", "peft.utils.other.os.system", "peft.PeftModel"),
        "peft.utils.save_and_load.torch.load",
    ],
    "optimizer": [
        *("torch.optim.optimizer.torch.load", "torch.optim.adam.torch.hub.load", "torch.hub.load"),
        "torch.optim._functional.os.system",
    ],
    "scheduler.schedule": [
        *("transformers.AutoModel.from_pretrained", "transformers.pipeline", "transformers.Trainer"),
        *(f"{HUB}.os.system", "transformers.dynamic_module_utils.get_class_from_dynamic_module"),
        "transformers.AutoTokenizer.from_pretrained",
    ],
    "quantization.weights": [
        *("transformers.AutoConfig.from_pretrained", f"{HUB}.subprocess.run", "transformers.pipeline"),
        "transformers.AutoModel",
    ],
}


def targets(name: str) -> list[object]:
    """What a node must not name."""
    return [*RUNNERS, *THROUGH[name], f"{TRUSTED[name][0][:-1]}os.system", "", 7, ["os.system"], None]


def test_every_loader_of_transformers_is_told_to_run_no_code() -> None:
    """`model_source` says it once; PEFT's loaders take a folder that was checked before, and no such word."""
    calls = [
        (path.name, {keyword.arg or ast.unparse(keyword.value) for keyword in node.keywords})
        for path in Path(package.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")
    ]
    assert len(calls) > 5
    assert [name for name, given in calls if "where" not in given] == ["adapter.py", "adapter.py"]


@pytest.mark.parametrize(
    ("name", "target"), [(name, target) for name in sorted(TRUSTED) for target in targets(name)]
)
def test_no_node_names_what_runs_or_loads(name: str, target: object) -> None:
    for node in ({"_target_": target}, {"_target_": target, "_partial_": True}):
        with pytest.raises(UserError, match=rf"{name}._target_"):
            check_target(name, node)


@pytest.mark.parametrize("runner", RUNNERS)
def test_nothing_is_hidden_in_an_argument(runner: str) -> None:
    good = "peft.LoraConfig"
    for inner in ({"_target_": runner}, [{"a": [{"_target_": runner, "_partial_": True}]}]):
        with pytest.raises(UserError, match=r"lora: no argument may hold a _target_ of its own"):
            check_target("lora", {"_target_": good, "target_modules": inner})


@pytest.mark.parametrize(
    "target",
    [
        *(f"optuna.pruners._percentile.{name}" for name in ("np.load", "math.floor", "_get_percentile")),
        *("optuna.pruners.os.system", "optuna.storages.RDBStorage", "os.system"),
    ],
)
def test_a_pruner_is_a_class_of_optuna_at_any_depth(target: str) -> None:
    hidden = {
        "_target_": "optuna.pruners.PatientPruner",
        "wrapped_pruner": {"_target_": target},
        "patience": 1,
    }
    for node in ({"_target_": target}, hidden):
        with pytest.raises(
            UserError, match=r"hydra.sweeper.pruner: _target_ must be a class of optuna.pruners"
        ):
            build_pruner(node)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when foreign code ran; `sing` on the path makes it."""
    bird = tmp_path / "sang"
    (tmp_path / "sing.py").write_text(
        f"from pathlib import Path\n\ndef sing(*_, **__):\n    Path({str(bird)!r}).touch()\n\nclass Bird:\n"
        "    def __init__(self, *_, **__):\n        sing()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return bird


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    def run(*arguments: str) -> Outcome:
        return vqa(monkeypatch, capsys, f"env.output_root={tmp_path / 'out'}", "tracking=none", *arguments)

    return run


EXPERIMENTS = {
    "callback": ({"hydra": {"callbacks": {"x": {"_target_": "sing.Bird"}}}}, []),
    "callback of ours": (
        {"hydra": {"callbacks": {
            "x": {"_target_": "vqa.sweep.workers.pool.JobCallback", "of": "sing.Bird"}}}}, []),
    "logging factory": ({"hydra": {"job_logging": {"handlers": {"file": {"()": "sing.sing"}}}}}, []),
    "logging class": ({"hydra": {"job_logging": {"handlers": {"console": {"class": "sing.Bird"}}}}}, []),
    "log file": ({"hydra": {"job_logging": {"handlers": {"file": {"filename": "VICTIM"}}}}}, []),
    "log file, emptied first": (
        {"hydra": {"job_logging": {"handlers": {
            "file": {"filename": "VICTIM", "mode": "w", "delay": False}}}}}, []),
    "log file, emptied by a new handler": (
        {"hydra": {"hydra_logging": {
            "handlers": {"x": {"class": "logging.FileHandler", "filename": "VICTIM", "mode": "w"}},
            "root": {"handlers": ["x"]}}}}, []),
    "log file by its attribute": (
        {"hydra": {"job_logging": {"handlers": {
            "file": {".": {"baseFilename": "VICTIM", "mode": "w"}}}}}}, []),
    "log file as a factory": (
        {"hydra": {"job_logging": {"handlers": {
            "x": {"()": "logging.FileHandler", "filename": "VICTIM"}}, "root": {"handlers": ["x"]}}}}, []),
    "log file of a sweep": (
        {"hydra": {"hydra_logging": {
            "handlers": {"x": {"class": "logging.FileHandler", "filename": "VICTIM", "mode": "w"}},
            "root": {"handlers": ["x"]}}}}, ["-m", "+sweep=lora"]),
    "variables": ({"hydra": {"job": {"env_set": {"LD_PRELOAD": "VICTIM"}}}}, []),
    "variables of workers": ({"hydra": {"job": {"env_set": {"PATH": "VICTIM"}}}}, ["-m", "+sweep=lora"]),
    "a secret in an address": ({"tracking": {"uri": "http://127.0.0.1:9/${oc.env:HF_TOKEN}"}}, []),
    "a secret under another name": ({"study": "${oc.env:${lang}_TOKEN}", "lang": "HF"}, []),
    "a secret for a storage": (
        {"hydra": {"sweeper": {"storage": "postgresql+psycopg://u:${oc.env:HF_TOKEN}@127.0.0.1:9/x"}}},
        ["-m", "+sweep=lora"]),
    "a storage in a file of mine": (
        {"hydra": {"sweeper": {"storage": "journal:VICTIM"}}}, ["-m", "+sweep=lora"]),
    "a storage beside the study's folder": (
        {"hydra": {"sweeper": {"storage": "sqlite:///${hydra.sweep.dir}/../../profile.sh"}}},
        ["-m", "+sweep=lora"]),
    "variables, named in a typed one's value": (
        {"hydra": {"job": {"env_set": {"LD_PRELOAD": "VICTIM"}}}}, ["+hydra.job.env_set.MINE=LD_PRELOAD"]),
    "a secret whose name a typed one begins with": (
        {"tracking": {"uri": "http://127.0.0.1:9/${oc.env:HF_TOKEN}"}},
        ["study=${oc.env:HF_TOKEN_OF_MINE,x}"]),
    "nested too deeply": ("x: " + "[" * 4000 + "]" * 4000, []),
    "more than memory holds": (
        "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)), []),
    "launcher": ({"hydra": {"launcher": {"_target_": "sing.Bird"}}}, ["-m", "+sweep=lora"]),
    "launcher's own command": (
        {"defaults": [{"override /hydra/launcher": "submitit_local"}],
         "hydra": {"launcher": {"name": "x\npython -c 'import sing; sing.sing()'"}}}, ["-m", "+sweep=lora"]),
    "worker command": (
        {"hydra": {"sweeper": {"worker_command": "python -c 'import sing; sing.sing()'", "n_workers": 2}}},
        ["-m", "+sweep=lora"]),
    "final command": (
        {"hydra": {"sweeper": {"final_command": "python -c 'import sing; sing.sing()'"}}},
        ["-m", "+sweep=lora"]),
    "sampler": ({"hydra": {"sweeper": {"sampler": {"_target_": "sing.Bird"}}}}, ["-m", "+sweep=lora"]),
    "data": ({"data": {"_target_": "sing.Bird"}}, []),
    "optimizer": ({"optimizer": {"_target_": "sing.sing"}}, []),
    "resolver": ({"study": "${sing.sing:}"}, []),
    "python object": ("seed: !!python/object/apply:sing.sing []\n", []),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_a_strangers_experiment_runs_nothing(
    command: Command, canary: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, arguments = EXPERIMENTS[kind]
    victim = tmp_path / "profile.sh"
    victim.write_text("theirs\n")
    monkeypatch.setenv("HF_TOKEN", "hf_planted_planted")
    folder = tmp_path / "theirs" / "experiment"
    folder.mkdir(parents=True)
    text = (content if isinstance(content, str) else json.dumps(content)).replace("VICTIM", str(victim))
    (folder / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
    outcome = command(f"--config-dir={folder.parent}", "experiment=evil", "stage=status", *arguments)
    assert not canary.exists()
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert "there is no sweep" not in outcome.err  # what stage=status says where nothing was refused
    assert victim.read_text() == "theirs\n"
    assert "planted" not in outcome.out + outcome.err


class Thief:
    """A server that asks as PostgreSQL does for the password, in clear."""

    def __init__(self) -> None:
        self.heard = b""
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port = self.door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            with contextlib.suppress(OSError), self.door.accept()[0] as guest:
                guest.settimeout(5)
                words = guest.recv(1000)
                if words[4:8] in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):  # whether to encrypt
                    guest.sendall(b"N")
                    words = guest.recv(1000)
                guest.sendall(b"R" + (8).to_bytes(4, "big") + (3).to_bytes(4, "big"))
                self.heard += guest.recv(1000)


@pytest.fixture
def thief(monkeypatch: pytest.MonkeyPatch) -> Thief:
    monkeypatch.setenv("PGPASSWORD", "planted")
    for name in ("PGHOST", "PGPASSFILE", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)
    return Thief()


def test_a_strangers_experiment_sends_no_password_to_a_storage(
    command: Command, tmp_path: Path, thief: Thief
) -> None:
    pytest.importorskip("psycopg")
    folder, url = tmp_path / "theirs" / "experiment", f"postgresql+psycopg://u@127.0.0.1:{thief.port}/x"
    folder.mkdir(parents=True)
    content = json.dumps({"hydra": {"sweeper": {"storage": url}}})
    (folder / "evil.yaml").write_text(f"# @package _global_\n{content}\n")
    given = (f"--config-dir={folder.parent}", "experiment=evil", "-m", "+sweep=lora")
    outcome = command(*given)
    assert outcome.code == 2
    assert "hydra.sweeper.storage lies outside the study's folder" in outcome.err
    assert b"planted" not in thief.heard
    assert command(*given, f"hydra.sweeper.storage={url}").code == 2  # typed: it is sent, and refused there
    assert b"planted" in thief.heard


def test_a_strangers_study_folder_gets_no_password(thief: Thief, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    url = f"postgresql+psycopg://u@127.0.0.1:{thief.port}/x"
    with pytest.raises(UserError, match=r"PGPASSWORD would be sent there.* export PGHOST=127\.0\.0\.1"):
        open_storage_to_read(url)
    with pytest.raises(UserError, match="whose hostaddr could have a password sent to another server"):
        open_storage_to_read(url.replace("127.0.0.1", "mine") + "?hostaddr=127.0.0.1")
    monkeypatch.setenv("PGHOST", "localhost")
    with pytest.raises(UserError, match="PGPASSWORD would be sent there"):
        open_storage_to_read(url)
    assert thief.heard == b""
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    with pytest.raises(UserError, match="cannot be opened"):
        open_storage_to_read(url)
    assert b"planted" in thief.heard


def test_what_is_typed_may_name_a_log_file_a_variable_and_a_secret(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_planted")
    outcome = command(
        "stage=status",
        f"hydra.job_logging.handlers.file.filename={tmp_path}/mine.txt",
        "+hydra.job.env_set.MINE=1",
        "study=${oc.env:HF_TOKEN}",
    )
    assert outcome.code == 2
    assert "there is no sweep" in outcome.err


def test_a_word_that_is_no_text_is_refused(command: Command) -> None:
    outcome = command("study=" + os.fsdecode(b"\xff"))
    assert outcome.code == 2
    assert "must be text in UTF-8" in outcome.err


class Egg:
    """Runs `os.mkdir(path)` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_strangers_checkpoint_hatches_nothing(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from vqa.train.checkpoint import Checkpoints
    from vqa.train.fit import _Trainer

    path, bird = tmp_path / "checkpoint.pt", tmp_path / "sang"
    trainer = _Trainer.__new__(_Trainer)
    trainer.encoder = SimpleNamespace(base=SimpleNamespace(device=torch.device("cpu")))  # type: ignore[assignment]
    trainer.parameters = []
    torch.save({"step": 1, "egg": Egg(bird)}, path)
    whole = path.read_bytes()
    for content in (whole, whole[:100], whole[:-10], b"", b"PK", pickle.dumps(Egg(bird)), b"\x80\x04."):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"checkpoint.pt: cannot be taken up(?s:.*)remove it"):
            trainer.load(Checkpoints(path, 1))
    torch.save({"step": 1}, path)
    with pytest.raises(UserError, match="cannot be taken up"):
        trainer.load(Checkpoints(path, 1))
    assert not bird.exists()


def test_a_strangers_adapter_is_not_unpickled(tmp_path: Path) -> None:
    from vqa.model.adapter import plain_adapter

    bird = tmp_path / "sang"
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Egg(bird)))
    for text in ("", "{", "[]", '{"peft_type": "LORA", "auto_mapping": {"parent_library": "sing"}}'):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match=r"adapter=.*(cannot be read|pickled ones)"):
            plain_adapter(None, tmp_path, "asset:tiny")
    assert not bird.exists()


def test_a_model_that_brings_code_is_refused(command: Command, canary: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = {
        "model_type": "sing",
        "auto_map": {"AutoConfig": "sing_model.Bird", "AutoModel": "sing_model.Bird"},
    }
    (model / "config.json").write_text(json.dumps(config))
    (model / "sing_model.py").write_text((tmp_path / "sing.py").read_text() + "\nsing()\n")
    outcome = command(f"model.path={model}", "data.train_size=60", "data.test_size=12")
    assert outcome.code == 2, outcome.err
    assert f"model.path={model} cannot be loaded" in outcome.err
    assert not canary.exists()
