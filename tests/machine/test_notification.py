"""`notify=`: a program or an address is told how a command ended, and a failure is a warning."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import Make
from vqa import run
from vqa.errors import UserError
from vqa.machine.notification import asked_for, notify
from vqa.sweep.workers.pool import own_command


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ([], None),
        (["notify=null"], None),
        (["study=a", "notify='tell me'"], "tell me"),
        (["+notify=a", "notify=https://x/y?z=1"], "https://x/y?z=1"),
    ],
)
def test_only_the_command_line_says_who_is_told(words: list[str], target: str | None) -> None:
    assert asked_for(words) == (target, [word for word in words if "notify" not in word])


def test_a_program_gets_the_line_and_the_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "tell.sh"
    script.write_text('#!/bin/sh\necho "$1|$2|$VQA_EXIT_CODE" > "$0.out"\n')
    script.chmod(0o755)
    notify(f"{script} first", "vqa done: study='a; b'", 0)
    assert (tmp_path / "tell.sh.out").read_text() == "first|vqa done: study='a; b'|0\n"


def test_an_address_gets_json() -> None:
    got: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.timeout = 10  # a message that never comes fails the test
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    notify(f"http://127.0.0.1:{server.server_port}/hook", "vqa failed: x", 1)
    thread.join()
    server.server_close()
    assert got == [{"text": "vqa failed: x", "exit_code": 1}]


@pytest.mark.parametrize("target", ["/no/such/program", "false", "http://127.0.0.1:9/secret-hook", "'"])
def test_a_message_that_is_not_delivered_is_a_warning(target: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        notify(target, "vqa done", 0)
    assert "could not be delivered" in caplog.text
    assert "secret-hook" not in caplog.text


@pytest.mark.parametrize(("code", "how"), [(0, "done"), (2, "refused"), (130, "interrupted"), (1, "failed")])
def test_the_command_tells_how_it_ended(monkeypatch: pytest.MonkeyPatch, code: int, how: str) -> None:
    told: list[tuple[str, str, int]] = []

    def work() -> None:
        if code == 1:
            raise RuntimeError("a bug")
        if code:
            raise SystemExit(code)

    monkeypatch.setattr(run, "_main", work)
    monkeypatch.setattr(run, "notify", lambda *given: told.append(given))
    monkeypatch.setattr("sys.argv", ["vqa", "study=mine", "notify=tell"])
    try:
        run.main()
    except (SystemExit, RuntimeError):
        assert code
    assert told == [("tell", f"vqa {how}: study=mine", code)]


def test_a_file_cannot_have_somebody_told(settings: Make) -> None:
    with pytest.raises(UserError, match="notify starts a program or calls an address, so it must be given"):
        settings("notify='rm -rf x'")  # as an experiment file would say it


def test_workers_are_copies_of_the_command_that_tell_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "vqa.run", "-m", "+sweep=lora", "notify=//secret"])
    command = own_command(OmegaConf.create({}))
    assert "+sweep=lora" in command
    assert "secret" not in " ".join(command)
