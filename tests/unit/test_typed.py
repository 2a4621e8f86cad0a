"""What was typed → what is done with each row; everything that is wrong with it is a usage error."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from strategies import exact

from llmfilter.answers.checks import make_checks, response_format
from llmfilter.cache.folder import cache_folder
from llmfilter.cache.store import open_cache
from llmfilter.errors import UsageError
from llmfilter.input.fields import Field, request_fields
from llmfilter.input.records import peek_keys
from llmfilter.input.request import Prompt
from llmfilter.input.template import parse_prompt
from llmfilter.jsontext import parse_json
from llmfilter.options import make_parser
from llmfilter.typed import check_text, read_file, read_schema, read_system

JSON = {"type": "json_object"}


def complaint(call: Callable[..., object], *args: object) -> str:
    with pytest.raises(UsageError) as caught:
        call(*args)
    return str(caught.value)


# -o


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ([], {"temperature": 0, "response_format": JSON}),
        (["max_tokens=500"], {"temperature": 0, "response_format": JSON, "max_tokens": 500}),
        (["temperature=0.7"], {"temperature": 0.7, "response_format": JSON}),
        (["temperature=null"], {"response_format": JSON}),
        (["response_format=null", "temperature=null"], {}),
        (["seed=1", "seed=2"], {"temperature": 0, "response_format": JSON, "seed": 2}),
        (["seed=1", "seed=null"], {"temperature": 0, "response_format": JSON}),
        (['response_format={"type": "text"}'], {"temperature": 0, "response_format": {"type": "text"}}),
        (['stop=["a", "b=c"]'], {"temperature": 0, "response_format": JSON, "stop": ["a", "b=c"]}),
        (["user=a=b"], {"temperature": 0, "response_format": JSON, "user": "a=b"}),
        (['user="5"'], {"temperature": 0, "response_format": JSON, "user": "5"}),
        (["user="], {"temperature": 0, "response_format": JSON, "user": ""}),
        (["user=NaN"], {"temperature": 0, "response_format": JSON, "user": "NaN"}),
        (["logprobs=true"], {"temperature": 0, "response_format": JSON, "logprobs": True}),
        (["seed={seed}"], {"temperature": 0, "response_format": JSON, "seed": Field("seed")}),
        (["temperature={o.t}"], {"temperature": Field("o.t"), "response_format": JSON}),
        (["user={{name}}"], {"temperature": 0, "response_format": JSON, "user": "{name}"}),
        (["user=x {name}"], {"temperature": 0, "response_format": JSON, "user": "x {name}"}),
    ],
)
def test_an_option_wins_over_what_is_built(options: list[str], fields: dict[str, Any]) -> None:
    found = request_fields(options, JSON)
    assert found == fields
    assert list(found) == list(fields)


@pytest.mark.parametrize(
    "value",
    [
        "18446744073709551616",
        "[-9223372036854775809]",
        "1e400",
        '{"a": -1e999999999999999999999}',
        '"\\ud800"',
        "9" * 5000,
        "18446744073709551615",
        "-9223372036854775808",
        "[" * 254 + "]" * 254,
    ],
)
def test_json_that_python_s_numbers_cannot_hold_goes_out_as_typed(value: str) -> None:
    prompt = Prompt(None, None, "m", request_fields([f"seed={value}"], None))
    body = prompt.body({"messages": [{}]}, b'{"messages":[{}]}')
    assert exact(body)["seed"] == exact(value)


def test_json_over_several_lines_stays_one_line_in_the_request() -> None:
    prompt = Prompt(None, None, "m", request_fields(['bias={"a":\n 1e400}'], None))
    assert b"\n" not in prompt.body({"messages": [{}]}, b'{"messages":[{}]}')


@pytest.mark.parametrize("levels", [255, 300, 1_000])
def test_a_value_that_is_nested_too_deeply_is_refused(levels: int) -> None:
    option = "x=" + "[" * levels + "]" * levels
    assert "-o x=…: the value is nested too deeply" in complaint(request_fields, [option], None)


@pytest.mark.parametrize("option", ["", "max_tokens", "=5", "="])
def test_an_option_that_is_no_pair_is_refused(option: str) -> None:
    assert "KEY=VALUE" in complaint(request_fields, [option], JSON)


@pytest.mark.parametrize("option", ["-s", "-m", "-f", "--as", "-o", "-H", "-u"])
def test_an_option_that_is_not_utf8_is_refused(option: str) -> None:
    args = make_parser().parse_args([option, os.fsdecode(b"user=\xff")])
    assert complaint(check_text, args, {}) == f"{option}: the value is not UTF-8"


def test_a_model_of_the_environment_that_is_not_utf8_is_refused() -> None:
    environ = {"OPENAI_MODEL": os.fsdecode(b"\xff")}
    assert complaint(check_text, make_parser().parse_args([]), environ) == "$OPENAI_MODEL: the value is not UTF-8"


@pytest.mark.parametrize(
    ("key", "word"), [("messages", "-p"), ("model", "-m"), ("stream_options", "--stream"), ("n", "-o n")]
)
@pytest.mark.parametrize("value", ["1", "null", "false"])
def test_what_llmfilter_sets_itself_is_refused(key: str, word: str, value: str) -> None:
    assert word in complaint(request_fields, [f"{key}={value}"], JSON)


@pytest.mark.parametrize("value", ["true", "1", "0", "null", "no", "{stream}"])
def test_a_stream_is_asked_for_in_another_way(value: str) -> None:
    assert "--stream" in complaint(request_fields, [f"stream={value}"], JSON)


def test_servers_that_stream_unless_told_can_be_told() -> None:
    assert request_fields(["stream=false"], None) == {"temperature": 0, "stream": False}


def test_what_is_asked_of_the_server_about_the_answers_form(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"title": "T", "type": ["object"], "additionalProperties": false}')
    schema = read_schema(str(tmp_path / "s.json"))
    assert response_format(True, None) is None
    assert response_format(False, None) == JSON
    asked = {"title": "T", "type": ["object"], "additionalProperties": False}
    assert response_format(False, schema)["json_schema"] == {"name": "T", "schema": asked, "strict": True}
    assert request_fields([], None) == {"temperature": 0}


# Files


@pytest.mark.parametrize(
    ("stored", "prompt"),
    [
        (b"Label: {text}\n", "Label: {text}"),
        ("\ufeffé {text}".encode(), "é {text}"),
        (b"#!/usr/bin/env -S llmfilter -m gpt-4o-mini -p\nLabel {a}\n", "Label {a}"),
        ("\ufeff#!/usr/bin/env -S llmfilter -p\r\nLabel {a}\r\n".encode(), "Label {a}"),
    ],
)
def test_a_prompt_file_is_read_as_utf8_without_its_first_line_and_last_newline(
    stored: bytes, prompt: str, tmp_path: Path
) -> None:
    (tmp_path / "prompt.md").write_bytes(stored)
    assert parse_prompt(read_file("-p", str(tmp_path / "prompt.md"))) == prompt
    assert read_system("@" + str(tmp_path / "prompt.md")) == prompt


@pytest.mark.parametrize("text", ["Be brief.", "user@host", " @file", "", "Be brief.\n"])
def test_a_system_prompt_without_an_at_is_the_text_itself(text: str) -> None:
    assert read_system(text) == text


def test_a_file_that_cannot_be_read_is_named_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "latin1").write_bytes(b"caf\xe9")
    assert complaint(read_file, "-p", str(tmp_path / "none")) == f"-p {tmp_path}/none: No such file or directory"
    assert complaint(read_file, "-p", str(tmp_path)) == f"-p {tmp_path}: Is a directory"
    assert "not UTF-8 at byte 3" in complaint(read_system, f"@{tmp_path}/latin1")
    assert complaint(read_schema, str(tmp_path / "none")).startswith("--schema ")


# -f, --text, --schema


@pytest.mark.parametrize(
    ("typed", "kept"), [("b", ["b"]), ("a,b", ["a", "b"]), (" b , a ", ["a", "b"]), ("b,b", ["b"])]
)
def test_fields_are_names_between_commas(typed: str, kept: list[str]) -> None:
    checks = make_checks(make_parser().parse_args(["-f", typed]), None)
    assert list(parse_json(checks.parse('{"a":1,"b":2}')[0])) == kept


@pytest.mark.parametrize("typed", ["", ",", "a,", "a,,b", " "])
def test_an_empty_name_among_the_fields_is_refused(typed: str) -> None:
    assert "-f" in complaint(make_checks, make_parser().parse_args(["-f", typed]), None)


def test_text_has_neither_fields_nor_schema(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "object"}')
    assert "--text" in complaint(make_checks, make_parser().parse_args(["--text", "-f", "a"]), None)
    assert "--text" in complaint(
        make_checks, make_parser().parse_args(["--text"]), read_schema(str(tmp_path / "s.json"))
    )


# The cache's place


@pytest.mark.parametrize(
    ("named", "environ", "folder"),
    [
        ("/data/c", {"XDG_CACHE_HOME": "/x"}, "/data/c"),
        ("c", {}, "c"),
        ("~/c", {}, "~/c"),
        (None, {"XDG_CACHE_HOME": "/x"}, "/x/llmfilter"),
        (None, {"XDG_CACHE_HOME": "relative"}, "~/.cache/llmfilter"),
        (None, {"XDG_CACHE_HOME": ""}, "~/.cache/llmfilter"),
        (None, {}, "~/.cache/llmfilter"),
        ("", {}, "~/.cache/llmfilter"),
    ],
)
def test_where_the_cache_is(named: str | None, environ: dict[str, str], folder: str) -> None:
    assert cache_folder(named, environ) == Path(folder).expanduser()


def test_a_cache_and_no_cache_contradict_each_other(tmp_path: Path) -> None:
    args = make_parser().parse_args(["--no-cache", "--cache", str(tmp_path)])
    assert "give one of them" in complaint(open_cache, args, {})


def test_a_dry_run_leaves_no_new_folder_behind(tmp_path: Path) -> None:
    open_cache(make_parser().parse_args(["-n", "--cache", str(tmp_path / "c")]), {})
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home_is_told_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    message = complaint(open_cache, make_parser().parse_args([]), {})
    assert message.startswith("the cache ~/.cache/llmfilter can't be opened (")
    assert message.endswith(": give another folder with --cache, or --no-cache")


# The first record's keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b'{"title": 1, "text": 2}\n{"x": 3}\n', ["title", "text"]),
        (b'\xef\xbb\xbf{"a": 1}\r\n', ["a"]),
        (b'{"a": 1}', ["a"]),
        (b"[]\n", None),
        (b'{"cut": "off', None),
        (b"", None),
    ],
)
def test_the_first_records_keys_are_peeked_at_for_a_message(data: bytes, keys: list[str] | None) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"before\n" + data)
        file.seek(7)
        assert peek_keys(file.fileno()) == keys
        assert file.tell() == 7
        assert file.read() == data


def test_nothing_is_taken_from_a_pipe_for_a_message() -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as reader, open(write_end, "wb", buffering=0) as writer:
        writer.write(b'{"a":1}\n')
        assert peek_keys(read_end) is None
        assert reader.readline() == b'{"a":1}\n'
