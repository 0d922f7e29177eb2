"""Ctrl-C is heard even where Python drops the exception."""

import os
import signal
import time

import pytest

from vqa.machine.interrupt import Interrupt, time_limit


class Swallows:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))  # the handler runs in here, where nothing can be raised


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_dropped_is_raised_at_the_next_check() -> None:
    with Interrupt() as interrupt:
        interrupt.check()
        lost = Swallows()
        del lost
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_preemption_is_heard_like_ctrl_c(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == signal.SIG_DFL


def test_the_former_handler_is_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_limit_on_computing_ends_a_loop_and_leaves_who_waits_alone() -> None:
    with time_limit(0.05, computing=True):
        time.sleep(0.2)
    with pytest.raises(TimeoutError), time_limit(0.05, computing=True):
        sum(1 for _ in iter(int, 1))  # without an end
