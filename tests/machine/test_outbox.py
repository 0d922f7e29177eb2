"""What a tracking server shall get: in order, later, or said to be lost."""

from pathlib import Path

import pytest

from vqa.machine.retry import Outbox


class Server:
    """Takes words while it is up; its clock goes on only in `sleep`."""

    def __init__(self) -> None:
        self.up = True
        self.now = 0.0
        self.heard: list[str] = []
        self.asked = 0
        self.outbox = Outbox("MLflow", (OSError,), lambda e: "away" in str(e), lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def say(self, word: str) -> None:
        def call() -> None:
            self.asked += 1
            if not self.up:
                raise OSError("away")
            self.heard.append(word)

        self.outbox.send(word, call)


def test_what_waits_is_sent_in_order_once_the_server_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server = Server()
    server.say("a")
    server.up = False
    server.say("b")
    server.say("c")
    server.up = True
    server.sleep(2.0)
    server.say("d")
    assert server.heard == ["a", "b", "c", "d"]
    assert [record.getMessage() for record in caplog.records] == [
        "MLflow does not answer (away): the run goes on, and what it records is kept",
        "MLflow answers again and has everything that was kept for it",
    ]


def test_a_server_that_is_away_is_asked_ever_more_seldom() -> None:
    server = Server()
    server.up = False
    for _ in range(200):
        server.say("word")
        server.sleep(1.0)
    assert server.asked == 8  # after 0, 2, 4, 8, 16, 32, 60, 60 s


def test_what_cannot_be_sent_in_the_end_is_named(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.up = False
    for _ in range(2):
        server.say("metrics of trial 001")
    server.say("end of trial 001")
    server.outbox.settle(10)
    assert server.now == 10
    assert "MLflow never got: 1 x end of trial 001, 2 x metrics of trial 001. The files" in caplog.text
    server.outbox.settle(10)
    assert caplog.text.count("never got") == 1


def test_a_file_that_is_gone_by_then_is_named_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox = Server().outbox
    outbox.send("plot.png", (tmp_path / "plot.png").read_text)
    outbox.settle(0)
    assert "never got: 1 x plot.png" in caplog.text


def test_other_errors_go_to_the_caller_once() -> None:
    outbox = Server().outbox

    def broken() -> None:
        raise OSError("no such run")

    with pytest.raises(OSError, match="no such run"):
        outbox.send("labels", broken)
    outbox.settle(0)
    assert not outbox.waiting
