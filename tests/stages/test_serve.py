"""The page's answers are the command line's, wrong requests are refused, and nobody else is served."""

import asyncio
import base64
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import served
from vqa.answer.score import score
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.results.predictions import Prediction
from vqa.stages.serve import answer_request, make_app, read_body, refused

OPTIONS = ["yes", "no", "red", "blue"]


def said(question: Question) -> Prediction:
    assert question.image is not None
    return Prediction("1", "b", (0.1, 0.7, 0.1, 0.1), 0.9)


def asked(image: bytes = b"picture", **more: Any) -> dict[str, Any]:
    return {"image": base64.b64encode(image).decode(), "question": "what?", "options": OPTIONS} | more


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], r"a request must be an object, got list"),
        (asked(question=" "), r"question must be a text, got ' '"),
        (asked(options=["a"]), r"options must be 2 to 6 texts"),
        (asked(options=["a", "b", "c", ""]), r"options must be 2 to 6 texts"),
        (asked(image=b""), r"image must be a picture, got nothing"),
        ({**asked(), "image": "%%"}, r"image must be base64"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(request_: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        answer_request(request_, said)


@pytest.fixture
def address() -> Iterator[str]:
    """The page on a free port of this machine."""
    with served(make_app(said, "en", "made")) as found:
        yield found


def post(address: str, content: Any, host: str = "") -> tuple[int, Any]:
    sent = requests.post(
        f"{address}/answer", json=content, headers={"host": host} if host else None, timeout=9
    )
    return sent.status_code, sent.json() if sent.headers["content-type"] == "application/json" else sent.text


def test_the_page_answers_over_http(address: str) -> None:
    assert post(address, asked()) == (200, {"answer": "b", "p": [0.1, 0.7, 0.1, 0.1], "option_mass": 0.9})
    assert post(address, asked(question="")) == (422, {"error": "question must be a text, got ''"})


@pytest.mark.hostile
def test_a_page_under_another_name_is_not_served(address: str) -> None:
    assert post(address, asked(), host="evil.example")[0] == 400


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),  # what a form elsewhere can send without being asked
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-length": ""}, 413),
        ({"content-length": "-1"}, 413),
        ({"content-length": "٣"}, 413),
        ({"content-length": "1" * 5000}, 413),
        ({"content-length": str(2**30)}, 413),
    ],
)
def test_a_request_of_another_site_or_size_is_refused_before_it_is_read(
    headers: dict[str, str], status: int
) -> None:
    good = {"host": "127.0.0.1:1", "content-type": "application/json", "content-length": "9"}
    for own in ({}, {"origin": "http://127.0.0.1:1", "sec-fetch-site": "same-origin"}):
        assert refused(good | own) is None
    refusal = refused(good | headers)
    assert refusal is not None
    assert refusal[0] == status


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b"1" * 5000,
    b'{"image": 1, "question": "q", "options": ["a","b","c","d"]}',
    b'{"image": "\xc3\xa9", "question": "q", "options": ["a","b","c","d"]}',
    b'{"image": "AA==", "question": "\\ud800", "options": ["a","b","c","d"]}',
    json.dumps(asked(question="x" * 5000)).encode(),
    json.dumps(asked(options=["a", "b", "c", ["d"]])).encode(),
]


@pytest.mark.hostile
def test_200_requests_at_once_malformed_and_broken_off_ones_among_them(
    address: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    host, _, port = address.removeprefix("http://").partition(":")

    def raw(number: int) -> int:
        if number % 4 == 0:  # a client that goes away in the middle of its upload
            with socket.create_connection((host, int(port)), timeout=9) as client:
                head = f"POST /answer HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
                client.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + b"{" * 1000)
            return 0
        if number % 4 == 1:
            body, headers = MALFORMED[number // 4 % len(MALFORMED)], {"content-type": "application/json"}
            return requests.post(f"{address}/answer", data=body, headers=headers, timeout=20).status_code
        status, found = post(address, asked())
        if status == 200:
            assert found == {"answer": "b", "p": [0.1, 0.7, 0.1, 0.1], "option_mass": 0.9}
        return status

    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(raw, range(200)))
    assert set(statuses) <= {0, 200, 413, 422, 503}, statuses
    assert statuses[200] + statuses[503] >= 100
    assert statuses[200]
    assert post(address, asked())[0] == 200  # it still answers
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.hostile
def test_a_body_that_is_longer_than_it_was_said_to_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 600

    monkeypatch.setattr("vqa.stages.serve.LARGEST_BYTES", 1000)
    with pytest.raises(ValueError, match="a request must be <="):
        asyncio.run(read_body(endless()))


@pytest.mark.hostile
def test_a_slow_request_is_dropped(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("vqa.stages.serve.SLOWEST_S", 0.2)
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=9) as client:
        head = f"POST /answer HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in client.recv(1000)


@pytest.mark.hostile
def test_nothing_foreign_runs_in_the_page_and_nobody_frames_it(address: str) -> None:
    for path in ("/", "/nowhere"):
        sent = requests.get(address + path, timeout=9)
        policy = sent.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert sent.headers["x-content-type-options"] == "nosniff"
    page = make_app(said, "en", "</p><script>alert(1)</script>")
    with served(page) as found:
        assert "<script>alert" not in requests.get(found, timeout=9).text


def test_probabilities_are_those_of_the_command_line(encoder: Encoder, questions: list[Question]) -> None:
    for question in questions[:4]:
        assert question.image is not None
        content = asked(
            Path(question.image).read_bytes(), question=question.text, options=list(question.choices)
        )
        found = answer_request(content, lambda q: score(encoder, [q], 1)[0])
        expected = score(encoder, [question], 1)[0]
        assert (found.answer, found.p) == (expected.answer, expected.p)


def test_a_broken_picture_is_a_message_not_a_crash(encoder: Encoder) -> None:
    from vqa.errors import UserError

    with pytest.raises(UserError, match=r"its bytes are no known image format"):
        answer_request(asked(), lambda q: score(encoder, [q], 1)[0])
