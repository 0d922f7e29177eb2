"""`stage=serve`: a small page on this machine to try an adapter on one picture and question."""

import base64
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vqa.config.messages import message
from vqa.config.settings import Settings
from vqa.errors import UserError
from vqa.question import FEWEST, MOST, Question, letters_of
from vqa.report.page import render
from vqa.results.folder import adapter_folder
from vqa.results.predictions import Prediction
from vqa.stages.preflight import prepare

HOST = "127.0.0.1"  # never another: whoever reaches the page may use the machine
LARGEST_BYTES = 40 * 2**20  # of a request: a phone's photo is 3 to 12 MiB
SLOWEST_S = 30.0  # a request that takes longer to arrive is dropped
AT_ONCE = 8  # requests that are read or answered at a time; the next ones are told to come again
KEPT_GIB = 0.25  # features of pictures that were asked about
LONGEST_TEXT = 4000  # characters of a question or an option
# the page's own script and style stand in it; nothing else may run, be fetched or frame it
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Answer = Callable[[Question], Prediction]


@dataclass(frozen=True)
class Reply:
    """What the page gets: the letter, the letters' probabilities, and their share among all words."""

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
    prepare(settings)
    address = f"http://{HOST}:{settings.env.port}"
    Console(stderr=True, soft_wrap=True).print(message(settings.lang, "serving", address=address))
    with application(settings) as app:
        # "server header": the page need not say what serves it
        uvicorn.run(
            app,
            host=HOST,
            port=settings.env.port,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=5,
            limit_concurrency=8 * AT_ONCE,
            h11_max_incomplete_event_size=2**16,
        )


@contextmanager
def application(settings: Settings) -> Iterator[Any]:
    """The page and its call with base and adapter loaded, for the length of the block.

    Pictures come one after another and seldom twice, so their features are kept within `KEPT_GIB` where
    `image.cache_gib` does not say otherwise.

    Args:
        settings: The run; `adapter` or the study's final one.

    Raises:
        UserError: There is no adapter, or it does not fit.
    """
    from vqa.answer.members import asked_one_by_one, stored_temperature
    from vqa.model.base import load_base
    from vqa.model.encode import Encoder

    adapter = adapter_folder(settings)
    base = load_base(settings)
    if settings.image.cache_gib is None:
        base.vision.limit(KEPT_GIB)
    encoder = Encoder(base, settings.prompt, settings.image)
    with asked_one_by_one(encoder, adapter, stored_temperature(adapter, settings)) as answer:
        yield make_app(answer, settings.lang, f"{settings.model.path} + {adapter}")


def make_app(answer: Answer, lang: str, title: str) -> Any:
    """The page and its one call, as an ASGI application.

    Args:
        answer: Answers one question.
        lang: What the page opens in.
        title: What is served.
    """
    import asyncio

    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect

    app = FastAPI(title="vqa", docs_url=None, redoc_url=None, openapi_url=None)
    turn, busy = asyncio.Lock(), asyncio.Semaphore(AT_ONCE)

    # a page elsewhere could point its own name at this machine and read what we answer
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.add_middleware(_WithHeaders)  # around all others: their refusals have them too
    page = render("serve.html", language=lang, title=title, letters=letters_of(MOST), needed=FEWEST)

    @app.get("/", response_class=HTMLResponse)
    def show() -> str:
        return page

    async def reply(request: Request) -> JSONResponse:
        if refusal := refused(request.headers):
            return JSONResponse({"error": refusal[1]}, refusal[0])
        if busy.locked():
            return JSONResponse({"error": "too many requests at once; try again"}, 503, {"Retry-After": "1"})
        async with busy:
            try:
                body = await asyncio.wait_for(read_body(request.stream()), SLOWEST_S)
                content = json.loads(body)
                async with turn:  # one model: the answers come one after another, the page stays there
                    found = await run_in_threadpool(answer_request, content, answer)
            except ClientDisconnect:
                return JSONResponse({"error": "the request was broken off"}, 400)  # nobody hears it
            except TimeoutError:
                return JSONResponse({"error": f"a request must arrive within {SLOWEST_S:.0f} s"}, 408)
            except RecursionError:
                return JSONResponse({"error": "a request must not be nested that deep"}, 422)
            except (UserError, ValueError) as error:
                return JSONResponse({"error": str(error)}, 422)
            except OSError as error:  # no room for the picture, or no right to write it
                return JSONResponse({"error": f"the picture cannot be written: {error.strerror}"}, 507)
        return JSONResponse(asdict(found))

    app.add_api_route("/answer", reply, methods=["POST"], response_model=None)
    return app


class _WithHeaders:
    """Adds `HEADERS` to every answer of an ASGI application."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self.app(scope, receive, sent)


def refused(headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Why a request is refused before its body is read: status and reason; None where it is not.

    A page elsewhere can make a browser send a form here. It cannot send JSON without being asked, and a
    browser names the page's origin.

    Args:
        headers: Of the request, names in lower case.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none") or origin not in (None, f"http://{headers.get('host')}"):
        return 403, "only the page itself may ask"
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "a request must be application/json"
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()) or len(length) > 12 or int(length) > LARGEST_BYTES:
        return 413, f"a request must be <= {LARGEST_BYTES // 2**20} MiB"
    return None


async def read_body(parts: AsyncIterator[bytes]) -> bytes:
    """The whole body of a request.

    Raises:
        ValueError: It is larger than a request may be, whatever its length was said to be.
    """
    body = bytearray()
    async for part in parts:
        body += part
        if len(body) > LARGEST_BYTES:
            raise ValueError(f"a request must be <= {LARGEST_BYTES // 2**20} MiB")
    return bytes(body)


def answer_request(content: Any, answer: Answer) -> Reply:
    """Answer one request.

    Args:
        content: {"image": base64, "question": text, "options": [two to six texts]}.
        answer: Answers one question.

    Raises:
        ValueError: A field is missing or wrong.
        UserError: The picture cannot be used.
    """
    if not isinstance(content, dict):
        raise ValueError(f"a request must be an object, got {type(content).__name__}")
    text, options = content.get("question"), content.get("options")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"question must be a text, got {shortened(text)}")
    if (
        not isinstance(options, list)
        or not FEWEST <= len(options) <= MOST
        or not all(isinstance(option, str) and option.strip() for option in options)
    ):
        raise ValueError(f"options must be {FEWEST} to {MOST} texts, got {shortened(options)}")
    if any(len(part) > LONGEST_TEXT for part in (text, *options)):
        raise ValueError(f"question and options must be <= {LONGEST_TEXT} characters each")
    if any("\ud800" <= letter <= "\udfff" for part in (text, *options) for letter in part):
        raise ValueError("question and options must be Unicode texts, got half of a surrogate pair")
    try:
        data = base64.b64decode(str(content.get("image", "")), validate=True)
    except ValueError as error:  # binascii.Error is one
        raise ValueError(f"image must be base64: {error}") from error
    if not data:
        raise ValueError("image must be a picture, got nothing")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(data)
        question = Question("1", path, hashlib.sha256(data).hexdigest(), text, tuple(options))
        found = answer(question)
    return Reply(str(found.answer), found.p, found.option_mass)


def shortened(value: object) -> str:
    """What was got, for a message: not the whole of a large request."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
