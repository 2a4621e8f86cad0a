"""Faults at the border to the system: strace makes calls of the running program fail.

A run of each kind of call × each error that its manual page names × the first, a later and every third
call: no traceback, no hang, each line whole and once, a known status, and the same command without the fault
completes the run. A hundred of them, drawn by seed, in `make test`; all by `make test-faults`.
"""

import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from program import ASK, Program, Programs, may_trace, rows
from server import Server

JOBS = 4
ROWS = 24
TOGETHER = 4  # cases in a test: a start of the program each is what takes the time
DRAWN = 100
# What a process meets that uses files, sockets, memory and threads: from the manual pages, section 2.
ERRORS = {
    "fdatasync": ["EIO", "ENOSPC", "EDQUOT", "EINTR"],
    "pwrite64": ["EIO", "ENOSPC", "EDQUOT", "EINTR", "EAGAIN"],
    "pwritev": ["EIO", "ENOSPC", "EDQUOT", "EINTR"],
    "ftruncate": ["EIO", "ENOSPC", "EINTR"],
    "openat": ["EMFILE", "ENFILE", "ENOMEM", "EIO"],
    "mmap": ["ENOMEM", "EAGAIN"],
    "socket": ["EMFILE", "ENFILE", "ENOMEM"],
    "connect": ["ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH", "EADDRNOTAVAIL", "EPERM", "EAGAIN"],
    "writev": ["ECONNRESET", "EPIPE", "ENOMEM", "ENOBUFS"],  # to sockets
    "pwritev2": ["EIO", "ENOSPC", "EDQUOT", "EINTR", "EAGAIN", "EOPNOTSUPP"],  # to stdout
    "setsockopt": ["ENOMEM", "EPERM"],
    "getsockopt": ["ENOMEM"],
    "getpeername": ["ENOTCONN", "ENOBUFS"],
    "epoll_ctl": ["ENOMEM", "ENOSPC"],
    "clone3": ["EAGAIN", "ENOMEM"],
}
WHEN = {"the first": "1", "a later": "3", "every third": "3+3"}
CASES = [(call, error, when) for call, errors in ERRORS.items() for error in errors for when in WHEN]
ALL = "LLMFILTER_ALL_FAULTS" in os.environ
pytestmark = pytest.mark.skipif(not may_trace(), reason="strace is not here, or may not trace")


def drawn() -> list[list[tuple[str, str, str]]]:
    """The cases of each test."""
    cases = list(CASES)
    random.Random(6).shuffle(cases)
    if not ALL:
        cases = cases[:DRAWN]
    return [cases[at : at + TOGETHER] for at in range(0, len(cases), TOGETHER)]


# At the opening of the cache: calls that concern its folder and its files.
OPENING = {
    "mkdir": ["ENOSPC", "EDQUOT", "EROFS", "EACCES"],
    "openat": ["EACCES", "EIO", "EMFILE", "ENOSPC", "EROFS"],
    "mmap": ["ENOMEM", "EAGAIN"],
    "ftruncate": ["EIO", "ENOSPC", "EFBIG"],
    "pwrite64": ["EIO", "ENOSPC", "EDQUOT"],
    "pread64": ["EIO"],
    "fcntl": ["EAGAIN", "ENOLCK"],
    "fdatasync": ["EIO", "ENOSPC"],
}


@contextmanager
def failing(run: Program, call: str, error: str, when: str) -> Iterator[None]:
    """Lets calls of a running program fail, and waits until that begins."""
    fault = f"inject={call}:error={error}:when={WHEN[when]}"
    command = ["strace", "-f", "-o", os.devnull, "-p", str(run.pid), "-e", f"trace={call}", "-e", fault]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr
        assert b"attached" in tracer.stderr.readline()
        try:
            yield
        finally:
            tracer.terminate()
            tracer.communicate()


def check_lines(run: Program, ids: list[int], call: str = "") -> None:
    """Each line is whole and comes once; where the run did not end early, none is missing."""
    printed = Counter([row["id"] for row in run.rows] + [error["input"]["id"] for error in run.errors])
    assert run.stdout.endswith(b"\n") or not run.stdout
    assert max(printed.values(), default=1) == 1
    if call == "epoll_ctl" and run.status == -signal.SIGABRT:
        return  # libuv ends the process there (uv__io_poll): as a kill does, it costs what was in flight
    assert run.status in (0, 1, 3)
    if run.status == 3:
        assert run.said and "the first unfinished line is" in run.said[-1]
    else:
        assert sorted(printed) == ids
    assert run.status != 0 or not run.errors


@pytest.mark.parametrize("cases", drawn(), ids=lambda cases: f"{cases[0][0]} {cases[0][1]} …")
def test_a_call_that_fails_costs_no_line_and_no_answer(
    cases: list[tuple[str, str, str]], program: Programs, server: Server
) -> None:
    ids = list(range(ROWS))
    ask = [*ASK, "-j", str(JOBS), "-r", "3"]
    for call, error, when in cases:
        shutil.rmtree(program.cache, ignore_errors=True)
        run = program.start(*ask)
        run.write(rows([0])).read_lines(1)  # all that it needs is loaded and open
        with failing(run, call, error, when):
            run.finish(rows(ids[1:]))
        named = f"{call} {error} {when}: {run}"
        assert b"Traceback" not in run.stderr and b"a bug in" not in run.stderr, named
        check_lines(run, ids, call)
        printed = {row["id"] for row in run.rows}
        before = len(server.requests)
        again = program.run(*ask, input=rows(ids))
        assert (again.status, sorted(row["id"] for row in again.rows)) == (0, ids), named
        if not any("cache" in said for said in run.said):
            assert printed.isdisjoint(map(int, server.prompts[before:])), named


@pytest.mark.parametrize("error", ["EIO", "EINTR", "EAGAIN", "EISDIR"])
@pytest.mark.parametrize("when", WHEN.values(), ids=list(WHEN))
def test_an_input_that_cannot_be_read_any_more_ends_the_run(
    error: str, when: str, program: Programs, server: Server
) -> None:
    ids = list(range(ROWS))
    program.write("in.jsonl", rows(ids))
    fault = ["-e", "trace=read", "-e", f"inject=read:error={error}:when={when}"]
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-P", "in.jsonl", *fault, *program.command]
    with (program.folder / "in.jsonl").open("rb") as stdin:
        run = program.start(*ASK, stdin=stdin.fileno(), command=command).finish()
    assert b"Traceback" not in run.stderr and b"a bug in" not in run.stderr
    if run.status == 3:
        assert "stdin can't be read" in run.said[-1]
    check_lines(run, ids)


@pytest.mark.parametrize("call", OPENING)
def test_a_cache_that_cannot_be_opened_is_refused_and_opens_later(call: str, program: Programs, server: Server) -> None:
    ids = list(range(ROWS))
    cache = str(program.cache)
    paths = [part for name in (cache, f"{cache}/data.mdb", f"{cache}/lock.mdb") for part in ("-P", name)]
    for error in OPENING[call]:
        for when in WHEN.values() if ALL else ["1"]:
            shutil.rmtree(cache, ignore_errors=True)
            fault = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"]
            command = ["strace", "-f", "-qq", "-o", os.devnull, *paths, *fault, *program.command]
            run = program.run(*ASK, "-j", str(JOBS), input=rows(ids), command=command)
            named = f"{call} {error} {when}: {run}"
            assert b"Traceback" not in run.stderr and b"a bug in" not in run.stderr, named
            if run.status == 2:
                assert len(run.said) == 1 and cache in run.said[0] and not run.lines, named
            else:
                check_lines(run, ids)
            again = program.run(*ASK, "-j", str(JOBS), input=rows(ids))
            assert (again.status, sorted(row["id"] for row in again.rows)) == (0, ids), f"{named}\n{again}"
