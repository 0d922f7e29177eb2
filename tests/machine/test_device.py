"""Device and number type follow from what is asked for and what is there."""

import pytest
import torch

from vqa.errors import UserError
from vqa.machine.device import choose_device, choose_dtype, peak_memory_gib, use_threads

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AMPERE, TURING = (8, 0), (7, 5)


@pytest.mark.parametrize(
    ("wanted", "gpu", "found"),
    [
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_a_gpu_is_used_when_there_is_one(
    monkeypatch: pytest.MonkeyPatch, wanted: str, gpu: bool, found: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert choose_device(wanted) == torch.device(found)


def test_a_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"env.device=cuda, but torch sees no GPU; use env.device=auto"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("precision", "device", "capability", "found"),
    [
        ("auto", CPU, None, torch.float32),
        ("float32", CPU, None, torch.float32),
        ("bfloat16", CPU, None, torch.bfloat16),
        ("auto", CUDA, AMPERE, torch.bfloat16),
        ("auto", CUDA, TURING, torch.float16),
        ("float32", CUDA, TURING, torch.float32),
        ("float16", CUDA, AMPERE, torch.float16),
        ("bfloat16", CUDA, AMPERE, torch.bfloat16),
    ],
)
def test_the_number_type_follows_the_device(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    device: torch.device,
    capability: tuple[int, int] | None,
    found: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype(precision, device) == found


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("float16", CPU, r"precision=float16 needs a GPU; use precision=auto \(float32 on a CPU\)"),
        ("bfloat16", CUDA, r"precision=bfloat16 needs an Ampere or newer GPU; use precision=auto \(float16"),
    ],
)
def test_a_number_type_the_device_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: torch.device, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: TURING)
    with pytest.raises(UserError, match=message):
        choose_dtype(precision, device)


def test_peak_memory_is_in_gib_and_never_falls() -> None:
    before = peak_memory_gib(CPU)
    block = torch.ones(64 * 2**20)  # 0.25 GiB
    during = peak_memory_gib(CPU)
    del block
    assert 0.1 < before < 64  # torch alone takes 0.2
    assert max(before, 0.35) <= during <= before + 0.5
    assert peak_memory_gib(CPU) >= during


def test_threads_are_set_and_null_leaves_them() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(1)
        assert torch.get_num_threads() == 1
        use_threads(None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
