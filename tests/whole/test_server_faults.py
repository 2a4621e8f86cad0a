"""The server at its worst: whatever it does, each row ends in one line that says what happened."""

import asyncio
import gzip
import json
import random
import socket
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from program import ASK, COMMAND, Programs, rows
from server import Reply, Request, Response, Server, completion, echo, error

from llmfilter.server.exchange import BODY_BYTES_MAX, ERROR_BYTES_MAX

pytestmark = pytest.mark.each_way
GOOD = completion({"answer": 1})
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def endless() -> AsyncIterator[bytes]:
    yield HEAD + b"\r\n"
    for _ in range(BODY_BYTES_MAX // (1 << 20) + 2):
        yield b" " * (1 << 20)


async def trickle() -> AsyncIterator[bytes]:
    yield HEAD + b"Content-Length: 1000\r\n\r\n"
    while True:  # until the client has had enough
        yield b" "
        await asyncio.sleep(0.05)


def packed(body: bytes, encoding: str = "gzip") -> Response:
    return Response(body, headers={"Content-Type": "application/json", "Content-Encoding": encoding})


# What is answered, the kind of the error line, a part of its message, and whether it was tried again.
FAULTS: dict[str, tuple[Reply, str, str, bool]] = {
    "reset before the head": (None, "network", "connection broke", True),
    "closed without an answer": (b"", "network", "without an answer", True),
    "reset within the head": (b"HTTP/1.1 200 OK\r\nContent-Le", "network", "", True),
    "cut body": (HEAD + b"Content-Length: 1000\r\n\r\n{", "network", "connection broke", True),
    "cut chunked body": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", "network", "connection broke", True),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "network", "not valid HTTP", True),
    "length and chunks": (
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        "network",
        "Transfer-Encoding can't be present with Content-Length",
        True,
    ),
    "head without end": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "network", "", True),
    "invalid UTF-8": (Response(b'{"choices": "\xff"}'), "server", "not JSON", True),
    "empty body": (Response(b""), "server", "not JSON", True),
    "HTML with 200": (Response(b"<html>busy</html>"), "server", "not JSON", True),
    "HTML with 502": (Response(b"<title>Bad Gateway</title>", 502), "http", "HTTP 502: Bad Gateway", True),
    "bomb": (packed(gzip.compress(b" " * (BODY_BYTES_MAX + 1))), "server", "larger than 16 MiB", False),
    "not what its encoding says": (packed(b"{}"), "server", "compressed (gzip)", True),
    "unknown encoding": (packed(b"\x1b[31m", "br"), "server", "compressed (br)", True),
    "redirect": (
        Response(b"", 307, {"Location": "http://elsewhere/"}),
        "http",
        "redirected to http://elsewhere/",
        False,
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", "http", "HTTP 204", False),
    "told not to retry": (error(500, "no", {"x-should-retry": "false"}), "http", "HTTP 500: no", False),
    "told to retry": (error(400, "again", {"x-should-retry": "true"}), "http", "HTTP 400: again", True),
    "escape codes": (error(400, "\x1b[31mred\x9b"), "http", "HTTP 400: [31mred", False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_server_becomes_an_error_line(name: str, server: Server, program: Programs) -> None:
    reply, kind, message, is_retried = FAULTS[name]
    server.answer = lambda request: GOOD if request.prompt == "first" else reply
    run = program.start(*ASK, "-r", "1")
    run.write(rows(["first"]), lambda: len(run.lines) == 1)  # from here on it is known not to refuse everything
    run.finish(rows([1]))
    [line] = run.errors
    is_stale = reply is None or reply == b""  # as a kept connection that was closed meanwhile: sent again, and counted
    assert run.status == 1
    assert (line["line"], line["error"]) == (2, kind)
    assert message in line["message"]
    assert line["attempts"] == (2 if is_retried else 1) + is_stale == len(server.requests) - 1
    assert run.said == [] and b"Traceback" not in run.stderr and b"\x1b" not in run.stderr and b"\x9b" not in run.stderr


@pytest.mark.parametrize("status", ["200 OK", "500 Oh"])
def test_a_body_that_breaks_behind_its_head_is_a_failure_at_once(
    status: str, server: Server, program: Programs
) -> None:
    async def broken(request: Request) -> AsyncIterator[bytes]:
        yield f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        await asyncio.sleep(0.01)  # so that the head is read alone
        yield b"<html>\r\n"

    server.answer = lambda request: GOOD if request.prompt == "good" else broken(request)
    run = program.run(*ASK, "-j", "1", "-r", "1", input=rows(["good", 1, "good", 2]))
    assert (run.status, len(run.rows)) == (1, 2)
    assert [line["attempts"] for line in run.errors] == [2, 2]
    assert all(("broke" if status == "200 OK" else "HTTP 500") in line["message"] for line in run.errors)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_answer_that_is_compressed_though_not_asked_for_is_read(
    encoding: str, server: Server, program: Programs
) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    server.answer = lambda request: packed(pack(GOOD.body), encoding)
    assert program.run(*ASK, input=rows([1])).lines == [b'{"id":1,"answer":1}']


def test_a_wrong_content_type_does_not_matter(server: Server, program: Programs) -> None:
    server.answer = lambda request: Response(GOOD.body, headers={"Content-Type": "text/html; charset=latin-1"})
    assert program.run(*ASK, input=rows([1])).lines == [b'{"id":1,"answer":1}']


def test_an_answer_with_a_key_twice_is_printed_with_the_last_one_live_and_replayed(
    server: Server, program: Programs
) -> None:
    server.answer = lambda request: completion('{"label":"ham","n":1,"label":"spam"}')
    for _ in range(2):
        assert program.run(*ASK, input=rows([1])).lines == [b'{"id":1,"label":"spam","n":1}']
    assert len(server.requests) == 1


def test_an_endless_body_is_bounded(server: Server, program: Programs) -> None:
    server.answer = lambda request: GOOD if request.prompt == "first" else endless()
    run = program.run(*ASK, "-j", "1", input=rows(["first", 1]))
    assert [(line["error"], line["attempts"]) for line in run.errors] == [("server", 1)]
    assert "larger than" in run.errors[0]["message"]


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("is_packed", [False, True])
def test_an_error_is_judged_by_its_status_however_large_it_is(
    status: int, is_packed: bool, server: Server, program: Programs
) -> None:
    body = b'{"error": {"message": "no \\ud800"}}' + b" " * (BODY_BYTES_MAX + 1)
    head = f"HTTP/1.1 {status} No\r\nContent-Encoding: {'gzip' if is_packed else 'identity'}\r\n\r\n".encode()
    reply = head + (gzip.compress(body) if is_packed else body)
    server.answer = lambda request: GOOD if request.prompt == "first" else reply
    run = program.run(*ASK, "-r", "1", "-j", "1", input=rows(["first", 1]))
    [line] = run.errors
    assert (line["error"], line["status"], line["attempts"]) == ("http", status, 1 if status == 400 else 2)
    assert line["message"].startswith(f"HTTP {status}: ") and len(line["message"]) <= 220
    assert len(run.stderr) < 10_000


def test_what_a_packed_error_says_is_told_however_large_it_is(server: Server, program: Programs) -> None:
    body = gzip.compress(b'{"error": {"message": "no"}, "more": "%b"}' % random.randbytes(100_000).hex().encode())
    assert len(body) > ERROR_BYTES_MAX
    head = f"HTTP/1.1 400 No\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    server.answer = lambda request: GOOD if request.prompt == "first" else head + body
    run = program.run(*ASK, "-j", "1", input=rows(["first", 1]))
    [line] = run.errors
    assert line["message"].startswith('HTTP 400: {"error": {"message": "no"}')  # its end is not read


@pytest.mark.parametrize("status", [200, 400, 429, 500, 503])
def test_a_lone_surrogate_in_an_error_costs_its_row_at_most(status: int, server: Server, program: Programs) -> None:
    replies = [Response(b'{"error":{"message":"bad \\ud800"}}', status)] * 2
    server.answer = lambda request: replies.pop() if request.prompt == "7" and replies else echo(request)
    run = program.run(*ASK, "-r", "1", input=rows(range(40)))
    assert len(run.lines) + len(run.errors) == 40 and run.said == []
    assert [line["message"][-5:] for line in run.errors] == ([] if status in {429, 503} else ["bad \ufffd"])


def test_a_trickling_body_is_bounded_in_time(server: Server, program: Programs) -> None:
    server.answer = lambda request: GOOD if request.prompt == "first" else trickle()
    run = program.run(*ASK, "-r", "1", "-j", "1", "--timeout", "0.3", input=rows(["first", 1]))
    assert [(line["error"], line["attempts"]) for line in run.errors] == [("timeout", 2)]


def test_a_kept_alive_connection_that_died_costs_no_row(server: Server, program: Programs) -> None:
    server.answer = lambda request: echo(request).encode()  # closed behind each answer, without a word
    run = program.run(*ASK, "-j", "2", "-r", "0", input=rows(range(20)))
    assert run.status == 0 and len(run.lines) == 20


@pytest.mark.parametrize("reply", [None, b""], ids=["reset", "closed"])
def test_a_kept_alive_connection_that_breaks_is_no_failure(reply: Reply, server: Server, program: Programs) -> None:
    """Sent again at once, on a connection of its own, and once only; both sendings are counted."""
    # The second request breaks, the third is the same on a connection of its own, …
    server.answer = lambda request: reply if len(server.requests) % 3 == 2 else GOOD
    run = program.run(*ASK, "-j", "1", "-r", "0", "--stats", "stats.json", input=rows(range(5)))
    assert run.status == 0 and len(run.lines) == 5
    stats = json.loads((program.folder / "stats.json").read_text())
    assert (stats["requests"], stats["retries"]) == (7, 2) == (len(server.requests), 2)


def test_a_break_within_the_head_is_no_closed_connection(server: Server, program: Programs) -> None:
    server.answer = lambda request: GOOD if len(server.requests) == 1 else b"H"
    run = program.run(*ASK, "-j", "1", "-r", "0", input=rows([1, 2]))
    assert [(line["error"], line["attempts"]) for line in run.errors] == [("network", 1)]
    assert len(server.requests) == 2


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b""], ids=["greets", "closes"])
def test_a_server_that_does_not_wait_for_a_request_is_told(greeting: bytes, program: Programs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            for _ in range(2):
                with listener.accept()[0] as connection:
                    connection.sendall(greeting)

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        run = program.run(*ASK, "-r", "0", "-u", url, input=rows([1, 2]))
        thread.join()
    assert run.status == 3
    assert len(run.said) == 1 and "can't be reached" in run.said[0]


def test_a_name_that_does_not_exist_ends_the_run(program: Programs) -> None:
    run = program.run(*ASK, "-r", "0", "-u", "http://nowhere.invalid/v1", input=rows([1]), env={"OPENAI_API_KEY": "k"})
    assert run.status == 3
    assert len(run.said) == 1 and "cannot connect to nowhere.invalid:80" in run.said[0]


def test_a_server_without_tls_ends_the_run(program: Programs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_in_plain() -> None:
            connection = listener.accept()[0]
            connection.recv(1)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer_in_plain)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        run = program.run(*ASK, "-r", "0", "-u", url, input=rows([1]))
        thread.join()
    assert run.status == 3
    assert len(run.said) == 1 and "can't be reached" in run.said[0] and "the first unfinished line is 1" in run.said[0]


def test_a_storm_of_faults_costs_no_row(server: Server, program: Programs) -> None:
    """20 % of the answers fail, in every way: each row ends in one line, after all its attempts."""
    rng = random.Random(4)
    replies = [reply for name, (reply, *_, is_retried) in FAULTS.items() if is_retried and name != "bomb"]
    replies += [error(429, "slow down", {"Retry-After": "0"}), error(503, "loading", type="unavailable_error")]
    sent: Counter[str] = Counter()

    def answer(request: Request) -> Reply:
        sent[request.prompt] += 1
        return rng.choice(replies) if rng.random() < 0.2 else echo(request)

    server.answer = answer
    count, retries = 5000, 2
    run = program.run(*ASK, "-j", "256", "-r", str(retries), "--stats", "stats.json", input=rows(range(count)))
    ended = [row["id"] for row in run.rows] + [line["input"]["id"] for line in run.errors]
    assert sorted(ended) == list(range(count))
    assert run.said == [] and run.errors
    for line in run.errors:
        # Waiting out a limit uses no attempt up.
        assert retries < line["attempts"] == sent[str(line["input"]["id"])], line
    stats = json.loads((program.folder / "stats.json").read_text())
    assert stats["rows"] == count == stats["answered"] + stats["failed"] and stats["unfinished"] == 0
    assert stats["failed"] == len(run.errors) == sum(stats["by_kind"].values())
    assert stats["by_kind"] == dict(Counter(line["error"] for line in run.errors))
    assert stats["requests"] == count + stats["retries"]
    # None gets lost on its way: this server closes no connection that may be kept for another request.
    assert stats["requests"] == len(server.requests)


class Twice(Response):
    """An answer and, unasked, another one."""

    def encode(self) -> bytes:
        return super().encode() + completion({"answer": "nobody's"}).encode()


def test_an_answer_that_nobody_asked_for_goes_into_no_record(server: Server, program: Programs) -> None:
    server.answer = lambda request: Twice(echo(request).body)
    run = program.run(*ASK, "-j", "1", input=rows(range(5)))
    assert run.rows == [{"id": each, "echo": str(each)} for each in range(5)]


def test_many_rows_that_share_answers_all_come_out_behind_a_stalled_reader(server: Server, program: Programs) -> None:
    server.answer = lambda request: completion({"pad": "x" * 2000})
    server.hold()
    run = program.start(*ASK, "-j", "1000")
    run.write(rows([each for each in range(900) for _ in range(2)]))
    server.wait_for(900)
    server.release()
    server.wait_answered(900)
    run.wait_asleep(server.thread_id)  # nobody has read a line
    run.finish()
    assert run.status == 0 and sorted(row["id"] for row in run.rows) == sorted([*range(900)] * 2)


def test_with_k_large_answers_that_rows_share_all_come_out(server: Server, program: Programs) -> None:
    server.answer = lambda request: completion({"pad": "x" * 300_000})
    server.hold(lambda request: request.prompt == "0")
    run = program.start(*ASK, "-k")
    run.write(rows([0, *[1, 2] * 8]))
    server.wait_for(3)
    server.wait_answered(2)
    run.wait_asleep(server.thread_id)  # more lines wait behind the first than there is room for
    server.release()
    run.finish()
    assert run.status == 0 and [row["id"] for row in run.rows] == [0, *[1, 2] * 8]


def test_large_requests_that_the_server_does_not_read_leave_no_memory_behind(program: Programs) -> None:
    if program.command != COMMAND:
        pytest.skip("aiohttp's session closes a connection only when everything is sent")
    count, size = 20, 4 << 20
    program.write("pad.md", "{pad}")
    with socket.create_server(("127.0.0.1", 0), backlog=count) as listener:  # nobody accepts, let alone reads
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        run = program.start("-p", "pad.md", "-j", "1", "-r", "0", "--timeout", "0.1", "-u", url)
        for each in range(count):
            line = b'{"pad":"%d%b"}\n' % (each, b"x" * size)
            run.write(line, lambda: run.stderr.endswith(b"\n")).forget()
        memory_kb = run.memory_kb()
        run.finish()
    assert run.status == 1
    assert memory_kb < count * size // 1000
