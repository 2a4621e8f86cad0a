"""-n says what a run would send, and about what its prompts cost, before anything is paid for."""

import json
import signal
from collections.abc import Sequence
from typing import Any

import pytest
from program import ASK, Programs, rows
from server import Response, Server, error

from llmfilter.modes.dry_run import measure

REMOTE = "https://api.example.com/v1"
# Where the tests run as root: without its right to go anywhere.
NO_ROOT = 'test "$(id -u)" != 0 || exec setpriv --bounding-set=-all --inh-caps=-all "$@"; exec "$@"'


def conversation(content: Any, **more: Any) -> bytes:
    """A record that carries its own messages."""
    return json.dumps({"messages": [{"role": "user", "content": content, **more}]}).encode() + b"\n"


def tokens(program: Programs, input: bytes, *args: str) -> int:
    """About how many prompt tokens -n says."""
    run = program.run("-n", *args, input=input)
    assert run.status == 0
    return int(run.said[1].removeprefix("llmfilter: about ").partition(" prompt tokens")[0])


def test_a_dry_run_prints_the_bodies_sends_nothing_and_needs_no_key(program: Programs, server: Server) -> None:
    program.run(*ASK, input=rows(range(3)))
    bodies = [request.body for request in sorted(server.requests, key=lambda request: str(request.prompt))]
    dry = program.run(*ASK, "-n", "-k", "--stats", "stats.json", input=rows([0, 1, 2, 3, 4, 3]) + b"{}\n\nno record\n")
    assert dry.lines[:3] == bodies
    assert [json.loads(line)["messages"][0]["content"] for line in dry.lines[3:]] == ["3", "4", "3"]
    assert [line["error"] for line in dry.errors] == ["template", "input"]
    assert dry.said == [
        "llmfilter: 8 rows: 3 answered by the cache, 2 failed, 2 requests to be sent, 1 duplicate",
        "llmfilter: about 14 prompt tokens, at 4 bytes of text each",
        "llmfilter: the answers will have about 6 tokens, judging by 3 answers in the cache",
    ]
    assert dry.status == 1
    assert len(server.requests) == 3
    stats = json.loads((program.folder / "stats.json").read_bytes())
    assert [stats[name] for name in ("rows", "answered", "cached", "failed", "unfinished")] == [8, 3, 3, 2, 3]
    remote = program.run(*ASK, "-n", "-u", REMOTE, input=rows([1]))
    assert (remote.status, remote.lines) == (0, [bodies[1]])


def test_where_nothing_is_left_to_be_sent_nothing_is_said_of_tokens(program: Programs, server: Server) -> None:
    program.run(*ASK, input=rows([1]))
    run = program.run(*ASK, "-n", "--budget", "1", input=rows([1, 1]))
    assert run.said == ["llmfilter: 2 rows: 2 answered by the cache, 0 failed, 0 requests to be sent"]


def test_an_answer_that_fails_todays_checks_counts_as_a_request(program: Programs, server: Server) -> None:
    program.run(*ASK, input=rows([1]))
    assert "1 request to be sent" in program.run(*ASK, "-n", "-f", "other", input=rows([1])).said[0]


def test_the_tokens_are_those_of_the_text_and_not_of_its_json(program: Programs) -> None:
    for text in ("word " * 80, '\n"\\\t' * 100, "漢字仮名" * 33 + "abcd"):
        assert tokens(program, conversation(text)) == 7 + 100
        assert tokens(program, conversation([{"type": "text", "text": text}])) == 7 + 100
    schema = program.write("schema.json", json.dumps({"properties": {"a": {"description": "word " * 80}}}))
    assert 100 < tokens(program, conversation("x"), "--schema", schema) < 160


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 100_000}"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "A" * 100_000, "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}},
    ],
    ids=lambda part: part["type"],
)
def test_pictures_and_files_are_no_text(program: Programs, part: Any) -> None:
    run = program.run("-n", input=conversation([{"type": "text", "text": "word " * 8}, part, part]))
    assert run.said[1:] == [
        "llmfilter: about 17 prompt tokens, at 4 bytes of text each; "
        "beside them pictures or files (2), which only the server can count"
    ]


ODD: list[tuple[bytes, tuple[int, int]]] = [
    (b'{"messages":[]}', (3, 0)),
    (b'{"messages":[{}]}', (7, 0)),
    (b'{"messages":[{"content":5},{"content":[5,null,[],{}]}],"response_format":5,"x":1e400}', (11, 1)),
    (b'{"messages":[{"content":"\\ud800x"}]}', (8, 0)),
    (b'{"messages":[{"tool_calls":[{"a":"\\ud800"}]}],"tools":[1e400]}', (13, 0)),
]


@pytest.mark.parametrize(("body", "about"), ODD)
def test_odd_requests_have_a_size_too(body: bytes, about: tuple[int, int]) -> None:
    assert measure(body) == about


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("1070", "it covers all prompts, and leaves about 535 tokens for the answers"),
        ("535", "the prompts alone use it up after about 5 requests; with the answers it is sooner"),
        ("214", "the prompts alone use it up after about 2 requests; with the answers it is sooner"),
        ("1", "the prompts alone use it up after about 1 request; with the answers it is sooner"),
    ],
)
def test_a_dry_run_says_what_a_budget_would_stop(program: Programs, budget: str, words: str) -> None:
    records = b"".join([conversation(f"{word:<400}") for word in ("a", "b", "a", "c", "d", "e")])
    run = program.run("-n", "--budget", budget, input=records)
    assert run.said[1:] == [
        "llmfilter: about 535 prompt tokens, at 4 bytes of text each",
        f"llmfilter: --budget {budget}: {words}",
    ]


@pytest.mark.parametrize("mode", ["-n", "--to-batch"])
def test_a_one_model_server_is_asked_for_its_model_and_for_nothing_else(
    program: Programs, server: Server, mode: str
) -> None:
    environ = {"OPENAI_MODEL": None, "OPENAI_API_KEY": "sk-0123456789"}
    run = program.run(*ASK, mode, input=rows([1]), env=environ)
    assert run.status == 0
    assert b'"model":"tiny"' in run.stdout
    (request,) = server.requests
    assert (request.method, request.path) == ("GET", "/v1/models")
    assert request.headers["authorization"] == "Bearer sk-0123456789"


@pytest.mark.parametrize("mode", ["-n", "--to-batch"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda request: Response(b'{"data":[{"id":"a"},{"id":"b"}]}'), ["which model? Give -m NAME", "a, b"]),
        (lambda request: error(401, "who?"), ["HTTP 401: who?", "give -m NAME, which needs no server"]),
        (lambda request: error(503, "loading"), ["HTTP 503: loading", "give -m NAME, which needs no server"]),
        (lambda request: None, ["connection", "give -m NAME, which needs no server"]),
    ],
)
def test_without_a_model_that_is_clear_the_name_is_asked_for(
    program: Programs, server: Server, mode: str, answer: Any, words: Sequence[str]
) -> None:
    server.answer = answer
    run = program.run(*ASK, mode, input=rows([1]), env={"OPENAI_MODEL": None})
    assert (run.status, run.stdout, len(run.said)) == (2, b"", 1)
    assert all(word in run.said[0] for word in words)


# How it ends.


@pytest.mark.parametrize("mode", ["-n", "--to-batch"])
def test_what_was_stopped_says_how_far_it_came_and_not_that_it_goes_on(program: Programs, mode: str) -> None:
    run = program.start(*ASK, mode).write(rows([1, 2])).read_lines(2)
    run.wait_asleep()
    run.signal(signal.SIGINT)
    run.wait()
    assert run.finish().status == -signal.SIGINT
    # What was read here may not be known there yet as written, and then that is waited for.
    ended, counts, *_ = [line for line in run.said if "waiting for the reader" not in line]
    assert ended.endswith("SIGINT; the first unfinished line is 3 (0 rows answered, 0 failed)")
    assert counts.startswith("llmfilter: stopped early; so far: 0 answered by the cache, 0 failed, 2 requests ")


@pytest.mark.parametrize("mode", ["-n", "--to-batch"])
def test_of_what_did_not_come_out_nothing_is_counted(program: Programs, mode: str) -> None:
    run = program.start(*ASK, mode).write(rows([1])).read_lines(1)
    run.close_stdout()
    run.finish(rows(range(2, 100)))
    assert (run.status, run.said) == (141, [])
    full = program.run(*ASK, mode, input=rows([1]), shell='exec "$@" > /dev/full')
    assert (full.status, len(full.said)) == (3, 1)
    assert "the output can't be written: No space left on device" in full.said[0]


@pytest.mark.parametrize("mode", ["-n", "--to-batch"])
def test_a_cache_of_which_only_the_files_may_be_written_is_enough(program: Programs, server: Server, mode: str) -> None:
    program.run(*ASK, input=rows([1]))
    program.cache.chmod(0o500)
    try:
        run = program.run(*ASK, mode, input=rows([1, 2]), shell=NO_ROOT)
    finally:
        program.cache.chmod(0o700)
    assert run.status == 0
    assert "2 rows: 1 answered by the cache, 0 failed, 1 request " in run.said[0]


@pytest.mark.parametrize("mode", ["-n", "--to-batch"])
def test_where_no_more_requests_can_be_noted_the_run_ends(program: Programs, mode: str) -> None:
    records = rows(range(150_000))  # more than is noted in memory
    run = program.run(*ASK, mode, input=records, shell='ulimit -f 0; exec "$@" | tail -n 1 > /dev/null')
    assert "cannot remember which requests " in run.said[0] and "$TMPDIR" in run.said[0]
    assert "the first unfinished line is " in run.said[0]
