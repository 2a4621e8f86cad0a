"""--response: the server's whole response in the line, the same from the cache as live."""

import json
from collections.abc import Sequence

import pytest
from program import ASK, Programs, rows
from server import Response, Server, completion

BODY = completion({"label": "spam"}, logprobs=None).body
KEEP = (*ASK, "-k", "--response", "raw")


def twice(program: Programs, server: Server, args: Sequence[str], input: bytes) -> list[bytes]:
    """The lines of a run, which are those of another one from the cache alone."""
    live = program.run(*args, input=input)
    asked = len(server.requests)
    again = program.run(*args, input=input)
    assert (again.lines, again.status, len(server.requests)) == (live.lines, live.status, asked)
    return live.lines


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        ((), b'"label":"spam"'),
        (("-f", "label"), b'"label":"spam"'),
        (("--as", "a"), b'"a":{"label":"spam"}'),
        (("--text",), b'"answer":"{\\"label\\":\\"spam\\"}"'),
    ],
)
def test_the_response_stands_behind_the_answer(
    program: Programs, server: Server, more: Sequence[str], answer: bytes
) -> None:
    server.answer = lambda request: Response(BODY)
    lines = twice(program, server, [*KEEP, *more], rows(range(3)))
    assert lines == [b'{"id":%d,%b,"raw":%b}' % (each, answer, BODY) for each in range(3)]


def test_a_response_of_several_lines_comes_out_as_one(program: Programs, server: Server) -> None:
    pretty = b"\n\n" + json.dumps(json.loads(BODY), indent=2).replace("\n", "\r\n").encode() + b"\n"
    server.answer = lambda request: Response(pretty)
    (line,) = twice(program, server, KEEP, rows([1]))
    assert json.loads(line)["raw"] == json.loads(BODY)


def test_numbers_of_the_response_keep_their_spelling(program: Programs, server: Server) -> None:
    body = BODY[:-1] + b', "x": [1.0, 1e400, 123456789012345678901234567890, "\\ud800\\u00e9"]}'
    server.answer = lambda request: Response(body)
    assert twice(program, server, KEEP, rows([1])) == [b'{"id":1,"label":"spam","raw":%b}' % body]


def test_the_key_replaces_that_of_the_record_and_that_of_the_answer(program: Programs, server: Server) -> None:
    server.answer = lambda request: Response(BODY)
    (line,) = twice(program, server, [*ASK, "--response", "old"], b'{"old":1,"id":2}')
    assert line == b'{"old":%b,"id":2,"label":"spam"}' % BODY
    (line,) = twice(program, server, [*ASK, "--response", "label"], b'{"id":2}')
    assert line == b'{"id":2,"label":%b}' % BODY


def test_what_was_paid_for_without_it_is_there_with_it(program: Programs, server: Server) -> None:
    server.answer = lambda request: Response(BODY)
    assert program.run(*ASK, input=rows([1])).lines == [b'{"id":1,"label":"spam"}']
    assert program.run(*KEEP, input=rows([1])).lines == [b'{"id":1,"label":"spam","raw":%b}' % BODY]
    assert len(server.requests) == 1


def test_each_of_several_equal_rows_has_it(program: Programs, server: Server) -> None:
    server.answer = lambda request: Response(BODY)
    assert twice(program, server, KEEP, rows([1, 1])) == [b'{"id":1,"label":"spam","raw":%b}' % BODY] * 2


def test_an_error_line_is_as_without_it(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion({"b": 1})
    runs = [program.run(*ASK, "--no-cache", "-f", "a", *more, input=rows([1])) for more in ((), ("--response", "raw"))]
    assert runs[0].stderr == runs[1].stderr != b""


def test_an_answer_s_own_key_of_that_name_is_said_and_counted(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion({"label": "a", "usage": "fair"})
    live = program.run(*ASK, "--response", "usage", "--stats", "stats.json", input=rows(range(3)))
    again = program.run(*ASK, "--response", "usage", input=rows(range(3)))
    for run in (live, again):
        (said,) = run.said
        assert "--response has replaced the answer's 'usage': give it another KEY" in said
    assert json.loads((program.folder / "stats.json").read_bytes())["replaced"] == 3
