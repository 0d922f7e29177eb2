"""Waiting for a server: message, back-off, end."""

import pytest

from vqa.machine.retry import GoneError, Retry, chain_of, reason_of


class Server:
    """Answers from its n-th call on; counts the pauses between them."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.pauses: list[float] = []

    def retry(self, limit_s: float) -> Retry:
        return Retry("the server", limit_s, (OSError,), lambda e: "away" in str(e), self.pauses.append)

    def answer(self) -> int:
        if len(self.pauses) < self.failures:
            raise self.error
        return 7


def test_a_call_is_repeated_with_growing_pauses_until_it_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    server = Server(7, OSError("away"))
    assert server.retry(600).call(server.answer) == 7
    assert server.pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert [record.getMessage() for record in caplog.records] == [
        "the server does not answer (away); trying again for 600 s",
        "the server answers again after 17.8 s",
    ]


def test_it_says_every_minute_that_it_still_waits(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(30, OSError("away"))
    server.retry(600).call(server.answer)
    assert sum("does not answer" in record.getMessage() for record in caplog.records) == 3


def test_the_wait_has_an_end() -> None:
    server = Server(10**6, OSError("away"))
    with pytest.raises(GoneError, match=r"the server did not come back within 9 s: away. Start it; the same"):
        server.retry(9).call(server.answer)


@pytest.mark.parametrize("error", [OSError("disk broken"), ValueError("away")])
def test_other_errors_pass_at_once(error: Exception) -> None:
    server = Server(1, error)
    with pytest.raises(type(error), match=str(error)):
        server.retry(600).call(server.answer)
    assert server.pauses == []


def test_without_a_limit_an_error_passes_as_it_is() -> None:
    server = Server(1, OSError("away"))
    with pytest.raises(OSError, match="away"):
        server.retry(0).call(server.answer)


def test_the_reason_is_the_first_cause_that_says_anything() -> None:
    wrapped = RuntimeError("page\nof\nSQL")
    wrapped.__cause__ = OSError("connection refused\nsecond line")
    wrapped.__cause__.__context__ = StopIteration()
    assert reason_of(wrapped) == "connection refused"
    assert len(chain_of(wrapped)) == 3
