"""Answers that take longer than somebody waits: the program, a proxy, or the server's own queue."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fronts import NGINX, Front
from program import ASK, Programs, rows
from server import Answer, Reply, Request, Server, completion
from streams import chunk, events

# What is a long wait here takes a hundredth of what it takes in life.
HASTY = """\
import sys, llmfilter.cli, llmfilter.errors, llmfilter.api.faults
llmfilter.errors.LATE_S = llmfilter.api.faults.LATE_S = 0.3
sys.exit(llmfilter.cli.main())
"""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
LIMIT_S = 1.0  # the shortest that nginx knows


@pytest.fixture
def hasty(program: Programs) -> Programs:
    """The program, for which 0.3 s is a long wait."""
    program.command = [sys.executable, program.write("hasty.py", HASTY)]
    return program


def think(seconds: float) -> Answer:
    """A model that thinks for so long, and writes a piece five times a second where it may."""

    async def stream() -> AsyncIterator[bytes]:
        yield HEAD
        for _ in range(int(5 * seconds)):
            await asyncio.sleep(0.2)
            yield events(chunk(reasoning="hm"), end="")
        yield events(chunk(content='{"a":1}'), chunk("stop"))

    async def answer(request: Request) -> Reply:
        if request.prompt == "quick":
            return completion({"a": 1})
        if request.json.get("stream"):
            return stream()
        await asyncio.sleep(seconds)
        return completion({"a": 1})

    return answer


def test_a_proxy_that_loses_patience_is_got_around_by_a_stream(server: Server, hasty: Programs, tmp_path: Path) -> None:
    server.answer = think(2 * LIMIT_S)
    with Front("nginx", NGINX, tmp_path, server, limits=f"proxy_read_timeout {LIMIT_S:.0f}s;") as front:
        options = (*ASK, "-u", front.url)
        run = hasty.run(*options, input=rows(["quick", 1, 2]))
        assert [(each["status"], each["attempts"]) for each in run.errors] == [(504, 2), (504, 2)]
        assert "after 1 s" in run.errors[0]["message"] and "--stream" in run.errors[0]["message"]
        sent = len(server.requests)
        again = hasty.run(*options, "--stream", input=rows(["quick", 1, 2]))
        assert (again.status, [row["a"] for row in again.rows]) == (0, [1, 1, 1])
        assert sorted(request.prompt for request in server.requests[sent:]) == ["1", "2"]


def test_a_long_wait_for_nothing_is_paid_twice(server: Server, hasty: Programs) -> None:
    async def drop(request: Request) -> Reply:
        if request.prompt == "quick":
            return completion({"a": 1})
        await asyncio.sleep(0.7)  # so late that the connection was not closed before
        return b""

    server.answer = drop
    run = hasty.run(*ASK, "-j", "2", input=rows(["quick", *range(4)]))
    assert [each["attempts"] for each in run.errors] == [2] * 4
    assert len(server.requests) == 1 + 2 * 4
    for each in run.errors:
        assert "without an answer, after 1 s" in each["message"] and "--stream" in each["message"]


def test_our_own_time_limit_is_told_with_the_way_out(server: Server, hasty: Programs) -> None:
    server.answer = lambda request: asyncio.Event().wait()  # type: ignore[assignment, return-value]
    (told,) = hasty.run(*ASK, "--timeout", "0.4", input=rows([1])).errors
    assert (told["error"], told["attempts"]) == ("timeout", 2)
    assert told["message"] == (
        "no answer within 0.4 s (--timeout): a longer --timeout, or -o max_tokens=N for a model that does not stop"
    )


def test_eight_rows_that_waited_for_nothing_end_the_run(server: Server, hasty: Programs) -> None:
    server.answer = lambda request: asyncio.Event().wait()  # type: ignore[assignment, return-value]
    run = hasty.run(*ASK, "-j", "4", "--timeout", "0.4", input=rows(range(100)))
    assert run.status == 3
    assert "the first 8 rows all ended at a time limit" in run.said[-1] and "--timeout" in run.said[-1]
    assert len(server.requests) <= 2 * (8 + 4)


def test_a_queue_that_is_too_long_for_the_time_limit_loses_no_row(server: Server, program: Programs) -> None:
    slots = asyncio.Semaphore(4)

    async def queue(request: Request) -> Reply:
        async with slots:
            await asyncio.sleep(0.1)
        return completion({"a": 1})

    server.answer = queue
    options = ("--timeout", "0.5", "-j", "64", "--stats", "stats.json")
    run = program.run(*ASK, *options, input=rows(range(200)))
    assert (run.status, len(run.rows), run.stderr) == (0, 200, b"")
    assert json.loads((program.folder / "stats.json").read_text())["requests"] <= 1.8 * 200
