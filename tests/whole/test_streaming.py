"""Answers that come piece by piece, asked for (`--stream`) or not."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from program import ASK, Programs, rows
from server import Reply, Request, Response, Server, completion, error
from streams import BROKEN, NO_CREDIT, STREAMS, A, chunk, events

from llmfilter.api.completion import parse_completion

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
EACH_WAY = [pytest.param("quick", id="directly"), pytest.param("session", id="session")]
AS_TEXT = ("--text", "--response", "whole", "-r", "0", "--reask", "0")


async def in_pieces(pieces: Sequence[bytes], is_whole: bool = True) -> AsyncIterator[bytes]:
    """An answer in chunks, each read apart from the others; without its last chunk it is broken off."""
    yield CHUNKED
    for piece in pieces:
        await asyncio.sleep(0.001)
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    if is_whole:
        yield b"0\r\n\r\n"


def as_usual(chunks: Sequence[Any]) -> Response:
    return Response(events(*chunks), headers={"Content-Type": "text/event-stream; charset=utf-8"})


def said(text: str) -> list[Any]:
    return [chunk(content=text[:3]), chunk("stop", content=text[3:])]


@pytest.mark.parametrize("stream", [["--stream"], []], ids=["asked for", "unasked"])
@pytest.mark.parametrize("is_at_once", [True, False])
def test_a_stream_is_the_completion_that_would_have_come_whole(
    stream: list[str], is_at_once: bool, server: Server, program: Programs
) -> None:
    server.answer = lambda request: (
        HEAD + b"\r\n" + STREAMS[request.prompt][0] if is_at_once else in_pieces([STREAMS[request.prompt][0]])
    )
    run = program.run(*ASK, *AS_TEXT, *stream, input=rows(list(STREAMS)))
    answers = {row["id"]: row["whole"] for row in run.rows}
    for name, (_, whole) in STREAMS.items():
        if parse_completion(json.dumps(whole).encode()).fault is None:
            assert answers.pop(name) == whole
    assert not answers
    assert {each["error"] for each in run.errors} == {"refused", "unparsable"}
    replay = program.run(*ASK, *AS_TEXT, input=rows(list(STREAMS)))
    assert sorted(replay.lines) == sorted(run.lines)


@pytest.mark.parametrize("stream", [["--stream"], []], ids=["asked for", "unasked"])
@pytest.mark.parametrize("name", ["CRLF", "Mistral's parts", "log-probabilities"])
def test_a_stream_may_be_cut_anywhere(stream: list[str], name: str, server: Server, program: Programs) -> None:
    body, whole = STREAMS[name]
    server.answer = lambda request: in_pieces([body[: int(request.prompt)], body[int(request.prompt) :]])
    run = program.run(*ASK, *AS_TEXT, *stream, input=rows(range(len(body))))
    assert [row["whole"] for row in run.rows] == [whole] * len(body)


@pytest.mark.parametrize("program", EACH_WAY, indirect=True)
def test_a_stream_that_is_not_whole_is_no_answer(server: Server, program: Programs) -> None:
    server.answer = lambda request: in_pieces([BROKEN[request.prompt][0]])
    run = program.run(*ASK, "--text", "--stream", "-r", "0", input=rows(list(BROKEN)))
    assert run.rows == []
    assert {each["input"]["id"]: (each["error"], each["message"], each.get("raw")) for each in run.errors} == {
        name: ("server", message, text) for name, (_, message, text) in BROKEN.items()
    }


@pytest.mark.parametrize("stream", [["--stream"], []], ids=["asked for", "unasked"])
@pytest.mark.parametrize("program", EACH_WAY, indirect=True)
def test_what_broke_off_is_sent_again(stream: list[str], server: Server, program: Programs) -> None:
    pieces = [events(each, end="") for each in said('{"a":1}')]
    answers = iter([in_pieces(pieces[:1], is_whole=False), in_pieces([pieces[0], pieces[1][:20]]), in_pieces(pieces)])
    server.answer = lambda request: next(answers)
    run = program.run(*ASK, *stream, input=rows([5]))
    assert (run.rows, len(server.requests)) == ([{"id": 5, "a": 1}], 3)


@pytest.mark.parametrize("program", EACH_WAY, indirect=True)
def test_what_had_come_of_a_text_is_not_lost(server: Server, program: Programs) -> None:
    server.answer = lambda request: in_pieces([events(chunk(content="so far"), end="")], is_whole=False)
    (told,) = program.run(*ASK, "--text", "--stream", "-r", "0", input=rows([5])).errors
    assert (told["error"], told["raw"]) == ("network", "so far")

    async def hang(request: Request) -> AsyncIterator[bytes]:
        async for piece in in_pieces([events(chunk(content="so far"), end="")], is_whole=False):
            yield piece
        await asyncio.Event().wait()

    server.answer = hang
    (told,) = program.run(*ASK, "--text", "--stream", "-r", "0", "--timeout", "0.3", input=rows([5])).errors
    assert (told["error"], told["raw"]) == ("timeout", "so far")


@pytest.mark.parametrize("program", EACH_WAY, indirect=True)
def test_what_breaks_behind_the_end_of_an_answer_is_no_loss(server: Server, program: Programs) -> None:
    server.answer = lambda request: in_pieces([events(*said('{"a":1}'), end="")], is_whole=False)
    run = program.run(*ASK, "--stream", input=rows([5]))
    assert (run.rows, len(server.requests)) == ([{"id": 5, "a": 1}], 1)


def test_a_server_that_does_not_close_a_stream_is_not_waited_for(server: Server, program: Programs) -> None:
    async def hang(request: Request) -> AsyncIterator[bytes]:
        async for piece in in_pieces([events(*said('{"a":1}'))], is_whole=False):
            yield piece
        await asyncio.Event().wait()

    server.answer = hang
    run = program.run(*ASK, "--stream", input=rows([5]))
    assert run.rows == [{"id": 5, "a": 1}]


def test_no_credit_ends_the_run_also_within_a_stream(server: Server, program: Programs) -> None:
    server.answer = lambda request: as_usual([A, NO_CREDIT])
    run = program.run(*ASK, "--stream", input=rows([5]))
    assert run.status == 3
    assert "no credit" in run.said[-1]


def test_a_stream_is_a_way_of_carrying(server: Server, program: Programs) -> None:
    server.answer = lambda request: as_usual(said('{"a":1}')) if "stream" in request.json else completion({"b": 2})
    assert program.run(*ASK, "--stream", input=rows([1])).rows == [{"id": 1, "a": 1}]
    assert program.run(*ASK, input=rows([1, 2])).rows == [{"id": 1, "a": 1}, {"id": 2, "b": 2}]
    assert program.run(*ASK, "--stream", "-k", input=rows([1, 2])).rows == [{"id": 1, "a": 1}, {"id": 2, "b": 2}]
    streamed, whole = (request.json for request in server.requests)
    assert [streamed.pop("stream"), streamed.pop("stream_options")] == [True, {"include_usage": True}]
    assert streamed | {"messages": whole["messages"]} == whole


def test_an_answer_that_is_no_stream_is_taken_as_it_is(server: Server, program: Programs) -> None:
    body = completion({"a": 1}).body
    replies: dict[str, Reply] = {
        "1": Response(body),
        "2": Response(body, headers={"Content-Type": "text/event-stream"}),
        "3": in_pieces([b"\n", body[:5], body[5:]]),
    }
    server.answer = lambda request: replies[request.prompt]
    run = program.run(*ASK, "--stream", input=rows([1, 2, 3]))
    assert run.status == 0 and [row["a"] for row in run.rows] == [1, 1, 1]


@pytest.mark.parametrize(
    "refusal",
    [
        Response(b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra"}]}', 422),
        error(400, "Unknown parameter: 'stream_options'.", param="stream_options"),
    ],
    ids=["Mistral", "Azure"],
)
def test_who_does_not_tell_the_tokens_is_asked_for_them_once(
    refusal: Response, server: Server, program: Programs
) -> None:
    server.answer = lambda request: refusal if "stream_options" in request.json else as_usual(said('{"a":1}'))
    run = program.run(*ASK, "--stream", "-r", "0", input=rows(range(50)))
    assert (run.status, len(run.rows), len(server.requests)) == (0, 50, 51)
    assert ["stream_options" in request.json for request in server.requests] == [True] + [False] * 50


def test_all_others_do_not_wait_for_the_first_answer(server: Server, program: Programs) -> None:
    server.hold()
    server.answer = lambda request: as_usual(said('{"a":1}'))
    run = program.start(*ASK, "--stream").write(rows(range(8)))
    server.wait_for(8)
    server.release()
    run.finish()
    assert len(run.rows) == 8


def test_a_dry_run_shows_what_will_be_sent(server: Server, program: Programs) -> None:
    server.answer = lambda request: as_usual(said('{"a":1}'))
    shown = program.run(*ASK, "-n", "--stream", input=rows([5])).lines
    program.run(*ASK, "--stream", input=rows([5]))
    assert shown == [server.requests[0].body]
    for_batch = program.run(*ASK, "--to-batch", "--stream", input=rows([6])).rows
    assert "stream" not in for_batch[0]["body"]


def test_a_stream_is_not_both_wanted_and_unwanted(program: Programs) -> None:
    run = program.run(*ASK, "--stream", "-o", "stream=false", input=rows([5]))
    assert (run.status, run.said) == (2, ["llmfilter: --stream and -o stream=false: give one of them"])


def test_a_waiting_connection_is_kept_alive(server: Server, program: Programs) -> None:
    server.hold()
    run = program.start(*ASK).write(rows([5]))
    server.wait_for(1)
    # Of each connection: a number, its addresses, its state, what is on its way, the timer that runs (02: keep-alive).
    connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    (timer,) = [each[5] for each in connections if each[2].endswith(f":{server.port:04X}") and each[3] == "01"]
    server.release()
    run.finish()
    assert timer.startswith("02:") and int(timer[3:], 16) / os.sysconf("SC_CLK_TCK") <= 30
