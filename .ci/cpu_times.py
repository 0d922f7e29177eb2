"""The slowest tests by CPU seconds: `PYTHONPATH=.ci python -m pytest -p cpu_times`, on a busy machine too.

Seconds of the test's process, of those that it started and waited for, and of those that its fork server
did (tests/helpers/two_processes.py); fixtures included.
`CPU_TIMES_SHOWN=400` shows so many tests instead of forty; the files that took most follow.
"""

import os
import resource
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import Any

import psutil
import pytest

SHOWN = int(os.environ.get("CPU_TIMES_SHOWN", "40"))
_seconds: Counter[str] = Counter()  # of the process that prints, by test id


def _spent() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    server: int | None = getattr(forkserver, "_forkserver")._forkserver_pid  # noqa: B009
    return own if server is None else own + sum(psutil.Process(server).cpu_times()[:4])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Note what was spent before the test."""
    item.user_properties.append(("cpu_before", _spent()))
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Note what the test took; its last report carries that to the process that prints."""
    try:
        return (yield)
    finally:
        before = float(str(dict(item.user_properties)["cpu_before"]))
        item.user_properties.append(("cpu_s", _spent() - before))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect what a test took."""
    taken = dict(report.user_properties).get("cpu_s")
    if report.when == "teardown" and taken is not None:
        _seconds[report.nodeid] = float(str(taken))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the slowest tests, then the slowest files."""
    files: Counter[str] = Counter()
    for name, seconds in _seconds.items():
        files[name.split("::")[0]] += seconds
    terminalreporter.section(
        f"CPU seconds of the slowest {SHOWN} of {len(_seconds)}, {sum(_seconds.values()):.0f} in all"
    )
    for name, seconds in _seconds.most_common(SHOWN):
        terminalreporter.write_line(f"{seconds:7.2f} {name}")
    terminalreporter.section("CPU seconds by file")
    for name, seconds in files.most_common(SHOWN):
        terminalreporter.write_line(f"{seconds:7.2f} {name}")
