"""prompt: record → request body."""

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import compact, exact, numbers, values

from llmfilter.errors import RowError, UsageError
from llmfilter.input.request import Prompt
from llmfilter.input.template import Field, Template, parse_field, parse_prompt, refuse_fixed
from llmfilter.jsontext import parse_json


def messages(prompt: Prompt, raw: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(prompt.body(parse_json(raw), raw.encode()))["messages"]
    return found


def fill(template: str, raw: str) -> str:
    """What a prompt becomes for one record."""
    (message,) = messages(Prompt(Template(template), None, "m", {}), raw)
    return str(message["content"])


def fault(template: str, raw: str) -> str:
    with pytest.raises(RowError) as caught:
        fill(template, raw)
    assert caught.value.kind == "template"
    return caught.value.message


# Placeholders


@settings(deadline=None)
@given(st.lists(st.sampled_from(list('{}.a_0 "\\\n$')) | st.text(max_size=3)).map("".join))
@example('{"label": "spam"} \\d{3} {0} {} { a } {a.} {.a} {a b} {{ a }} %s $a é\u2028')
def test_text_without_placeholders_comes_out_as_it_is(text: str) -> None:
    literal = re.sub(r"\{(?=[A-Za-z_])", "{ ", text)
    assert Template(literal).placeholders == []
    assert fill(literal, "{}") == literal


pieces = st.lists(st.sampled_from(["{a}", "{b}", "{{a}}", "{", "}", "\\", '"', "é", "\n", "\\1"]), max_size=5).map(
    "".join
)


@settings(deadline=None)
@given(pieces, pieces)
def test_a_value_goes_in_as_it_is_and_is_never_expanded_again(a: str, b: str) -> None:
    raw = json.dumps({"a": a, "b": b})
    assert fill("<{a}{b}|{a}>", raw) == f"<{a}{b}|{a}>"


@given(pieces, st.none() | pieces, st.booleans())
def test_each_body_begins_with_the_same_head(user: str, system: str | None, has_own: bool) -> None:
    templates = None if has_own else Template(user), None if system is None else Template(system)
    prompt = Prompt(*templates, "m", {"seed": 1})
    for raw in ('{"a":"","b":"","messages":[{}]}', '{"a":"x","b":"\\n","messages":[{"role":"user"}]}'):
        body = prompt.body(parse_json(raw), raw.encode())
        assert body.startswith(prompt.head)
        assert json.loads(body)["seed"] == 1


@settings(deadline=None)
@given(numbers)
@example("-0")
@example("18446744073709551616")
def test_a_number_stands_as_in_the_input(number: str) -> None:
    assert fill("{n}", f'{{"n": {number}}}') == number
    assert fill("{n}", f'{{"n": {number}, "odd": 1e400}}') == number


@settings(deadline=None, max_examples=150)
@given(values)
def test_a_value_that_is_no_text_goes_in_as_compact_json(value: str) -> None:
    parsed = exact(value)
    wanted = compact(parsed) if type(parsed) is not str else parsed
    assert fill("{v}", f'{{"v": {value}}}') == wanted


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{a}", "x"),
        ("{{a}}", "{a}"),
        ("{{a.b}} {a}", "{a.b} x"),
        ("{{{a}}}", "{{a}}"),
        ("{{a} {a}}", "{x x}"),
        ('{"k": {a}}', '{"k": x}'),
        ("{o.p}", "1.50"),
        ("{o.q.r-s}", "deep"),
        ("{o}", '{"p":1.50,"q":{"r-s":"deep"}}'),
        ("{l}", '[1,"é",null]'),
        ("{t}{n}", "truenull"),
        ("{_x-1}", "dash"),
        ("{empty}", ""),
        ("{s}", "\ud800"),
        ("{A}", "capital"),
    ],
)
def test_placeholders(template: str, text: str) -> None:
    raw = (
        '{"a": "x", "o": {"p": 1.50, "q": {"r-s": "deep"}}, "l": [1, "\\u00e9", null], "t": true, "n": null,'
        ' "_x-1": "dash", "empty": "", "s": "\\ud800", "A": "capital"}'
    )
    assert fill(template, raw) == text


@pytest.mark.parametrize("value", ['"x"', "1.0"])
def test_a_dot_is_always_a_step_never_part_of_a_key(value: str) -> None:
    assert fill("{a.b}", f'{{"a.b": {value}, "a": {{"b": "path"}}}}') == "path"
    assert "a.b" in fault("{a.b}", f'{{"a.b": {value}}}')


@pytest.mark.parametrize(
    ("template", "raw", "words"),
    [
        ("{body}", '{"title": 1, "text": 2}', ["body", "title, text"]),
        ("{a.b.c}", '{"a": {"b": 1}, "z": 0}', ["a.b.c", "a, z"]),
        ("{a.b}", '{"a": [1]}', ["a.b"]),
        ("{a.0}{a.b}", '{"a": "text"}', ["a.b"]),
        ("{a}", "{}", ["a", "none"]),
    ],
)
def test_a_missing_field_is_named_with_those_that_are_there(template: str, raw: str, words: list[str]) -> None:
    message = fault(template, raw)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("template", "raw", "hint"),
    [
        ("{txet}", '{"id": 1, "text": 2}', "did you mean {text}?"),
        ("{meta.titel}", '{"meta": {"title": 1}}', "did you mean {meta.title}?"),
        ("{mata.title}", '{"meta": {"title": 1}}', "did you mean {meta.title}?"),
        ("{my_field}", '{"my field": 1}', None),
        ("{text}", '{"id": 1}', None),
        ("{text}", "{}", None),
    ],
)
def test_a_field_that_was_meant_is_suggested_as_it_is_written(template: str, raw: str, hint: str | None) -> None:
    message = fault(template, raw)
    assert message.endswith(f"; {hint}") if hint else "did you mean" not in message


def test_text_that_is_not_unicode_cannot_go_in_as_json() -> None:
    assert "not Unicode" in fault("{v}", '{"v": ["\\ud800"]}')


@pytest.mark.parametrize("depth", [100, 300, 1_000])
def test_nesting_goes_in_or_is_refused_for_what_it_is(depth: int) -> None:
    value = "[" * depth + "1.0" + "]" * depth
    try:
        assert fill("{v}", f'{{"v": {value}}}') == value
    except RowError as error:
        assert "nested" in error.message


# Requests


@pytest.mark.parametrize(
    ("prompt", "body"),
    [
        (
            Prompt(Template("Is it spam? {text}"), Template("Be brief."), "gpt", {"temperature": 0, "stop": ["é"]}),
            '{"model":"gpt","messages":[{"role":"system","content":"Be brief."},'
            '{"role":"user","content":"Is it spam? \\"Buy\\" é\\n"}],"temperature":0,"stop":["é"]}',
        ),
        (
            Prompt(Template("{id}"), Template("On {text}"), "m/x:1", {}),
            '{"model":"m/x:1","messages":[{"role":"system","content":"On \\"Buy\\" é\\n"},'
            '{"role":"user","content":"1.0"}]}',
        ),
        (
            Prompt(None, None, "m", {"seed": 1}),
            '{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"é"}]}],"seed":1}',
        ),
        (
            Prompt(None, Template("S {id}"), "m", {}),
            '{"model":"m","messages":[{"role":"system","content":"S 1.0"},'
            '{"role":"user","content":[{"type":"text","text":"é"}]}]}',
        ),
    ],
)
def test_request_bodies_are_these_bytes(prompt: Prompt, body: str) -> None:
    """They are part of the cache's key: changing them makes every user pay again."""
    own = '[{"role": "user", "content": [{"type": "text", "text": "é"}]}]'
    raw = f'{{"id": 1.0, "text": "\\"Buy\\" é\\n", "messages": {own}}}'
    assert prompt.body(parse_json(raw), raw.encode()).decode() == body


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("fields", [{}, {"temperature": 0, "stop": ["]}"]}])
def test_a_conversation_goes_on_at_the_end_of_the_messages(own: bool, fields: dict[str, Any]) -> None:
    raw = '{"messages": [{"role": "user", "content": "]}"}]}'
    prompt = Prompt(None if own else Template("{messages}"), None, "m", fields)
    body = prompt.body(parse_json(raw), raw.encode())
    longer = json.loads(prompt.extend(body, [("assistant", '{"a":\ud800'), ("user", "Again.")]))
    first = json.loads(body)
    turns = [{"role": "assistant", "content": '{"a":\ud800'}, {"role": "user", "content": "Again."}]
    assert longer == first | {"messages": first["messages"] + turns}


@pytest.mark.parametrize("fields", [{"seed": Field("odd")}, {"seed": Field("odd"), "stop": ["]}"]}])
@pytest.mark.parametrize("odd", ['"]}"', '{"]}": ["]}"]}', "1.50"])
def test_a_conversation_goes_on_before_a_records_own_fields(fields: dict[str, Any], odd: str) -> None:
    raw = f'{{"text": "é]}}", "odd": {odd}}}'
    prompt = Prompt(Template("{text}"), Template("é"), "é", fields)
    body = prompt.body(parse_json(raw), raw.encode())
    longer = prompt.extend(body, [("assistant", "{"), ("user", "Again.")])
    added = [{"role": "assistant", "content": "{"}, {"role": "user", "content": "Again."}]
    assert exact(longer)["messages"][2:] == added
    assert longer.endswith(body[body.index(b'"seed"') :])
    assert longer.startswith(body[: body.index(b'],"seed"')])


# Fields of the request from fields of the record


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{a}", Field("a")),
        ("{a.b-c}", Field("a.b-c")),
        ("{{a}}", "{a}"),
        ("{a}{b}", None),
        (" {a}", None),
        ("{a}\n", None),
        ("{}", None),
        ('{"a": 1}', None),
        ("{0}", None),
    ],
)
def test_one_placeholder_and_nothing_else_is_a_field(text: str, field: Field | str | None) -> None:
    assert parse_field(text) == field


@settings(deadline=None, max_examples=150)
@given(values)
@example('"\\ud800"')
@example("-0")
@example("18446744073709551616")
def test_a_field_of_the_record_goes_out_as_the_same_json(value: str) -> None:
    raw = f'{{"v": {value}, "text": "x"}}'
    prompt = Prompt(Template("{text}"), None, "m", {"temperature": 0, "v": Field("v"), "seed": 1})
    try:
        body = prompt.body(parse_json(raw), raw.encode())
    except RowError as error:  # orjson can't write it: a lone surrogate inside of a list or object
        assert (error.kind, "ud" in value) == ("template", True)
    else:
        wanted = exact(value)
        assert exact(body)["v"] == wanted
        assert body.startswith(prompt.head)
        assert body.endswith(b',"seed":1}')


def test_a_field_that_the_record_lacks_is_a_template_error() -> None:
    prompt = Prompt(Template("{text}"), None, "m", {"seed": Field("sede")})
    with pytest.raises(RowError, match=r"no field sede; it has: text, seed; did you mean \{seed\}\?") as caught:
        prompt.body({"text": "x", "seed": 1}, b'{"text":"x","seed":1}')
    assert caught.value.kind == "template"


@pytest.mark.parametrize("odd", ["1", "1e400", '"\\ud800"'])
def test_a_records_own_messages_go_out_with_their_numbers(odd: str) -> None:
    own = '[{"role":"user","content":"hi","top":5,"big":12345678901234567890123,"f":1.0}]'
    raw = f'{{"odd": {odd}, "messages": {own}}}'
    body = Prompt(None, None, "m", {}).body(parse_json(raw), raw.encode())
    assert exact(body)["messages"] == exact(own)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ('{"text": 1, "id": 2}', ["no list `messages`", "-p", "text, id"]),
        ('{"messages": "hi"}', ["no list `messages`"]),
        ('{"messages": ["hi"]}', ["no list `messages`"]),
        ('{"messages": []}', ["empty"]),
        ('{"messages": [{"content": "\\ud800"}]}', ["not Unicode"]),
    ],
)
def test_own_messages_that_cannot_be_sent_are_a_template_error(raw: str, words: list[str]) -> None:
    with pytest.raises(RowError) as caught:
        Prompt(None, None, "m", {}).body(parse_json(raw), raw.encode())
    assert caught.value.kind == "template"
    assert [word for word in words if word not in caught.value.message] == []


# Prompt files


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Label {a}\n", "Label {a}"),
        ("Label {a}", "Label {a}"),
        ("Label\n\n", "Label\n"),
        ("Label\r\n", "Label"),
        ("#!/usr/bin/env -S llmfilter -m gpt-4o-mini -p\nLabel {a}\n", "Label {a}"),
        ("#!/bin/x\r\nLabel\r\n", "Label"),
        ("#!/bin/x", ""),
        ("# Title\nLabel", "# Title\nLabel"),
        ("\n#!/bin/x\n", "\n#!/bin/x"),
        ("", ""),
    ],
)
def test_a_prompt_file_loses_its_interpreter_line_and_one_newline(text: str, prompt: str) -> None:
    assert parse_prompt(text) == prompt


def test_a_prompt_without_placeholders_is_told_which_keys_there_are() -> None:
    with pytest.raises(UsageError, match=r"\{title\}.*title, text"):
        refuse_fixed(["title", "text"])
    with pytest.raises(UsageError, match=r"no placeholder.*\{text\}"):
        refuse_fixed(None)
