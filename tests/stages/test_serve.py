"""The page's answers are the command line's, wrong requests are refused, and nobody else is served."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import served
from vqa.answer.score import score
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.results.predictions import Prediction
from vqa.stages.serve import answer_request, make_app

OPTIONS = ["yes", "no", "red", "blue"]


def said(question: Question) -> Prediction:
    assert question.image is not None
    return Prediction("1", "b", (0.1, 0.7, 0.1, 0.1), 0.9)


def asked(image: bytes = b"picture", **more: Any) -> dict[str, Any]:
    return {"image": base64.b64encode(image).decode(), "question": "what?", "options": OPTIONS} | more


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], r"a request must be an object, got list"),
        (asked(question=" "), r"question must be a text, got ' '"),
        (asked(options=["a"]), r"options must be four texts"),
        (asked(options=["a", "b", "c", ""]), r"options must be four texts"),
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
    import requests

    sent = requests.post(
        f"{address}/answer", json=content, headers={"host": host} if host else None, timeout=9
    )
    return sent.status_code, sent.json() if sent.headers["content-type"] == "application/json" else sent.text


def test_the_page_answers_over_http(address: str) -> None:
    assert post(address, asked()) == (200, {"answer": "b", "p": [0.1, 0.7, 0.1, 0.1], "option_mass": 0.9})
    assert post(address, asked(question="")) == (422, {"error": "question must be a text, got ''"})


def test_a_page_under_another_name_is_not_served(address: str) -> None:
    assert post(address, asked(), host="evil.example")[0] == 400


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
