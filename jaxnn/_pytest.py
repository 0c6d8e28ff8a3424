"""The option `--check-gradients` of pytest: each test's gradients are checked after it.

Pytest loads this file in every run, so it imports nothing until the option is given.
"""

import contextlib
import os
from collections.abc import Generator
from typing import Any

import pytest


def pytest_addoption(parser: Any) -> None:
    """Add the option."""
    parser.getgroup("jaxnn").addoption(
        "--check-gradients",
        action="store_true",
        help="check the gradients that each test takes; a wrong one fails the test",
    )


def pytest_configure(config: Any) -> None:
    """Register the marker and, with the option, the watcher."""
    config.addinivalue_line(
        "markers", "gradient_unchecked: --check-gradients skips the gradients of this test"
    )
    if config.getoption("check_gradients"):
        from jaxnn._cache import keep_programs
        from jaxnn.checking.noting import noting
        from jaxnn.checking.watch import Watcher

        keep_programs()
        watcher, until_the_end = Watcher(), contextlib.ExitStack()
        until_the_end.enter_context(noting(watcher))
        config.add_cleanup(until_the_end.close)
        config.pluginmanager.register(_Watching(watcher), "jaxnn-watching")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Generator[None, Any, Any]:
    """Keep the lines that a failed check names, also where tests run in other processes; with
    `pytest -v`, show its whole report.
    """
    report = yield
    if call.excinfo is not None:
        error = call.excinfo.value
        report.annotations = getattr(error, "annotations", [])
        whole = getattr(error, "report", None) if hasattr(error, "annotations") else None
        if whole is not None and item.config.option.verbose > 0:
            from jaxnn.checking.report import painted

            coloured = item.config.get_terminal_writer().hasmarkup
            told = whole.text(painted) if coloured else str(whole)
            report.sections.append(("gradient report", told))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Under GitHub Actions, mark these lines."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        failed = terminalreporter.stats.get("failed", [])
        for line in dict.fromkeys(mark for r in failed for mark in getattr(r, "annotations", [])):
            terminalreporter.write_line(line)


class _Watching:
    """Watches all tests of a run."""

    def __init__(self, watcher: Any):
        self.watcher = watcher

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Generator[None, Any, Any]:
        """Run a test, then check the gradients that are new in it."""
        from jaxnn.checking.report import GradientError
        from jaxnn.checking.watched import judged

        if item.get_closest_marker("gradient_unchecked"):
            with self.watcher.undisturbed():
                return (yield)
        try:
            result = yield
        except BaseException:
            judged(self.watcher, budget=0)  # what a failed test took is not the next one's
            raise
        try:
            judged(self.watcher).raise_if_wrong()
        except GradientError as error:
            failure: Any = pytest.fail.Exception(str(error), pytrace=False)
            failure.annotations = error.annotations
            raise failure from None
        return result
