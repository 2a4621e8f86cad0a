"""The command line: what is wrong with it is said in one line, before anything is read or sent."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from program import ASK, Programs, rows
from server import Request, Response, Server, error

from llmfilter import __version__
from llmfilter.cache import Keys
from llmfilter.job import request_fields, response_format
from llmfilter.prompt import Prompt, Template
from llmfilter.rows import parse_record

REMOTE = "https://api.example.com/v1"

# What is typed, what the environment changes, what the line on stderr must say.
WRONG: list[tuple[Sequence[str], dict[str, str | None], Sequence[str]]] = [
    (["-p", "none.md"], {}, ["-p none.md: No such file"]),
    (["-p", "."], {}, ["-p .: Is a directory"]),
    (["-p", "latin1.md"], {}, ["-p latin1.md: not UTF-8 at byte 6", "iconv"]),
    ([*ASK, "-s", "@none.md"], {}, ["-s none.md: No such file"]),
    (["-p"], {}, ["-p", "--help"]),
    ([*ASK, "--nope"], {}, ["--nope", "--help"]),
    ([*ASK, "--mod", "x"], {}, ["--mod", "--help"]),
    ([*ASK, "data.jsonl"], {}, ["data.jsonl", "--help"]),
    ([*ASK, "-j", "0"], {}, ["-j", "'0' is not a whole number from 1 on"]),
    ([*ASK, "-j", "many"], {}, ["-j", "'many'"]),
    ([*ASK, "-r", "-1"], {}, ["-r"]),
    ([*ASK, "--timeout", "0"], {}, ["--timeout", "'0' is not a number of seconds above 0"]),
    ([*ASK, "--timeout", "nan"], {}, ["--timeout"]),
    ([*ASK, "--rpm", "inf"], {}, ["--rpm"]),
    ([*ASK, "-o", "max_tokens"], {}, ["-o 'max_tokens'", "KEY=VALUE"]),
    ([*ASK, "-o", "messages=[]"], {}, ["-o messages", "use -p and -s"]),
    ([*ASK, "-o", "model=x"], {}, ["-o model", "use -m"]),
    ([*ASK, "-o", "stream=true"], {}, ["-o stream"]),
    ([*ASK, "-o", "n=2"], {}, ["-o n"]),
    ([*ASK, "-H", "no colon"], {}, ["-H 'no colon'", "'Name: value'"]),
    ([*ASK, "-H", "bad name: x"], {}, ["-H 'bad name'", "'Name: value'"]),
    ([*ASK, "-H", "X: $UNSET"], {}, ["-H X: $UNSET is not set"]),
    ([*ASK, "-H", "X: $TWO"], {"TWO": "secret\nlines"}, ["-H X", "line break"]),
    ([*ASK, "-u", "localhost:8000"], {}, ["-u 'localhost:8000'", "http://localhost:8000/v1"]),
    ([*ASK, "-u", "http://"], {}, ["-u 'http://'"]),
    ([*ASK, "-u", "http://[::1"], {}, ["-u 'http://[::1'"]),
    ([*ASK, "-u", "http://h:port/v1"], {}, ["-u 'http://h:port/v1'"]),
    ([*ASK, "-u", "http://me:pass@h/v1"], {}, ["-u", "-H 'Authorization: Basic $MY_SECRET'"]),
    (ASK, {"OPENAI_BASE_URL": "h/v1"}, ["$OPENAI_BASE_URL 'h/v1'"]),
    (ASK, {"OPENAI_BASE_URL": None}, ["no key for api.openai.com", "$OPENAI_API_KEY", "-H"]),
    ([*ASK, "-u", REMOTE], {}, ["no key for api.example.com", "$OPENAI_API_KEY", "-H"]),
    ([*ASK, "-u", REMOTE], {"OPENAI_API_KEY": " "}, ["no key for api.example.com"]),
    ([*ASK, "-u", REMOTE], {"OPENAI_API_KEY": "a\x01b"}, ["$OPENAI_API_KEY", "control character"]),
    ([*ASK, "-u", REMOTE], {"OPENAI_API_KEY": "k", "ALL_PROXY": "socks5://h"}, ["socks5 proxy", "http"]),
    ([*ASK, "--text", "--schema", "schema.json"], {}, ["--text", "leave out"]),
    ([*ASK, "--text", "-f", "a"], {}, ["--text", "leave out"]),
    ([*ASK, "-f", "a,,b"], {}, ["-f 'a,,b'", "commas"]),
    ([*ASK, "--schema", "none.json"], {}, ["--schema none.json: No such file"]),
    ([*ASK, "--schema", "id.md"], {}, ["--schema id.md: not JSON"]),
    ([*ASK, "--schema", "bad.json"], {}, ["--schema bad.json: not a JSON Schema", "/type"]),
    ([*ASK, "--cache", "c", "--no-cache"], {}, ["--cache and --no-cache"]),
    ([*ASK, "-n"], {"OPENAI_MODEL": None}, ["-n", "give -m NAME"]),
]


def is_one_plain_line(said: list[str]) -> bool:
    return len(said) == 1 and said[0].startswith("llmfilter: ") and said[0].isprintable()


@pytest.mark.parametrize(("args", "env", "words"), WRONG, ids=[" ".join([*args, *env]) for args, env, _ in WRONG])
def test_wrong_usage_is_one_line_that_names_the_fix(
    program: Programs, server: Server, args: Sequence[str], env: dict[str, str | None], words: Sequence[str]
) -> None:
    program.write("latin1.md", b"caf\xc3\xa9 \xe9 {id}")
    program.write("schema.json", "{}")
    program.write("bad.json", '{"type": "strin"}')
    program.write("data.jsonl", rows([1]))
    with open(program.folder / "data.jsonl", "rb") as stdin:
        run = program.start(*args, env=env, stdin=stdin.fileno()).finish()
        assert stdin.tell() == 0  # nothing is read
    assert run.status == 2
    assert is_one_plain_line(run.said)
    assert all(word in run.said[0] for word in words)
    assert not run.stdout
    assert not server.requests
    assert "secret" not in run.said[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"text": "x", "lang": "de"}\n', ["{text}", "the first record has: text, lang"]),
        (b"", ["{text}"]),
        (b"no record\n", ["{text}"]),
    ],
)
def test_a_prompt_without_placeholders_lists_the_keys_of_the_first_record(
    program: Programs, server: Server, data: bytes, words: Sequence[str]
) -> None:
    program.write("fixed.md", "Say { hello }")
    run = program.run("-p", "fixed.md", input=data)
    assert run.status == 2
    assert is_one_plain_line(run.said)
    assert all(word in run.said[0] for word in ["no placeholder", *words])
    assert not server.requests


def test_too_few_open_files_for_j_names_what_is_possible(program: Programs, server: Server) -> None:
    run = program.run(*ASK, "-j", "100", input=rows([1]), shell='ulimit -n 120; exec "$@"')
    assert run.status == 2
    assert is_one_plain_line(run.said)
    assert "ulimit -n" in run.said[0]
    most = run.said[0].rpartition("-j ")[2]
    assert program.run(*ASK, "-j", most, input=rows([1]), shell='ulimit -n 120; exec "$@"').status == 0


def test_the_limit_of_open_files_is_raised_as_far_as_j_needs(program: Programs, server: Server) -> None:
    server.hold()
    run = program.start(*ASK, "-j", "150", shell='ulimit -S -n 100; exec "$@"')
    run.write(rows(range(150)))
    server.wait_for(150)
    server.release()
    assert run.finish().status == 0


MODELS = [
    (lambda request: Response(b'{"data":[{"id":"a"},{"id":"b"}]}'), ["a, b", "-m NAME"]),
    (lambda request: Response(b'{"data":[]}'), ["none", "-m NAME"]),
    (lambda request: Response(b"<html>"), ["no list of models", "-m NAME"]),
    (lambda request: error(404, "nothing here"), ["HTTP 404: nothing here", "-m NAME"]),
    (lambda request: None, ["-m NAME"]),
]


@pytest.mark.parametrize(("answer", "words"), MODELS)
def test_without_a_model_that_is_clear_a_run_does_not_start(
    program: Programs, server: Server, answer: Any, words: Sequence[str]
) -> None:
    server.answer = answer
    run = program.run(*ASK, input=rows([1]), env={"OPENAI_MODEL": None})
    assert run.status == 2
    assert is_one_plain_line(run.said)
    assert all(word in run.said[0] for word in words)
    assert {request.method for request in server.requests} == {"GET"}


def test_the_server_s_only_model_is_used(program: Programs, server: Server) -> None:
    run = program.run(*ASK, input=rows([1]), env={"OPENAI_MODEL": None})
    assert run.status == 0
    assert [request.path for request in server.requests] == ["/v1/models", "/v1/chat/completions"]
    assert server.requests[1].json["model"] == "tiny"


# What is asked.


def test_a_dry_run_prints_the_bodies_sends_nothing_and_needs_no_key(program: Programs, server: Server) -> None:
    program.run(*ASK, input=rows(range(3)))
    bodies = [request.body for request in sorted(server.requests, key=lambda request: str(request.prompt))]
    dry = program.run(*ASK, "-n", "-k", input=rows(range(4)) + b"{}\n")
    assert dry.lines[:3] == bodies
    assert [json.loads(line)["messages"] for line in dry.lines[3:]] == [[{"role": "user", "content": "3"}]]
    assert [line["error"] for line in dry.errors] == ["template"]
    assert all(word in dry.said[0] for word in ("5 rows", "3 in the cache", "1 to be asked"))
    assert dry.status == 1
    assert len(server.requests) == 3
    remote = program.run(*ASK, "-n", "-u", REMOTE, input=rows([1]))
    assert (remote.status, remote.lines) == (0, [bodies[1]])


def test_the_body_and_the_key_of_a_request_never_change() -> None:
    """If this fails, everybody pays again for what is in their caches."""
    fields = request_fields(["max_tokens=9", "seed=null", "stop=é"], response_format(is_text=False, schema=None))
    prompt = Prompt(Template("Is {x.y} {n} “é”?"), Template("Be {tone}."), "gpt-4o-mini", fields)
    raw = '{"x": {"y": [1.0, "ü"]}, "n": 12345678901234567890123, "tone": "kind\\n"}'
    body = prompt.body(parse_record(raw.encode()), raw.encode())
    assert body.decode() == (
        '{"model":"gpt-4o-mini","messages":[{"role":"system","content":"Be kind\\n."},'
        '{"role":"user","content":"Is [1.0,\\"ü\\"] 12345678901234567890123 “é”?"}],'
        '"temperature":0,"response_format":{"type":"json_object"},"max_tokens":9,"stop":"é"}'
    )
    for head in (b"", prompt.head):
        keys = Keys("https://api.openai.com/v1/chat/completions", ["X-Team: $TEAM"], head)
        assert keys.of(body).hex() == "ac91aee997ade4da4f280d75f040bdddd715e1441f354d94708a566f49bc269a"


def test_what_the_key_of_a_request_depends_on() -> None:
    keys = {
        Keys(url, headers).of(body)
        for url in ("http://a/v1", "http://a/v2")
        for headers in ([], ["X: 1"], ["X: 1", "Y: 2"], ["X: 1Y: 2"])
        for body in (b"{}", b"[]")
    }
    assert len(keys) == 2 * 4 * 2


@pytest.mark.parametrize(
    "command", [[str(Path(sys.executable).with_name("llmfilter"))], [sys.executable, "-m", "llmfilter"]]
)
def test_help_and_version_need_nothing_else(program: Programs, command: list[str]) -> None:
    for option, text in (("--help", b"exit status:"), ("--version", f"llmfilter {__version__}\n".encode())):
        run = program.run(option, command=command)
        assert (run.status, run.stderr) == (0, b"")
        assert text in run.stdout


# How it ends.


def test_what_refuses_the_whole_run_ends_it_with_status_3(program: Programs, server: Server) -> None:
    def answer(request: Request) -> Response:
        return error(401, "bad key")

    server.answer = answer
    run = program.run(*ASK, "-j", "2", "--stats", "stats.json", input=rows(range(50)))
    assert run.status == 3
    assert is_one_plain_line(run.said)
    assert "HTTP 401: bad key" in run.said[0]
    assert "$OPENAI_API_KEY" in run.said[0]
    assert "stopped at line 1, 0 rows are done" in run.said[0]
    assert len(server.requests) <= 2
    stats = json.loads((program.folder / "stats.json").read_bytes())
    assert stats["rows"] == stats["answered"] + stats["failed"] + stats["unfinished"]


def test_stats_count_what_happened(program: Programs, server: Server) -> None:
    program.run(*ASK, input=rows([1]))
    program.run(*ASK, "--stats", "stats.json", input=rows([1, 2, 2]) + b"\nno record\n")
    stats = json.loads((program.folder / "stats.json").read_bytes())
    assert stats.pop("seconds") > 0
    assert stats == {
        "rows": 4,
        "answered": 3,
        "cached": 2,
        "failed": 1,
        "by_kind": {"input": 1},
        "unfinished": 0,
        "requests": 1,
        "retries": 0,
        "reasked": 0,
        "tokens": {"billed": {"prompt": 7, "completion": 3}, "saved": {"prompt": 14, "completion": 6}},
    }
