"""The page with the embedded model behind it, under 200 requests at once: answers, refusals, memory."""

import base64
import json
import re
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from tests.conftest import Make, served
from vqa.answer.score import score
from vqa.model.adapter import attached, save_adapter
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.stages.serve import application

pytestmark = pytest.mark.hostile
LARGE = (2400, 1800)  # pixels: 13 MB as PNG, 17 MB as base64
MEMORY_MIB = 1024  # eight bodies of 17 MB and their pictures are in memory at once, and 0.25 GiB of features
WAIT_S = 240
JSON = {"content-type": "application/json"}


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG of which only the header is sound."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    chunks = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BROKEN = [
    b"",
    b"no picture",
    b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    png(60_000, 60_000),
    png(9_000, 9_000),
    png(8, 8, b"\0" * 9),
]


def request(image: bytes, question: str, options: list[str]) -> bytes:
    """The body of a request."""
    return json.dumps(
        {"image": base64.b64encode(image).decode(), "question": question, "options": options}
    ).encode()


@pytest.fixture
def adapter(encoder: Encoder, settings: Make, tmp_path: Path) -> Path:
    """An adapter that changes every answer's probabilities."""
    with attached(encoder.base, settings("+lora.init_lora_weights=false").lora, seed=3) as model:
        save_adapter(model, tmp_path / "adapter", encoder.base)
    return tmp_path / "adapter"


@pytest.fixture
def address(adapter: Path, settings: Make) -> Iterator[str]:
    """The page as `stage=serve` makes it."""
    with application(settings("stage=serve", f"adapter={adapter}")) as app, served(app) as found:
        yield found


def memory_mib(name: str) -> int:
    """A figure of this process's memory: VmRSS, or its highest, VmHWM."""
    [found] = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found) // 1024


@pytest.mark.slow
def test_200_requests_at_once_get_the_command_lines_answers_in_a_bounded_memory(
    address: str,
    adapter: Path,
    encoder: Encoder,
    questions: list[Question],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    host, _, port = address.removeprefix("http://").partition(":")
    noise = np.random.default_rng(0).integers(0, 255, (LARGE[1], LARGE[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png", compress_level=0)
    large = Question("l", tmp_path / "large.png", "large", "What is it?", ("yes", "no"))
    asked = [*questions[:12], large]
    bodies = [request(Path(str(q.image)).read_bytes(), q.text, list(q.choices)) for q in asked]

    def one(number: int) -> tuple[str, int, tuple[object, ...]]:
        """What was sent, the status, and for a question its number, answer and probabilities."""
        kind, turn = number % 5, number // 5
        if kind == 0:  # goes away in the middle of its upload
            with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
                head = f"POST /answer HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
                client.sendall(f"{head}Content-Length: {len(bodies[-1])}\r\n\r\n".encode())
                client.sendall(bodies[-1][: 2**20])
            return "broken off", 0, ()
        if kind == 1:
            body = request(BROKEN[turn % len(BROKEN)], "What is it?", ["yes", "no"])
            sent = requests.post(f"{address}/answer", data=body, headers=JSON, timeout=WAIT_S)
            return "broken", sent.status_code, ()
        which = len(asked) - 1 if kind == 2 and turn % 4 == 0 else number % (len(asked) - 1)
        while True:
            sent = requests.post(f"{address}/answer", data=bodies[which], headers=JSON, timeout=WAIT_S)
            if sent.status_code != 503:
                found = sent.json()
                return "asked", sent.status_code, (which, found.get("answer"), tuple(found.get("p", ())))
            time.sleep(0.2)  # it was told to come again; at once, the uploads would take most of the time

    Path("/proc/self/clear_refs").write_text("5")  # the highest from here on
    before = memory_mib("VmRSS")
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(one, range(200)))
    grown = memory_mib("VmHWM") - before

    statuses = Counter((what, status) for what, status, _ in results)
    assert set(statuses) <= {("broken off", 0), ("broken", 422), ("broken", 503), ("asked", 200)}, statuses
    assert statuses["asked", 200] == 120
    assert statuses["broken", 422]
    answers = {answer for what, _, answer in results if what == "asked"}
    assert len(answers) == len(asked)  # whoever asked the same got the same
    assert grown < MEMORY_MIB, f"{grown} MiB"
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.exc_info]
    expected = score(encoder, asked, 1)  # the page's adapter is still on
    assert sorted(answers) == [(n, p.answer, p.p) for n, p in enumerate(expected)]


def test_the_page_keeps_few_features_and_answers_with_the_adapter_that_was_asked_for(
    address: str, encoder: Encoder, questions: list[Question]
) -> None:
    body = request(Path(str(questions[0].image)).read_bytes(), questions[0].text, list(questions[0].choices))
    sent = requests.post(f"{address}/answer", data=body, headers=JSON, timeout=WAIT_S)
    [with_it] = score(encoder, questions[:1], 1)  # the page's adapter is still on
    assert tuple(sent.json()["p"]) == with_it.p
    assert encoder.base.vision.limit_bytes == 2**28


def test_a_disk_without_room_for_the_picture_is_told(
    address: str, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vqa.stages.serve.Path.write_bytes", full)
    body = request(Path(str(questions[0].image)).read_bytes(), "What is it?", ["yes", "no"])
    sent = requests.post(f"{address}/answer", data=body, headers=JSON, timeout=60)
    assert sent.status_code == 507
    assert "No space left on device" in sent.json()["error"]
