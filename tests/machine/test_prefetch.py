"""Results come in order, errors when they are due, and on a CPU nothing runs ahead."""

import threading
from collections.abc import Iterator

import pytest
import torch

from vqa.machine.device import AHEAD, one_ahead, prefetched

DEVICES = [torch.device("cpu"), torch.device("cuda")]  # the thread needs no GPU


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("jobs", [0, 1, 2, 7])
def test_every_job_is_done_once_and_in_order(device: torch.device, jobs: int) -> None:
    done: list[int] = []

    def make(job: int) -> int:
        done.append(job)
        return job * 10

    assert list(prefetched(make, range(jobs), device)) == [10 * job for job in range(jobs)]
    assert done == list(range(jobs))


def test_no_more_than_a_few_jobs_are_taken_ahead() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(10):
            taken.append(job)
            yield job

    results = prefetched(lambda job: job, jobs(), torch.device("cuda"))
    next(results)
    assert len(taken) == AHEAD + 1


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_an_error_comes_when_its_result_is_due(device: torch.device) -> None:
    def make(job: int) -> int:
        if job == 1:
            raise ValueError("broken picture")
        return job

    results = prefetched(make, range(3), device)
    assert next(results) == 0
    with pytest.raises(ValueError, match="broken picture"):
        next(results)


def test_what_had_no_room_beside_the_computation_is_made_again_when_it_is_due() -> None:
    tried: list[tuple[int, bool]] = []

    def make(job: int) -> int:
        ahead = threading.current_thread() is not threading.main_thread()
        tried.append((job, ahead))
        if job == 1 and ahead:
            raise torch.OutOfMemoryError("too large")
        return job * 10

    assert list(prefetched(make, range(4), torch.device("cuda"))) == [0, 10, 20, 30]
    assert sorted(tried) == [(0, True), (1, False), (1, True), (2, True), (3, True)]


def test_what_never_has_room_says_so() -> None:
    def make(job: int) -> int:
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        next(prefetched(make, [1], torch.device("cuda")))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_each_result_is_read_after_the_next_was_begun(count: int) -> None:
    begun: list[int] = []

    def begin() -> Iterator[int]:
        for i in range(count):
            begun.append(i)
            yield i

    for i in one_ahead(begin()):
        assert begun[-1] == min(i + 1, count - 1)
    assert begun == list(range(count))
