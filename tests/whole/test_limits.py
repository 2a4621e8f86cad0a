"""Servers with limits, nginx and HAProxy among them: all rows are answered, and hardly a request is refused."""

import asyncio
import json
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from fronts import HAPROXY, NGINX, Front
from program import ASK, Program, Programs, rows
from server import Answer, Reply, Request, Server, echo, error

JOBS = 64
REFUSED_MOST = 0.12  # of the requests after the first burst; 0.05 is meant, but a run of seconds has few of them


def slowly(seconds: float) -> Answer:
    """Answers that take so long: without it no two requests would ever meet."""

    async def answer(request: Request) -> Reply:
        await asyncio.sleep(seconds)
        return echo(request)

    return answer


def check_all_answered(run: Program, count: int) -> None:
    assert run.status == 0 and run.stderr == b""
    assert sorted(row["id"] for row in run.rows) == list(range(count))


def check_through(front: Front, program: Programs, count: int, jobs: int = JOBS) -> None:
    """No row is lost, although none may be sent again for a fault; after the first burst few are refused."""
    with front:
        options = ("-u", front.url, "-j", str(jobs), "-r", "0", "--stats", "stats.json")
        run = program.run(*ASK, *options, input=rows(range(count)))
    check_all_answered(run, count)
    refused = json.loads((program.folder / "stats.json").read_text())["retries"]
    assert 0 < refused <= jobs + REFUSED_MOST * count


@pytest.mark.parametrize("status", [429, 503])
def test_nginx_limits_the_rate(status: int, server: Server, program: Programs, tmp_path: Path) -> None:
    server.answer = slowly(0.02)
    limits = f"limit_req zone=rate; limit_req_status {status};"
    check_through(Front("nginx", NGINX, tmp_path, server, limits=limits), program, 250)


@pytest.mark.parametrize("status", [429, 503])
def test_nginx_limits_the_number(status: int, server: Server, program: Programs, tmp_path: Path) -> None:
    server.answer = slowly(0.1)
    limits = f"limit_conn number 8; limit_conn_status {status};"
    check_through(Front("nginx", NGINX, tmp_path, server, limits=limits), program, 300)


def test_haproxy_limits_the_rate_and_counts_what_it_refused(server: Server, program: Programs, tmp_path: Path) -> None:
    server.answer = slowly(0.02)
    limits = "http-request deny deny_status 429 if { sc_http_req_rate(0) gt 50 }"
    check_through(Front("haproxy", HAPROXY, tmp_path, server, limits=limits, slots=""), program, 250)


def test_haproxy_has_a_short_queue(server: Server, program: Programs, tmp_path: Path) -> None:
    server.answer = slowly(0.1)
    front = Front("haproxy", HAPROXY, tmp_path, server, limits="", slots="maxconn 8")
    check_through(front, program, 500, jobs=128)


@pytest.mark.parametrize("most", [1, 2, 7])
def test_one_slot_more_than_the_server_takes_costs_no_row(server: Server, program: Programs, most: int) -> None:
    busy: set[Request] = set()

    async def answer(request: Request) -> Reply:
        if len(busy) >= most:
            return error(429, f"only {most} at a time")
        busy.add(request)
        await asyncio.sleep(0.05)
        busy.remove(request)
        return echo(request)

    server.answer = answer
    count = 100 * most
    run = program.run(*ASK, "-j", str(most + 1), "-r", "0", "--stats", "stats.json", input=rows(range(count)))
    check_all_answered(run, count)
    stats = json.loads((program.folder / "stats.json").read_text())
    assert 0 < stats["refusals"] <= REFUSED_MOST * count
    assert stats["limit"] == f"{most} at a time"


def test_a_server_that_is_gone_for_a_while_costs_no_row(server: Server, program: Programs, tmp_path: Path) -> None:
    server.answer = slowly(0.01)
    with Front("nginx", NGINX, tmp_path, server, limits="") as front:
        run = program.start(*ASK, "-u", front.url, "-j", "8")
        run.write(rows(range(500)))
        server.wait_for(100)
        front.stop()
        time.sleep(1)  # an outage lasts: connections are refused
        front.start()
        check_all_answered(run.finish(), 500)


OUTSPOKEN = """\
import sys, llmfilter.cli, llmfilter.server.client
llmfilter.server.client.SAID_AFTER_S = 0.1
sys.exit(llmfilter.cli.main())
"""


def test_who_waits_for_a_server_that_is_gone_is_told_so(server: Server, program: Programs, tmp_path: Path) -> None:
    server.answer = slowly(0.01)
    command = [sys.executable, program.write("outspoken.py", OUTSPOKEN)]
    with Front("nginx", NGINX, tmp_path, server, limits="") as front:
        run = program.start(*ASK, "-u", front.url, "-j", "8", command=command).write(rows(range(300)))
        server.wait_for(100)
        front.stop()
        run.read_said()
        front.start()
        run.finish()
    gone, back = run.said
    assert "the server does not answer (cannot connect to 127.0.0.1" in gone and "10 minutes at most" in gone
    assert "onnection refused): waiting for it" in gone and "Errno" not in gone
    assert back == "llmfilter: the server answers again"
    assert (run.status, len(run.lines)) == (0, 300)


def test_a_server_that_answers_500_to_all_for_a_while_is_probed_and_costs_no_row(
    server: Server, program: Programs
) -> None:
    failed, back_at = 0, 0.0

    def answer(request: Request) -> Reply:
        nonlocal failed, back_at
        now = time.monotonic()
        if len(server.requests) == 100:
            back_at = now + 2
        failed += now < back_at
        return error(500, "down") if now < back_at else echo(request)

    server.answer = answer
    check_all_answered(program.run(*ASK, "-j", "8", input=rows(range(500))), 500)
    assert failed <= 40  # some until it is noticed, and then one at a time


def test_a_row_that_alone_is_refused_is_given_up(server: Server, program: Programs) -> None:
    slow, hopeless = slowly(0.05), error(429, "Request too large", code="rate_limit_exceeded")
    server.answer = lambda request: hopeless if request.prompt == "0" else slow(request)
    run = program.run(*ASK, "-j", "4", "-r", "0", input=rows(range(200)))
    assert run.status == 1 and len(run.lines) == 199
    assert [(line["error"], line["status"], line["input"]["id"]) for line in run.errors] == [("http", 429, 0)]
    assert "Request too large" in run.errors[0]["message"] and run.said == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_rpm_is_never_exceeded(share: float, server: Server, program: Programs) -> None:
    rng, came = random.Random(3), []

    def answer(request: Request) -> Reply:
        came.append(time.monotonic())
        return error(429, "slow down") if rng.random() < share else echo(request)

    server.answer = answer
    check_all_answered(program.run(*ASK, "--rpm", "1200", input=rows(range(40))), 40)
    assert all(later - at > 0.9 for at, later in zip(came, came[20:], strict=False))


def test_a_signal_shows_the_limit_that_was_found(server: Server, program: Programs) -> None:
    busy = 0

    async def answer(request: Request) -> Reply:
        nonlocal busy
        if busy == 8:
            return error(429, "no room now")
        busy += 1
        await asyncio.sleep(0.02)
        busy -= 1
        return echo(request)

    server.answer = answer
    run = program.start(*ASK, "-j", str(JOBS))
    run.write(rows(range(500)))
    server.wait_answered(JOBS + 50)
    run.signal(signal.SIGUSR1)
    run.read_said()
    assert re.search(r"limit ([89]|10) at a time", run.said[0])  # it may just try one more
    run.finish()
    assert run.status == 0 and len(run.lines) == 500
