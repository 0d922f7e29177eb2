"""Results come in order, errors when they are due, and on a CPU nothing runs ahead."""

from collections.abc import Iterator

import pytest
import torch

from vqa.prefetch import AHEAD, prefetched

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
