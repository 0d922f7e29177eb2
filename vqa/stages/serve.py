"""`stage=serve`: a small page on this machine to try an adapter on one picture and question."""

import base64
import binascii
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vqa.config.messages import message
from vqa.config.settings import Settings
from vqa.errors import UserError
from vqa.question import LETTERS, Question
from vqa.report.page import render
from vqa.results.folder import adapter_folder
from vqa.results.predictions import Prediction
from vqa.stages.preflight import prepare

HOST = "127.0.0.1"  # never another: whoever reaches the page may use the machine
LARGEST_BYTES = 40 * 2**20  # of a request: a phone's photo is 3 to 12 MiB
Answer = Callable[[Question], Prediction]


@dataclass(frozen=True)
class Reply:
    """What the page gets: the letter, its four probabilities, and those of the letters among all words."""

    answer: str
    p: Sequence[float]
    option_mass: float


def run_serve(settings: Settings, folder: Path) -> None:
    """Load base and adapter, and serve the page until Ctrl-C.

    Args:
        settings: The run; `adapter` or the study's final one, `env.port`.
        folder: Not used: serving leaves no files.

    Raises:
        UserError: There is no adapter, or the optional libraries are missing.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise UserError(
            f"stage=serve needs {error.name}: pip install -c constraints.txt '.[serve]'"
        ) from error
    from vqa.answer.members import asked_one_by_one, stored_temperature
    from vqa.model.base import load_base
    from vqa.model.encode import Encoder

    prepare(settings)
    address = f"http://{HOST}:{settings.env.port}"
    Console(stderr=True, soft_wrap=True).print(message(settings.lang, "serving", address=address))
    adapter = adapter_folder(settings)
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    with asked_one_by_one(encoder, adapter, stored_temperature(adapter, settings)) as answer:
        app = make_app(answer, settings.lang, f"{settings.model.path} + {adapter}")
        # "server header": the page need not say what serves it
        uvicorn.run(app, host=HOST, port=settings.env.port, log_level="warning", server_header=False)


def make_app(answer: Answer, lang: str, title: str) -> Any:
    """The page and its one call, as an ASGI application.

    Args:
        answer: Answers one question.
        lang: What the page opens in.
        title: What is served.
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(title="vqa", docs_url=None, redoc_url=None, openapi_url=None)
    # a page elsewhere could point its own name at this machine and read what we answer
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost", "testserver"])
    page = render("serve.html", language=lang, title=title)

    @app.get("/", response_class=HTMLResponse)
    def show() -> str:
        return page

    async def reply(request: Request) -> JSONResponse:
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > LARGEST_BYTES:
            return JSONResponse({"error": f"a request must be <= {LARGEST_BYTES // 2**20} MiB"}, 413)
        try:
            return JSONResponse(asdict(answer_request(await request.json(), answer)))
        except (UserError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 422)

    app.add_api_route("/answer", reply, methods=["POST"], response_model=None)
    return app


def answer_request(content: Any, answer: Answer) -> Reply:
    """Answer one request.

    Args:
        content: {"image": base64, "question": text, "options": [four texts]}.
        answer: Answers one question.

    Raises:
        ValueError: A field is missing or wrong.
        UserError: The picture cannot be used.
    """
    if not isinstance(content, dict):
        raise ValueError(f"a request must be an object, got {type(content).__name__}")
    text, options = content.get("question"), content.get("options")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"question must be a text, got {text!r}")
    if (
        not isinstance(options, list)
        or len(options) != len(LETTERS)
        or not all(isinstance(option, str) and option.strip() for option in options)
    ):
        raise ValueError(f"options must be four texts, got {options!r}")
    try:
        data = base64.b64decode(str(content.get("image", "")), validate=True)
    except binascii.Error as error:
        raise ValueError(f"image must be base64: {error}") from error
    if not data:
        raise ValueError("image must be a picture, got nothing")
    a, b, c, d = options
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(data)
        question = Question("1", path, hashlib.sha256(data).hexdigest(), text, (a, b, c, d))
        found = answer(question)
    return Reply(str(found.answer), found.p, found.option_mass)
