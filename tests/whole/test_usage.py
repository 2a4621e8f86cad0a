"""The command line: what is wrong with it is said in one line, before anything is read or sent."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from program import ASK, Programs, rows
from server import Request, Response, Server, completion, error

from llmfilter import __version__
from llmfilter.answers.checks import response_format
from llmfilter.input.fields import request_fields
from llmfilter.input.records import parse_record
from llmfilter.input.request import Keys, Prompt
from llmfilter.input.template import Template

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
    ([*ASK, "--price", "1e308,1e308"], {}, ["--price", "'1e308,1e308'"]),
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
    ([*ASK, "--response", "a", "-f", "b,a"], {}, ["--response a", "another"]),
    ([*ASK, "--response", "a", "--as", "a"], {}, ["--response a", "another"]),
    ([*ASK, "--response", "answer", "--text"], {}, ["--response answer", "another"]),
    ([*ASK, "-f", "a,,b"], {}, ["-f 'a,,b'", "commas"]),
    ([*ASK, "--schema", "none.json"], {}, ["--schema none.json: No such file"]),
    ([*ASK, "--schema", "id.md"], {}, ["--schema id.md: not JSON"]),
    ([*ASK, "--schema", "bad.json"], {}, ["--schema bad.json: not a JSON Schema", "/type"]),
    ([*ASK, "--cache", "c", "--no-cache"], {}, ["--cache and --no-cache"]),
    ([*ASK, "-n", "-u", "http://127.0.0.1:9/v1"], {"OPENAI_MODEL": None}, ["cannot connect", "give -m NAME"]),
    ([*ASK, "-model", "x"], {}, ["-model: did you mean --model?"]),
    ([*ASK, "-schema=schema.json"], {}, ["-schema: did you mean --schema?"]),
    ([*ASK, "—text"], {}, ["did you mean --text?"]),
    (
        [*ASK, "-u", "https://localhost:9/v1"],
        {"SSLKEYLOGFILE": "/nowhere/keys"},
        ["$SSLKEYLOGFILE: /nowhere/keys: No such file or directory"],
    ),
    ([*ASK, "--price", "-1,2"], {}, ["--price needs a value: one that begins with - is given behind ="]),
    ([*ASK, "-s"], {}, ["-s/--system needs a value"]),
    ([*ASK, "--temperature", "0"], {}, ["--temperature: give -o temperature=NUMBER"]),
    ([*ASK, "--top-p", "0"], {}, ["--top-p", "like -o max_tokens=500"]),
    ([*ASK, "--api-key", "sk-secret"], {}, ["--api-key: the key comes from $OPENAI_API_KEY"]),
    ([*ASK, "--api_key=sk-secret"], {}, ["--api_key: the key comes from $OPENAI_API_KEY"]),
    ([*ASK, "-k", "sk-secret"], {}, ["unrecognized argument: records come on stdin"]),
    ([*ASK, "--nope", "sk-secret"], {}, ["unrecognized option --nope"]),
    ([*ASK, "-o", "temperature", "0"], {}, ["-o 'temperature': give KEY=VALUE, like -o temperature=0"]),
    ([*ASK, "-o", "n=5"], {}, ["-o n", "range(5) as $seed", "-o seed={seed}"]),
    ([*ASK, "-u", ""], {"OPENAI_API_KEY": "secret"}, ["-u/--base-url: the value is empty"]),
    ([*ASK, "-m", ""], {}, ["-m/--model: the value is empty"]),
    (["-p", ""], {}, ["-p/--prompt: the value is empty"]),
    ([*ASK, "-u", REMOTE], {"OPENAI_API_KEY": "Bearer sk-secret"}, ["$OPENAI_API_KEY begins with the word Bearer"]),
    ([*ASK, "-H", "Authorization:"], {}, ["-H Authorization: the value is empty"]),
    (ASK, {"OPENAI_MODEL": "\udcff"}, ["$OPENAI_MODEL: the value is not UTF-8"]),
    ([*ASK, "--shcema", "schema.json"], {}, ["unrecognized", "did you mean --schema?"]),
    ([*ASK, "--no-cahce"], {}, ["did you mean --no-cache?"]),
    ([*ASK, "--optoin=a=b"], {}, ["did you mean --option?"]),
    ([*ASK, "--no\npe"], {}, ["--no pe"]),
    (["-p", "no\nne.md"], {}, ["-p no ne.md: No such file"]),
    ([*ASK, "-p", "none.md"], {}, ["-p is given twice"]),
    ([*ASK, "-j", "3", "--jobs", "4"], {}, ["--jobs is given twice"]),
    ([*ASK, "-m", "a", "-m", "a"], {}, ["-m is given twice"]),
    ([*ASK, "-o", f"x={'[' * 300}{']' * 300}"], {}, ["-o x=…", "nested too deeply"]),
    ([*ASK, "-o", "n={n}"], {}, ["-o n"]),
    (["-p", "fixed.md"], {}, ["no placeholder", "{id}", "the first record has: id"]),
    ([*ASK, "-H", "Content-Length:"], {}, ["-H Content-Length: llmfilter sets this header itself"]),
    ([*ASK, "-H", "transfer-encoding: chunked"], {}, ["-H transfer-encoding: llmfilter sets this header itself"]),
    ([*ASK, "-u", "http://a..b/v1"], {"OPENAI_API_KEY": "k"}, ["-u 'http://a..b/v1' is not a URL", "'a..b'"]),
    (
        [*ASK, "-u", REMOTE],
        {"OPENAI_API_KEY": "k", "https_proxy": "http://a..b:3128"},
        ["proxy for https", "http://proxy:3128"],
    ),
    (ASK, {"OPENAI_BASE_URL": "user:secret@host/v1"}, ["$OPENAI_BASE_URL: no user or password in a URL"]),
    ([*ASK, "--schema", "huge.json"], {}, ["--schema huge.json: it can't be sent", "1e400"]),
    ([*ASK, "--schema", "wrapped.json"], {}, ["--schema wrapped.json", "jq .schema wrapped.json > new-schema.json"]),
    ([*ASK, "--schema", "list.json"], {}, ["--schema list.json: no JSON object satisfies it", "jq '{type:"]),
    ([*ASK, "--schema", "example.json"], {}, ["--schema example.json: it checks nothing"]),
    ([*ASK, "--cache", ""], {}, ["--cache", "empty", "--no-cache"]),
    ([*ASK, "--cache", "~nouser/c"], {}, ["the cache ~nouser/c can't be opened", "--no-cache"]),
    (ASK, {"LLMFILTER_CACHE": "~nouser/c"}, ["the cache ~nouser/c can't be opened", "--cache"]),
    ([*ASK, "-n", "--cache", "~nouser/c"], {}, ["the cache ~nouser/c can't be opened"]),
    ([*ASK, "--cache", "loop/c"], {}, ["the cache", "loop/c", "can't be opened"]),
    ([*ASK, "--cache", "x" * 5000], {}, ["can't be opened (File name too long)"]),
    ([*ASK, "--cache", "x" * 300], {}, ["can't be opened (", "File name too long"]),
    ([*ASK, "--cache", "id.md/c"], {}, ["the cache id.md/c can't be opened (", "Not a directory"]),
]


def is_one_plain_line(said: list[str]) -> bool:
    return len(said) == 1 and said[0].startswith("llmfilter: ") and said[0].isprintable()


@pytest.mark.parametrize(("args", "env", "words"), WRONG, ids=[" ".join([*args, *env]) for args, env, _ in WRONG])
def test_wrong_usage_is_one_line_that_names_the_fix(
    program: Programs, server: Server, args: Sequence[str], env: dict[str, str | None], words: Sequence[str]
) -> None:
    program.write("latin1.md", b"caf\xc3\xa9 \xe9 {id}")
    program.write("fixed.md", "Say hello")
    program.write("schema.json", '{"type": "object"}')
    program.write("huge.json", '{"properties": {"a": {"maximum": 1e400}}}')
    program.write("wrapped.json", '{"name": "x", "strict": true, "schema": {"type": "object"}}')
    program.write("list.json", '{"type": "array"}')
    program.write("example.json", '{"label": "spam"}')
    (program.folder / "loop").symlink_to("loop")
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


def test_a_cache_below_a_deleted_folder_is_a_usage_error(program: Programs, server: Server) -> None:
    shell = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    run = program.run("-p", str(program.folder / "id.md"), "--cache", "c", input=rows([1]), shell=shell)
    assert run.status == 2
    assert is_one_plain_line(run.said)
    assert "the cache c can't be opened (No such file or directory)" in run.said[0]


def test_a_cache_where_one_may_not_go_is_a_usage_error(program: Programs, server: Server) -> None:
    (program.folder / "locked").mkdir(mode=0)
    # Where the tests run as root: without its right to go anywhere.
    shell = 'test "$(id -u)" != 0 || exec setpriv --bounding-set=-all --inh-caps=-all "$@"; exec "$@"'
    run = program.run(*ASK, "--cache", "locked/c", input=rows([1]), shell=shell)
    assert run.status == 2
    assert is_one_plain_line(run.said)
    assert "the cache locked/c can't be opened (" in run.said[0]
    assert "Permission denied" in run.said[0]


@pytest.mark.parametrize("args", [["-p", "fixed.md"], [*ASK, "--schema", "none.json"], ["-p", "none.md"]])
def test_what_comes_after_a_usage_error_finds_the_whole_input(
    program: Programs, server: Server, args: list[str]
) -> None:
    program.write("fixed.md", "Say hello")
    for shell in ('{ "$@" || cat; }', 'cat > in.jsonl; { "$@" || cat; } < in.jsonl'):
        run = program.run(*args, input=rows(range(1000)), shell=shell)
        assert run.stdout == rows(range(1000))
        assert is_one_plain_line(run.said)


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
    # What stands in braces may be a field, until a record is there.
    program.write("fixed.md", "Say { hello } as JSON" if data.startswith(b"{") else "Say hello")
    program.write("data.jsonl", data)
    run = program.run("-p", "fixed.md", shell='exec "$@" < data.jsonl')
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
    (lambda request: None, ["check -u (or $OPENAI_BASE_URL), and whether it begins with http:// or https://"]),
    (lambda request: error(401, "who?"), ["HTTP 401: who?", "check $OPENAI_API_KEY"]),
    (lambda request: Response(b'{"data":[{"id":5}]}'), ["none that can be named", "-m NAME"]),
    (lambda request: Response(b'{"data":[{"id":null},{"id":"a"}]}'), ["the server has: a", "-m NAME"]),
    (lambda request: Response(b'{"data":[{"id":"a\\nllmfilter: b"}]}'), ["none that can be named"]),
    (lambda request: Response(b'{"data":[{"id":"\\u001b[31m"},{"id":"\\ud800"},{"id":"c"}]}'), ["the server has: c"]),
    (lambda request: Response(b'{"data":[{"id":"%b"},{"id":"b"}]}' % (b"x" * 9999)), ["x…, b"]),
    (lambda request: Response(b'{"data":"ab"}'), ["no list of models"]),
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
        assert keys.of([body])[0].hex() == "ac91aee997ade4da4f280d75f040bdddd715e1441f354d94708a566f49bc269a"


def test_fields_of_the_request_come_from_the_record(program: Programs, server: Server) -> None:
    data = b'{"id":1,"seed":18446744073709551616,"t":0.50,"tools":[{"type":"function"}]}\n{"id":2,"seed":2,"t":null}\n'
    options = ("-o", "seed={seed}", "-o", "temperature={t}", "-o", "user={{id}}", "-o", "stop={id}s")
    run = program.run(*ASK, *options, "-o", "tools={tools}", input=data)
    assert [line["id"] for line in run.rows] == [1]
    (request,) = server.requests
    assert request.body.endswith(
        b'"content":"1"}],"temperature":0.50,"response_format":{"type":"json_object"},"seed":18446744073709551616,'
        b'"user":"{id}","stop":"{id}s","tools":[{"type":"function"}]}'
    )
    (failed,) = run.errors
    assert (failed["error"], failed["message"]) == ("template", "the record has no field tools; it has: id, seed, t")


def test_one_prompt_is_asked_with_each_record_s_seed(program: Programs, server: Server) -> None:
    program.write("fixed.md", "Say hello")
    run = program.run("-p", "fixed.md", "-o", "seed={id}", input=rows([1, 2, 1]))
    assert (run.status, len(run.rows)) == (0, 3)
    assert sorted(request.json["seed"] for request in server.requests) == [1, 2]


def test_a_conversation_goes_on_with_the_record_s_own_fields(program: Programs, server: Server) -> None:
    def answer(request: Request) -> Response:
        return completion("no JSON" if len(request.json["messages"]) == 1 else {"a": 1})

    server.answer = answer
    run = program.run(*ASK, "-o", "seed={id}", input=rows(["é"]))
    assert run.rows == [{"id": "é", "a": 1}]
    first, second = (request.json for request in server.requests)
    assert second == {**first, "messages": [*first["messages"], *second["messages"][1:]]}
    assert len(second["messages"]) == 3


def test_typed_headers_replace_ours_and_are_all_sent(program: Programs, server: Server) -> None:
    typed = ("-H", "user-agent: mine", "-H", "CONTENT-TYPE: application/x", "-H", "X-A: 1", "-H", "x-a: 2")
    program.run(*ASK, *typed, input=rows([1]), env={"OPENAI_MODEL": None})
    for request in server.requests:
        sent = request.headers
        assert (sent["user-agent"], sent["content-type"], sent["x-a"]) == ("mine", "application/x", "1, 2")
    assert {request.method for request in server.requests} == {"GET", "POST"}


def test_text_goes_under_an_empty_key_if_that_is_typed(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion("text")
    assert program.run(*ASK, "--text", "--as", "", input=rows([1])).rows == [{"id": 1, "": "text"}]


def test_numbers_beyond_64_bits_go_out_as_typed(program: Programs, server: Server) -> None:
    typed = ("-o", "seed=18446744073709551616", "-o", "x=1e400", "-o", 'user="\\ud800"')
    assert program.run(*ASK, *typed, input=rows([1])).status == 0
    assert server.requests[0].body.endswith(b'"seed":18446744073709551616,"x":1e400,"user":"\\ud800"}')


def test_a_misspelt_field_is_suggested(program: Programs, server: Server) -> None:
    program.write("typo.md", "{txet}")
    (failed,) = program.run("-p", "typo.md", input=b'{"id":1,"text":"x"}\n').errors
    assert failed["message"] == "the record has no field txet; it has: id, text; did you mean {text}?"


def test_what_the_key_of_a_request_depends_on() -> None:
    keys = {
        Keys(url, headers).of([body])[0]
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


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_can_not_be_written_is_an_error(program: Programs, option: str) -> None:
    run = program.run(option, shell='exec "$@" > /dev/full')
    assert (run.status, run.said) == (2, ["llmfilter: stdout can't be written: No space left on device"])


@pytest.mark.parametrize("more", [[], ["-n"], ["--to-batch"]])
def test_a_cache_that_is_a_file_is_refused(program: Programs, server: Server, more: list[str]) -> None:
    program.write("file", b"mine")
    run = program.run(*ASK, "--cache", "file", *more, input=rows([1]))
    assert (run.status, run.stdout, server.requests) == (2, b"", [])
    assert "the cache file can't be opened (Not a directory): give another folder" in run.said[0]
    assert (program.folder / "file").read_bytes() == b"mine"


# What is said once at the start.


@pytest.mark.parametrize(
    ("prompt", "args", "is_said"),
    [
        ("Label this: {id}", [], True),
        ("Label this: {id}", ["-s", "Be terse."], True),
        ("Label this: {id}", ["-n"], True),
        ("Label this: {id}", ["-f", "label"], True),
        ("给这条评论打标签：{id}", [], True),
        ("Label this: {id}", ["--text"], False),
        ("Label this: {id}", ["-s", "Answer as Json."], False),
        ("Label this: {id}", ["--schema", "schema.json"], False),
        ("Label this: {id}", ["-o", 'guided_json={"type": "object"}'], False),
        ("Label this as json: {id}", [], False),
        ("{id}", ["-o", "seed=1"], False),  # the record brings its own words
    ],
)
def test_a_run_that_asks_for_no_json_says_so_once(
    program: Programs, server: Server, prompt: str, args: list[str], is_said: bool
) -> None:
    program.write("label.md", prompt)
    program.write("schema.json", '{"type": "object", "required": []}')
    server.answer = lambda request: completion({"label": "a"})
    said = program.run("-p", "label.md", *args, input=rows(range(3))).said
    notices = [line for line in said if "--text" in line]
    assert len(notices) == is_said
    assert not is_said or (said[0] == notices[0] and "asks for JSON" in said[0])


def test_words_of_a_record_reach_a_plain_line_fit_for_a_terminal(program: Programs, server: Server) -> None:
    program.write("typo.md", "{nope}")
    key = "a\x1b[31m\nllmfilter: all is well\r\x9b" + "k" * 60_000
    run = program.run("-p", "typo.md", input=(json.dumps({key: 1}) + "\n").encode() * 40)
    assert run.status == 3
    for line in run.said:
        assert line.startswith("llmfilter: ") and line.isprintable() and len(line) < 2100


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
    assert "the first unfinished line is 1 (0 rows answered, 0 failed)" in run.said[0]
    assert len(server.requests) <= 2
    stats = json.loads((program.folder / "stats.json").read_bytes())
    assert stats["rows"] == stats["answered"] + stats["failed"] + stats["unfinished"]


def test_stats_count_what_happened(program: Programs, server: Server) -> None:
    program.run(*ASK, input=rows([1]))
    program.run(*ASK, "--stats", "stats.json", input=rows([1, 2, 2]) + b"\nno record\n")
    stats = json.loads((program.folder / "stats.json").read_bytes())
    assert stats.pop("seconds") > 0
    assert stats.pop("run")["model"] == "tiny"
    assert stats == {
        "rows": 4,
        "answered": 3,
        "cached": 2,
        "failed": 1,
        "by_kind": {"input": 1},
        "unstored": 0,
        "replaced": 0,
        "unfinished": 0,
        "requests": 1,
        "retries": 0,
        "reasked": 0,
        "refusals": 0,
        "limit": None,
        "tokens": {
            "billed": {"prompt": 7, "cached_prompt": 0, "completion": 3},
            "saved": {"prompt": 14, "cached_prompt": 0, "completion": 6},
        },
    }


@pytest.mark.parametrize("args", [["-p", "/dev/stdin"], [*ASK, "-s", "@/proc/self/fd/0"]])
def test_a_prompt_does_not_come_through_the_records_pipe(args: list[str], program: Programs, server: Server) -> None:
    run = program.run(*args, input=rows([1]))
    assert (run.status, len(run.said), server.requests) == (2, 1, [])
    assert "this is stdin, which the records come through" in run.said[0]


@pytest.mark.parametrize(
    ("args", "never"),
    [
        (["--help"], {"asyncio", "dataclasses", "orjson", "lmdb", "aiohttp"}),
        (["-p", "id.md", "-j", "many"], {"asyncio", "dataclasses", "orjson", "lmdb", "aiohttp"}),
        (["-p", "id.md"], {"aiohttp", "jsonschema_rs", "sqlite3", "tempfile", "random"}),  # all answered by the cache
    ],
)
def test_what_takes_long_to_load_is_loaded_by_those_who_need_it(
    args: list[str], never: set[str], program: Programs
) -> None:
    program.run("-p", "id.md", input=rows([1]))
    run = program.run(*args, input=rows([1]), command=[sys.executable, "-X", "importtime", "-m", "llmfilter"])
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.decode().splitlines()}
    assert "llmfilter.cli" in loaded
    assert not loaded & never
