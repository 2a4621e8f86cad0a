"""Fixtures for all tests: a scripted server, and the real program talking to it."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from program import Programs
from server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A scripted server on a free port."""
    with Server() as server:
        yield server


@pytest.fixture
def program(tmp_path: Path, server: Server, request: pytest.FixtureRequest) -> Iterator[Programs]:
    """Runs the real program on `server`, in a folder of its own."""
    with Programs(tmp_path, server.url) as programs:
        request.node.programs = programs
        yield programs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows every program that the test ran: its command, its status, and what it wrote."""
    report = yield
    if report.when == "call" and report.failed and hasattr(item, "programs"):
        report.sections += [("program", str(run)) for run in item.programs.runs]
    return report
