"""Rows that are bad for ever hold up nobody: each ends as its line, and what was sent is counted."""

import asyncio
import json
import random
import socket
import threading
import time

import pytest
from program import ASK, Programs, rows
from server import PATIENCE_S, Reply, Request, Server, completion, echo, error

TOO_LARGE = error(429, "Request too large", code="rate_limit_exceeded")


def test_rows_refused_for_ever_are_given_up_also_after_the_others_are_done(server: Server, program: Programs) -> None:
    async def answer(request: Request) -> Reply:
        if request.prompt in {str(number) for number in range(9, 100, 10)}:
            return TOO_LARGE
        await asyncio.sleep(0.05)
        return echo(request)

    server.answer = answer
    run = program.run(*ASK, "-j", "8", input=rows(range(300)))
    assert run.status == 1 and len(run.lines) == 290 and run.said == []
    assert sorted(line["input"]["id"] for line in run.errors) == list(range(9, 100, 10))
    assert {(line["error"], line["status"]) for line in run.errors} == {("http", 429)}
    assert all(line["attempts"] <= 12 for line in run.errors)


DEAD = error(500, "the worker died")


@pytest.mark.parametrize(
    ("fault", "count", "most"),
    [(DEAD, 1, 3), (DEAD, 5, 3), (None, 5, 6)],  # what a used connection loses at once is sent once more
    ids=["500, alone", "500, the last", "reset, the last"],
)
def test_a_lone_row_that_fails_for_ever_has_its_line_after_its_attempts(
    fault: Reply, count: int, most: int, server: Server, program: Programs
) -> None:
    server.answer = lambda request: fault if request.prompt == str(count - 1) else echo(request)
    run = program.run(*ASK, "-r", "2", input=rows(range(count)))
    assert run.status == 1 and len(run.lines) == count - 1
    (line,) = run.errors
    assert 3 <= line["attempts"] <= most


def test_a_row_whose_refusals_say_that_it_may_come_again_at_once_is_not_sent_in_a_loop(
    server: Server, program: Programs
) -> None:
    hurried = error(429, "slow down", {"Retry-After": "0"})
    server.answer = lambda request: hurried if request.prompt == "3" else echo(request)
    run = program.run(*ASK, "-j", "2", input=rows(range(40)))
    assert run.status == 1 and run.errors[0]["attempts"] <= 12


def test_a_pause_that_one_row_was_given_holds_back_that_row_alone(server: Server, program: Programs) -> None:
    came: dict[str, list[float]] = {}

    def answer(request: Request) -> Reply:
        came.setdefault(request.prompt, []).append(time.monotonic())
        is_first = len(came[request.prompt]) == 1
        return error(429, "slow down", {"Retry-After": "2"}) if request.prompt == "5" and is_first else echo(request)

    server.answer = answer
    run = program.run(*ASK, "-j", "4", input=rows(range(200)))
    assert run.status == 0 and len(run.lines) == 200
    first, second = came.pop("5")
    assert second - first >= 2
    assert max(at for (at,) in came.values()) < second


SEEDS = [1, 2]


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_bad_about_some_rows_the_others_take_no_longer(
    seed: int, server: Server, program: Programs
) -> None:
    """Good rows take little longer than alone; each bad one ends as its line; what was sent is counted."""
    count, kinds = 400, ["refused", "failed", "reset", "hangs", "unusable"]
    rng = random.Random(seed)
    bad = dict(zip(rng.sample(range(count), 2 * len(kinds)), 2 * kinds, strict=True))
    good_at: list[float] = []

    async def answer(request: Request) -> Reply:
        kind = bad.get(int(request.prompt.split(" ")[0]) if request.prompt[:1].isdigit() else -1)
        if kind == "refused":
            return TOO_LARGE
        if kind == "failed":
            return error(500, "the worker died")
        if kind == "reset":
            return None
        if kind == "hangs":
            await asyncio.sleep(30)
        if kind == "unusable":
            return completion("no JSON")
        await asyncio.sleep(0.1)
        if kind is None:
            good_at.append(time.monotonic())
        return echo(request)

    server.answer = answer
    started = time.monotonic()
    options = ("-j", "16", "-r", "1", "--timeout", "2", "--reask", "0", "--stats", "stats.json")
    run = program.run(*ASK, *options, input=rows(range(count)))
    assert run.status == 1 and len(run.lines) == count - len(bad)
    assert sorted(line["input"]["id"] for line in run.errors) == sorted(bad)
    for line in run.errors:
        assert line["attempts"] <= 12, line
    # The hanging rows keep two of 16 slots for four seconds; 1.2 times as long as alone, and what starting takes.
    assert good_at[-1] - good_at[0] <= 1.2 * count * 0.1 / 14 + 1
    assert time.monotonic() - started < 60
    assert json.loads((program.folder / "stats.json").read_text())["requests"] == len(server.requests)


@pytest.mark.parametrize(("after", "said"), [("700", "asks to wait 700 s ("), ("9" * 23, "asks to wait 1e+23 s (")])
def test_a_wait_that_nobody_waits_for_ends_the_run_and_is_told(
    after: str, said: str, program: Programs, server: Server
) -> None:
    server.answer = lambda request: error(429, "later", {"Retry-After": after})
    run = program.run(*ASK, input=rows([1]))
    assert (run.status, run.rows, len(server.requests)) == (3, [], 1)
    assert said in run.said[0]


LARGE_BYTES = 12_000_000  # more than the system keeps for a reader that reads nothing


def serve_one(listener: socket.socket, is_over: threading.Event) -> None:
    """Answer a large request by its head alone, and read no more of it; others as usual."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as reader:
        while head := list(iter(reader.readline, b"\r\n")):
            (length,) = [int(each[15:]) for each in head if each.lower().startswith(b"content-length:")]
            is_large = length >= LARGE_BYTES
            body = b'{"error":{"message":"too large"}}' if is_large else completion({"a": 1}).body
            if not is_large:
                reader.read(length)
            status = b"413 Content Too Large" if is_large else b"200 OK"
            connection.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
            if is_large:
                is_over.wait(PATIENCE_S)
                return


def test_who_is_answered_before_it_is_sent_holds_up_nobody(program: Programs) -> None:
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(2):
            threading.Thread(target=serve_one, args=(listener, is_over), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        run = program.run(
            *ASK, "-u", url, "-j", "1", "-r", "0", "--timeout", "5", input=rows(["x" * LARGE_BYTES, 1, 2])
        )
        is_over.set()
    assert ([row["id"] for row in run.rows], [each["error"] for each in run.errors]) == ([1, 2], ["http"])
