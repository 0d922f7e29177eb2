"""The slowest tests by CPU seconds: `PYTHONPATH=.ci python -m pytest -p cpu_times`, on a busy machine too.

Seconds of the test's process and of those that it started and waited for, fixtures included.
"""

import resource
from collections.abc import Iterator
from typing import Any

import pytest

SHOWN = 40
_seconds: dict[str, float] = {}  # of the process that prints, by test id


def _spent() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


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
    """Print the slowest."""
    terminalreporter.section(f"CPU seconds of the slowest {SHOWN}, {sum(_seconds.values()):.0f} in all")
    for name, seconds in sorted(_seconds.items(), key=lambda pair: -pair[1])[:SHOWN]:
        terminalreporter.write_line(f"{seconds:7.2f} {name}")
