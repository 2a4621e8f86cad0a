"""One request and its answer: what was sent is counted, what isn't sent is abandoned, what has come is read."""

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
from program import ASK, Program, Programs, rows
from server import Reply, Request, Server, completion, echo

pytestmark = pytest.mark.each_way
GOOD = completion({"answer": 1})
LATE_S = 0.7  # longer than a connection that was closed before takes to break


def requests_of(program: Programs) -> int:
    """The requests that a run with `--stats stats.json` has counted."""
    count = json.loads((program.folder / "stats.json").read_text())["requests"]
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("reply", [None, b""], ids=["reset", "closed"])
def test_a_kept_connection_that_breaks_late_is_a_failure(reply: Reply, server: Server, program: Programs) -> None:
    """The server has thought about it: it is not sent again in the same attempt."""

    async def answer(request: Request) -> Reply:
        if request.prompt == "first":
            return GOOD
        await asyncio.sleep(LATE_S)
        return reply

    server.answer = answer
    run = program.run(*ASK, "-j", "1", "-r", "0", "--stats", "stats.json", input=rows(["first", 1]))
    assert [(line["error"], line["attempts"]) for line in run.errors] == [("network", 1)]
    assert len(server.requests) == 2 == requests_of(program)


def test_a_second_sending_waits_for_its_turn(server: Server, program: Programs) -> None:
    came: list[float] = []

    def answer(request: Request) -> Reply:
        came.append(time.monotonic())
        return None if len(came) % 2 == 0 else GOOD  # each connection breaks at its second request

    server.answer = answer
    run = program.run(*ASK, "-j", "1", "--rpm", "300", input=rows(range(4)))
    assert (run.status, len(run.lines)) == (0, 4)
    assert len(came) == 7 and came[-1] - came[0] >= 6 * 0.2 - 0.1


async def only_a_head(status: int) -> AsyncIterator[bytes]:
    yield f"HTTP/1.1 {status} No\r\nContent-Length: 100\r\n\r\n".encode()
    await asyncio.Event().wait()


def test_a_status_that_ends_the_run_ends_it_without_its_body(server: Server, program: Programs) -> None:
    server.answer = lambda request: only_a_head(401)
    run = program.run(*ASK, input=rows([1]))
    assert (run.status, run.errors) == (3, [])
    assert len(run.said) == 1 and "HTTP 401" in run.said[0] and "$OPENAI_API_KEY" in run.said[0]


def test_an_error_is_told_without_its_body(server: Server, program: Programs) -> None:
    """As far as it comes within ten seconds, or --timeout."""
    server.answer = lambda request: GOOD if request.prompt == "first" else only_a_head(400)
    run = program.run(*ASK, "--timeout", "1", "-j", "1", input=rows(["first", 1]))
    assert [(line["error"], line["status"]) for line in run.errors] == [("http", 400)]


@pytest.mark.parametrize("stop", [signal.SIGSTOP, signal.SIGTSTP])
def test_what_came_while_the_program_was_halted_is_read(
    stop: signal.Signals, server: Server, program: Programs
) -> None:
    """For longer than --timeout: its timers are due before the sockets are looked at."""
    server.hold()
    run = program.start(*ASK, "-j", "8", "--timeout", "2", "-r", "0", "--stats", "stats.json")
    run.write(rows(range(8)))
    server.wait_for(8)
    run.signal(stop)
    server.release()
    server.wait_answered(8)
    time.sleep(2.5)  # this is about time
    run.signal(signal.SIGCONT)
    run.finish()
    assert (run.status, len(run.lines), run.errors) == (0, 8, [])
    assert requests_of(program) == 8


@contextmanager
def deaf_listener() -> Iterator[str]:
    """The URL of a server whose system does not answer who connects."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # fills its queue
            yield f"http://127.0.0.1:{port}/v1"


def test_what_is_not_sent_yet_is_abandoned_at_a_stop(program: Programs) -> None:
    with deaf_listener() as url:
        run = program.start(*ASK, "-u", url, "--stats", "stats.json")
        run.write(rows([1, 2]))
        run.wait_asleep()
        run.signal(signal.SIGINT)
        run.finish()
    assert run.status == -signal.SIGINT
    assert not any("paid for" in line for line in run.said)
    assert any("the first unfinished line is 1" in line for line in run.said)
    assert requests_of(program) == 0


# As where no name server answers.
SILENT = """\
import socket, sys, threading, llmfilter.cli
socket.getaddrinfo = lambda *_, **__: threading.Event().wait()
{way}sys.exit(llmfilter.cli.main())
"""
URL = "http://nowhere.test/v1"


def start_silent(program: Programs, *args: str) -> Program:
    """A run whose names are looked up for ever, the same way as the program's."""
    is_session = "session.py" in program.command
    way = "import llmfilter.server.direct as direct\ndirect.is_known = lambda: False\n" if is_session else ""
    command = [program.command[0], program.write("silent.py", SILENT.format(way=way))]
    env = {"OPENAI_API_KEY": "k"}
    return program.start(*ASK, "-u", URL, *args, "--stats", "stats.json", command=command, env=env)


def test_a_silent_resolver_is_waited_for_until_the_timeout(program: Programs) -> None:
    run = start_silent(program, "-r", "0", "--timeout", "0.5").finish(rows([1]))
    assert run.status == 1
    assert [(line["error"], line["attempts"]) for line in run.errors] == [("timeout", 1)]


def test_a_silent_resolver_does_not_hold_up_a_stop(program: Programs) -> None:
    run = start_silent(program)
    run.write(rows([1]))
    run.wait_asleep()
    run.signal(signal.SIGINT)
    run.finish()
    assert run.status == -signal.SIGINT
    assert not any("paid for" in line for line in run.said)
    assert requests_of(program) == 0


IMPATIENT = """\
import sys, llmfilter.cli, llmfilter.server.exchange
llmfilter.server.exchange.MODELS_S = 0.3
sys.exit(llmfilter.cli.main())
"""


def test_a_server_that_lists_no_models_is_not_waited_for(server: Server, program: Programs) -> None:
    server.hold()
    command = [program.command[0], program.write("impatient.py", IMPATIENT)]
    run = program.run(*ASK, command=command, env={"OPENAI_MODEL": None}, input=rows([1]))
    assert run.status == 2
    assert len(run.said) == 1 and "no answer within 0.3 s" in run.said[0] and "check -u" in run.said[0]


def test_a_tls_alert_has_its_own_words(program: Programs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(b"\x15\x03\x03\x00\x02\x02\x28")  # fatal: handshake_failure

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        run = program.run(*ASK, "-r", "0", "-u", url, input=rows([1]))
        thread.join()
    assert run.status == 3
    assert len(run.said) == 1 and "TLS: alert handshake failure" in run.said[0]
    assert "not permitted" not in run.said[0]


def test_head_and_body_may_come_apart(server: Server, program: Programs) -> None:
    async def apart(request: Request) -> AsyncIterator[bytes]:
        head, end, body = echo(request).encode().partition(b"\r\n\r\n")
        yield head + end
        await asyncio.sleep(0.01)
        yield body

    server.answer = apart
    run = program.run(*ASK, "-j", "2", input=rows(range(6)))
    assert run.status == 0 and sorted(row["id"] for row in run.rows) == list(range(6))
