"""Fixtures for all tests: a scripted server, and the real program talking to it."""

import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from program import Programs
from readme import find_line
from server import Server
from shell import Shell

# As with an aiohttp whose inside is not known.
SESSION = """\
import sys, llmfilter.cli, llmfilter.server.direct
llmfilter.server.direct.is_known = lambda: False
sys.exit(llmfilter.cli.main())
"""


@pytest.fixture
def server() -> Iterator[Server]:
    """A scripted server on a free port."""
    with Server() as server:
        yield server


@pytest.fixture
def program(tmp_path: Path, server: Server, request: pytest.FixtureRequest) -> Iterator[Programs]:
    """Runs the real program on `server`, in a folder of its own; `each_way` runs it twice."""
    with Programs(tmp_path, server.url) as programs:
        if getattr(request, "param", "quick") == "session":
            programs.command = [sys.executable, programs.write("session.py", SESSION)]
        request.node.programs = programs
        yield programs


@pytest.fixture
def shell(program: Programs) -> Iterator[Shell]:
    """A user's shell; what still runs in the end is killed."""
    shell = Shell(program)
    yield shell
    shell.close()


@pytest.fixture
def line(request: pytest.FixtureRequest) -> str:
    """The README's line of shell that a test `runs`."""
    return find_line(request.param)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows every program that the test ran: its command, its status, and what it wrote."""
    report = yield
    if report.when == "call" and report.failed and hasattr(item, "programs"):
        report.sections += [("program", str(run)) for run in item.programs.runs]
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `each_way` run on both ways through aiohttp."""
    if metafunc.definition.get_closest_marker("each_way"):
        metafunc.parametrize("program", ["quick", "session"], indirect=True)
