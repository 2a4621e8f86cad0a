"""The promises, on the real program in real pipes."""

import json
import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program import ASK, Program, Programs, rows
from server import Reply, Request, Response, Server, completion, echo, error

MB = 1 << 20


def padded(ids: range, size: int) -> bytes:
    """Records with a field of so many bytes, which goes to stdout but not to the server."""
    return b"".join(b'{"id":%d,"pad":"%b"}\n' % (each, b"p" * size) for each in ids)


# Promise 1: nothing lost.


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(st.sampled_from(["id", "x", "echo"]) | st.text(), json_values, max_size=4).map(
    lambda record: json.dumps(record).encode()
)
edges = st.sampled_from(
    [
        *(b'{"id":%b}' % value for value in (b"1e400", b"-0", b"1.0", b"12345678901234567890123", b"9" * 5000)),
        *(b'{"id":%b}' % value for value in (b'"\\ud800"', b'"\\u0000"', b"NaN", b'"a\nb"', b'"\x1b[31m"', b'"\xff"')),
        *(b'{"id":1.5,"x":%b,"echo":0}' % (b"[" * depth + b"]" * depth) for depth in (200, 500, 960, 1020, 100_000)),
        *(b'{"id":%b}' % (b"[" * depth + b"1.5" + b"]" * depth) for depth in (200, 500, 960, 1020, 100_000)),
        *(b'{"id":1,"id":2}', b'{"id":1,"echo":1,"echo":2}', b'\t{ "id" : 1 }\r', b'{"id":1}{"id":2}', b'{"id":1,}'),
        *(b"[]", b'[{"id":1}]', b"null", b"7", b'"id"', b"{", b"}", b"\x00", b"\xef\xbb\xbf{}", b"\x0b", b"\r", b" "),
    ]
)
spoilt = st.tuples(records, st.integers(0, 30), st.integers(0, 2), st.binary(max_size=3)).map(
    lambda parts: parts[0][: parts[1]] + parts[3] + parts[0][parts[1] + parts[2] :]
)
lines = st.one_of(st.binary(), records, spoilt, edges).map(lambda line: line.replace(b"\n", b""))


def error_lines(run: Program) -> list[bytes]:
    """Without the plain line that says once that an answer has replaced a key."""
    return [line for line in run.stderr.split(b"\n")[:-1] if line.startswith(b"{")]


def test_every_line_of_any_bytes_ends_as_one_line_on_stdout_or_stderr_white_space_apart(program: Programs) -> None:
    runs: list[Program] = []
    line_number = 0

    @settings(max_examples=150, deadline=None)
    @given(st.lists(lines, max_size=20))
    def holds(batch: list[bytes]) -> None:
        nonlocal line_number
        if not runs:  # one program gets all examples; after a failure the next one gets a new one
            runs.append(program.start(*ASK, "-k", "--no-cache", "--reask", "0"))
            runs[0].write(b"\n")
            line_number = 1
        run, first = runs[0], line_number + 1
        line_number += len(batch)
        wanted = {first + at: line for at, line in enumerate(batch) if line.removeprefix(b"\xef\xbb\xbf").strip()}
        try:
            run.write(
                b"".join(line + b"\n" for line in batch),
                lambda: len(run.lines) + len(error_lines(run)) >= len(wanted),
            )
            for error in error_lines(run):
                assert wanted.pop(int(error.removeprefix(b'{"line":').partition(b",")[0]))
            for line, answer in zip(wanted.values(), run.lines, strict=True):
                assert b'"echo"' in line or answer.startswith(line.strip()[:-1])
        except BaseException:
            runs.pop().kill()
            raise
        run.forget()

    holds()
    runs[0].finish()
    assert not runs[0].stdout
    assert not runs[0].stderr


# Promise 2: nothing that passed is paid twice.


# SIGKILL at any moment: test_kill. Several processes on one cache: test_cache.


def test_after_many_cache_hits_no_more_than_j_are_in_flight(program: Programs, server: Server) -> None:
    hits, misses = range(200), range(200, 400)
    assert program.run(*ASK, input=rows(hits)).status == 0
    server.hold()
    run = program.start(*ASK, "-j", "2")
    run.write(rows([*hits, *misses])).read_lines(len(hits))
    server.wait_for(len(hits) + 2)
    run.wait_asleep(server.thread_id)
    assert len(server.requests) == len(hits) + 2
    server.release()
    run.finish()
    assert sorted(row["id"] for row in run.rows) == [*hits, *misses]


def test_what_passed_is_not_asked_again(program: Programs, server: Server) -> None:
    def answer(request: Request) -> Response:
        return completion("no JSON" if request.prompt == "1" else {"label": request.prompt})

    server.answer = answer
    for asked in (["0", "1", "2"], ["1"]):
        before = len(server.requests)
        run = program.run(*ASK, "-k", "--reask", "0", input=rows(range(3)))
        assert run.status == 1
        assert [row["label"] for row in run.rows] == ["0", "2"]
        assert sorted(server.prompts[before:]) == asked


def test_equal_requests_in_flight_are_sent_once_and_share_the_outcome(program: Programs, server: Server) -> None:
    server.hold()
    run = program.start(*ASK, "-j", "3", "--reask", "0")
    run.fill(rows([1, 2, 1, 1, 2, 1]), server.thread_id)
    server.answer = lambda request: completion("no JSON" if request.prompt == "2" else {"label": "one"})
    server.release()
    run.finish()
    assert sorted(server.prompts) == ["1", "2"]
    assert run.rows == [{"id": 1, "label": "one"}] * 4
    assert [error["input"] for error in run.errors] == [{"id": 2}] * 2


# Promise 3: memory does not grow with the input.


def test_while_all_answers_are_withheld_no_more_is_sent_and_at_most_1_mb_is_read(
    program: Programs, server: Server
) -> None:
    server.hold()
    run = program.start(*ASK, "-j", "4")
    taken = run.fill(rows(range(200_000)), server.thread_id)
    assert sorted(server.prompts) == ["0", "1", "2", "3"]
    assert taken <= MB


def test_a_stdout_that_nobody_reads_stalls_stdin_but_no_request_in_flight(program: Programs, server: Server) -> None:
    slow = ["slow 1", "slow 2", "slow 3"]
    server.hold(lambda request: request.prompt in slow)
    run = program.start(*ASK, "-j", "32")
    run.write(rows(slow))
    server.wait_for(3)
    taken = run.fill(padded(range(20_000), 1000), server.thread_id)
    assert taken <= 2 * MB
    server.release()
    server.wait_answered(len(server.requests))
    run.wait_asleep(server.thread_id)
    asked = server.prompts
    assert set(slow) <= set(asked)
    run.kill()  # what came back while nobody read is in the cache all the same
    again = program.run(*ASK, input=rows(slow))
    assert again.status == 0
    assert server.prompts == asked


def test_a_stdout_that_is_read_again_gets_everything_once(program: Programs, server: Server) -> None:
    run = program.start(*ASK)
    run.fill(padded(range(3000), 1000), server.thread_id)
    run.finish(run.rest)
    assert run.status == 0
    assert sorted(row["id"] for row in run.rows) == list(range(3000))
    assert Counter(server.prompts).most_common(1)[0][1] == 1


@pytest.mark.parametrize("args", [["-j", "1"], ["-j", "4"], ["-j", "4", "-k"]], ids=" ".join)
def test_while_nobody_reads_no_more_answers_than_slots_are_paid_for_and_held(
    program: Programs, server: Server, args: list[str]
) -> None:
    server.answer = lambda request: completion({"pad": "x" * 2 * MB})
    jobs = int(args[1])
    # Else glibc puts large blocks among small ones once such a block was freed, and can't give all of them back.
    run = program.start(*ASK, *args, env={"MALLOC_MMAP_THRESHOLD_": str(1 << 17)})
    run.write(rows(range(20)))
    server.wait_for(jobs)
    server.wait_answered(jobs)
    run.wait_asleep(server.thread_id)
    assert len(server.requests) == jobs
    assert run.memory_kb() < 28_000 + jobs * 2.1 * MB / 1000  # one line for each
    run.finish()
    assert (run.status, len(run.lines), len(server.requests)) == (0, 20, 20)
    assert "-k" not in args or [row["id"] for row in run.rows] == list(range(20))


def test_rows_that_back_off_take_no_more_memory_than_others_that_wait(program: Programs, server: Server) -> None:
    server.answer = lambda request: echo(request) if int(request.prompt) % 3 == 0 else error(500, "again")
    with open(os.devnull, "wb") as null:
        run = program.start(*ASK, "-j", "2", "-r", "9", stdout=null.fileno())
    taken = run.fill(padded(range(600), 100_000), server.thread_id)
    assert taken <= 10 * MB  # 1 MB, and a block of rows


def test_memory_stays_flat_over_20_mb_of_input(program: Programs, server: Server) -> None:
    with open(os.devnull, "wb") as null:
        run = program.start(*ASK, stdout=null.fileno())
    block = padded(range(100), 1000) * 20
    run.fill(block, server.thread_id)
    before = run.memory_kb()
    for _ in range(10):
        run.fill(run.rest + block, server.thread_id)
    assert run.memory_kb() - before < 4000


def test_with_k_lines_of_white_space_leave_nothing_behind(program: Programs) -> None:
    """Each that stayed counted as waiting for its turn would take room, until there is none."""
    data = b"".join(b'{"id":%d}\n' % each + b"\n" * 100 for each in range(600))
    run = program.run(*ASK, "-k", "-j", "1", "--no-cache", input=data)
    assert run.status == 0
    assert [row["id"] for row in run.rows] == list(range(600))


def test_a_large_prompt_takes_no_memory_for_each_row(program: Programs) -> None:
    program.write("large.md", "x" * MB + "{id}")
    run = program.start("-p", "large.md", "-n", "--no-cache")
    run.write(rows(range(64)))
    run.wait_asleep()  # nobody reads a line
    assert run.memory_kb() < 50_000


def test_50_000_rows_that_wait_for_one_answer_do_not_grow_memory(program: Programs, server: Server) -> None:
    server.hold()
    run = program.start(*ASK)
    run.fill(rows([1]), server.thread_id)
    before = run.memory_kb()
    taken = run.fill(rows([1] * 50_000), server.thread_id)
    assert taken <= 2 * MB
    assert run.memory_kb() - before < 10_000
    server.release()
    run.finish(run.rest)
    assert run.status == 0
    assert run.stdout == b'{"id":1,"echo":"1"}\n' * 50_001
    assert server.prompts == ["1"]


@pytest.mark.parametrize("rest", [b"\n", b"no record\n", rows([2])], ids=["empty lines", "errors", "answers"])
def test_with_k_lines_that_wait_for_their_turn_do_not_grow_memory(
    program: Programs, server: Server, rest: bytes
) -> None:
    program.run(*ASK, input=rows([2]))
    server.hold()
    run = program.start(*ASK, "-k", shell='exec "$@" 2> errors')
    run.fill(rows([1]), server.thread_id)
    before = run.memory_kb()
    run.fill(rest * 500_000, server.thread_id)
    assert run.memory_kb() - before < 20_000


# Promise 4: one bad row never stops the others.


def test_each_bad_row_has_an_error_line_of_its_own_and_the_others_their_answers(
    program: Programs, server: Server
) -> None:
    def answer(request: Request) -> Reply:
        return answers.get(request.prompt) or completion({"label": request.prompt})

    answers: dict[str, Reply] = {
        "http": Response(b'{"error": {"message": "too long", "code": 400}}', 400),
        "server": Response(b"<html><title>Bad\x1b gateway</title>"),
        "network": b"not HTTP at all",
        "truncated": completion('{"label": "tr', "length"),
        "filtered": completion("", "content_filter"),
        "refused": completion(None, refusal="I can't"),
        "unparsable": completion("I think so"),
    }
    server.answer = answer
    bad = [b'{"id": "x"', b'{"name": "x"}', *rows(list(answers)).splitlines()]
    data = b"\n".join([*rows(["first"]).splitlines(), *bad, *rows(["last"]).splitlines()])
    run = program.run(*ASK, "-j", "1", "-r", "0", "--reask", "0", input=data)
    assert run.status == 1
    assert [row["label"] for row in run.rows] == ["first", "last"]
    assert [(error["line"], error["error"]) for error in run.errors] == list(
        enumerate(["input", "template", *answers], start=2)
    )
    assert [error.get("attempts") for error in run.errors] == [None, None] + [1] * len(answers)
    assert [error["input"] for error in run.errors] == [
        '{"id": "x"',
        {"name": "x"},
        *({"id": each} for each in answers),
    ]
    assert [list(run.errors[2])] == [["line", "error", "message", "status", "attempts", "input"]]
    assert [error["raw"] for error in run.errors if error["error"] in ("truncated", "refused", "unparsable")] == [
        '{"label": "tr',
        "I can't",
        "I think so",
    ]
    assert b"\x1b" not in run.stderr


def test_an_answer_is_not_thrown_away_because_its_last_token_was_the_last_allowed(
    program: Programs, server: Server
) -> None:
    contents = {
        "whole": '{"label":1}',
        "cut": '{"label":1',
        "prose": 'Here: {"label":1}',
        "invalid": '{"other":1}',
        "one of two": '{"label":1}{"label":2}',
    }
    server.answer = lambda request: completion(contents[request.prompt], "length")
    for _ in range(2):  # the second time it comes from the cache
        run = program.run(*ASK, "-f", "label", input=rows(list(contents)))
        assert run.rows == [{"id": "whole", "label": 1}]
        assert {error["input"]["id"] for error in run.errors} == contents.keys() - {"whole"}
        assert {error["error"] for error in run.errors} == {"truncated"}
    assert server.prompts.count("whole") == 1
    (failed,) = program.run(*ASK, "--text", "--no-cache", input=rows(["whole"])).errors
    assert failed["error"] == "truncated" and "max_tokens" in failed["message"] and "context" in failed["message"]


# Promise 5: the input record comes through untouched.


def test_a_record_keeps_its_own_bytes(program: Programs, server: Server) -> None:
    record = b'{"id": 12345678901234567890123, "x": 1.0, "y":"\\u00e9",  "z" : -0.0e+0}'
    for _ in range(2):  # the second time it comes from the cache
        run = program.run(*ASK, input=record + b"\n")
        assert run.stdout == record[:-1] + b',"echo":"12345678901234567890123"}\n'
    assert len(server.requests) == 1


def test_where_an_answer_replaces_a_key_that_is_said_once_and_counted(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion({"id": "new", "n": 1} if request.prompt in "23" else {"n": 1})
    for _ in range(2):  # the second time it comes from the cache
        run = program.run(*ASK, "-k", "-j", "1", "--stats", "stats.json", input=rows([1, 2, 3]))
        assert run.lines == [b'{"id":1,"n":1}', b'{"id":"new","n":1}', b'{"id":"new","n":1}']
        assert len(run.said) == 1
        for words in ("line 2: ", "'id'", "--as KEY", "-f "):
            assert words in run.said[0]
        assert json.loads((program.folder / "stats.json").read_text())["replaced"] == 2
    run = program.run(*ASK, "-k", "--as", "answer", input=rows([1, 2, 3]))
    assert (run.stderr, len(run.lines)) == (b"", 3)
    assert len(server.requests) == 3


def test_an_error_line_keeps_the_bytes_of_its_record(program: Programs, server: Server) -> None:
    record = b'{"name": 12345678901234567890123, "x": 1.0}'
    run = program.run(*ASK, input=record + b"\n")
    assert run.stderr.endswith(b',"input":' + record + b"}\n")


# Promise 6: secrets stay secret.


SECRET = "sk-very/secret+0123456789"
TAIL = b"0123456789"  # stands in every spelling of it


def tell(status: int, headers: dict[str, str] | None = None, text: str = f"no {SECRET}") -> Response:
    return Response(json.dumps({"error": {"message": text, "code": SECRET}}).encode(), status, headers or {})


ECHOES: dict[str, Reply] = {
    "an error": tell(400),
    "an error with an escaped slash": Response(tell(400).body.replace(b"/", b"\\/"), 400),
    "an error with an escaped plus": Response(tell(400).body.replace(b"+", b"\\u002B"), 400),
    "no error": completion({"label": "spam"}),
    "an error with status 200": tell(200),
    "a server error": tell(500),
    "a page": Response(f"<html><title>{SECRET}</title>".encode(), 502),
    "a redirect": tell(302, {"Location": f"https://elsewhere/{SECRET}"}),
    "a header": tell(500, {"X": SECRET}),
    "a status line": f"HTTP/1.1 500 {SECRET}\r\nContent-Length: 0\r\n\r\n".encode(),
    "no status line": f"HTTP/1.1 {SECRET}\r\n\r\n".encode(),
    "a chunk": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n".encode(),
    "the end": tell(401),
}


@pytest.mark.parametrize("env", [{"OPENAI_API_KEY": "anything"}, {"OPENAI_API_KEY": "k", "E": "anything"}])
def test_an_answer_is_never_altered(program: Programs, server: Server, env: dict[str, str]) -> None:
    """A key such as `anything` or `production` is also an ordinary word."""
    server.answer = lambda request: completion("anything goes")
    for _ in range(2):
        run = program.run(*ASK, "--text", "-H", "X-Environment: $E", env={"E": "x", **env}, input=rows([1]))
        assert run.rows == [{"id": 1, "answer": "anything goes"}]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("env", "args"),
    [
        ({"OPENAI_API_KEY": SECRET}, []),
        ({"TOKEN": SECRET}, ["-H", "Authorization: Bearer $TOKEN"]),
        ({"TOKEN": SECRET}, ["-H", "api-key: ${TOKEN}"]),
    ],
    ids=["OPENAI_API_KEY", "-H Authorization", "-H api-key"],
)
def test_the_key_goes_to_the_server_and_nowhere_else(
    program: Programs, server: Server, env: dict[str, str], args: list[str]
) -> None:
    server.answer = lambda request: ECHOES[request.prompt]
    options = ["-k", "-j", "1", "-r", "0", "--reask", "0", "--stats", "stats.json"]
    run = program.run(*ASK, *options, *args, env=env, input=rows(list(ECHOES)))
    assert run.status == 3
    assert len(run.lines) + len(run.errors) + len(run.said) == len(ECHOES)
    for request in server.requests:
        assert SECRET in (request.headers.get("authorization") or request.headers["api-key"])
    places = {file.name: file.read_bytes() for file in program.folder.rglob("*") if file.is_file()}
    assert {"data.mdb", "stats.json"} <= places.keys()
    places |= {"stdout": run.stdout, "stderr": run.stderr}
    assert [name for name, text in places.items() if TAIL in text] == []
    assert b"[masked]" in run.stderr
