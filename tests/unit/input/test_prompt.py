"""prompt: record → request body."""

import json
import re
import subprocess
from typing import Any

import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from strategies import compact, exact, numbers, values

from llmfilter.errors import RowError, UsageError, attempt
from llmfilter.input.fields import Field, OptionText, parse_field, request_fields
from llmfilter.input.records import parse_record
from llmfilter.input.request import Prompt
from llmfilter.input.template import Template, parse_prompt, refuse_fixed
from llmfilter.input.values import jq_path
from llmfilter.jsontext import parse_json


def messages(prompt: Prompt, raw: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(prompt.body(parse_json(raw), raw.encode()))["messages"]
    return found


def fill(template: str, raw: str, first: str | None = None) -> str:
    """What a prompt becomes for one record, which is also the first unless that is given."""
    prompt = Prompt(Template(template), None, "m", {})
    prompt.settle(parse_json(first or raw))
    (message,) = messages(prompt, raw)
    return str(message["content"])


def said(template: str, first: str, **fields: str) -> list[str]:
    """What people are told about a prompt when the first record is known."""
    options = request_fields([f"{key}={value}" for key, value in fields.items()], None)
    prompt = Prompt(Template(template), None, "m", options)
    prompt.settle(parse_json(first))
    return prompt.notices.take()


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
    literal = re.sub(r"\{(?=[^\W\d]|\.\})", "{ ", text)
    assert Template(literal).placeholders == []
    assert fill(literal, "{}") == literal
    assert fill(literal, '{"z": 1}') == literal
    doubled = re.search(r'\{\{\s*"', literal) is not None
    assert len(said(literal, "{}")) == doubled
    assert said("{z}" + literal, '{"z": 1}')[:1] == said("{z}" + literal, "{}")[:1]


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
        try:
            body = prompt.body(parse_json(raw), raw.encode())
        except RowError:  # the pieces make up another field's name
            reject()
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
def test_a_key_with_dots_comes_before_a_path(value: str) -> None:
    assert fill("{a.b}", f'{{"a.b": {value}, "a": {{"b": "path"}}}}') == json.loads(
        f'"{value}"' if value[0] != '"' else value
    )
    assert fill("{a.b}", '{"a": {"b": "path"}}') == "path"
    assert fill("{a.b.c}", f'{{"a": {{"b.c": {value}, "b": {{"c": "path"}}}}}}') == value.strip('"')
    assert "a.b" in fault("{a.b}", '{"a": 1}')


OPEN = {
    "Review Text": "a",
    "评论": "b",
    "pre\u0301nom": "c",
    "हिन्दी": "d",
    "factual?": "e",
    "@timestamp": "f",
    "1st": "g",
    "price (USD)": "h",
    "_id": {"$oid": "i"},
    "user.name": "j",
    "items": [{"name": "k"}, "l"],
    "text": "m",
    " both ": "n",
    "it's": "o",
    "": "p",
    ".x": "q",
    "a-b c": "r",
    "id!": {"1": {"x y": "s"}},
    "user": {"name": "no"},
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{Review Text}{评论}{pre\u0301nom}{हिन्दी}{factual?}", "abcde"),
        ("{@timestamp}{1st}{price (USD)}{_id.$oid}{user.name}", "fghij"),
        ("{items.0.name}{items.1}{ text }{\ttext\u3000}", "klmm"),
        ("{ both }", "n"),
        ("{it's}{}{.x}{a-b c}{id!.1.x y}", "opqrs"),
        ("{{Review Text}} {{ text }} {{评论}} {{.}} {{}}", "{Review Text} { text } {评论} {.} {}"),
        ("{{{Review Text}}}", "{{Review Text}}"),
        ("{review text} {Review\nText} {items.2} {items.-1} {items.00} {items.0.nam}", None),
        (
            '{"text": {0}} {"Review Text"} \\d{1,3} {{nothing here}}',
            '{"text": {0}} {"Review Text"} \\d{1,3} {{nothing here}}',
        ),
    ],
)
def test_a_field_of_any_name_is_a_placeholder_where_the_first_record_has_it(template: str, text: str | None) -> None:
    raw = json.dumps(OPEN)
    if text is None:
        assert "no field items.2" in fault(template, raw)
    else:
        assert fill(template, raw) == text
        assert fill(template, raw, raw) == text


def test_the_first_record_decides_for_all_of_the_run() -> None:
    prompt = Prompt(Template("{a b}{x}{c d}"), None, "m", {})
    raws = [b"no record", b'{"x": 0}', b'{"x": 1, "c d": 2}']
    records = [attempt(parse_record, raw) for raw in raws]
    bodies = prompt.bodies(records, raws)
    assert [json.loads(each)["messages"][0]["content"] for each in bodies[1:]] == ["{a b}0{c d}", "{a b}1{c d}"]  # type: ignore[arg-type]
    prompt = Prompt(Template("{a b}{x}{c d}"), None, "m", {})
    bodies = prompt.bodies([records[0], records[2], records[1]], [raws[0], raws[2], raws[1]])
    assert json.loads(bodies[1])["messages"][0]["content"] == "{a b}12"  # type: ignore[arg-type]
    assert isinstance(bodies[2], RowError) and "no field c d; it has: x" in bodies[2].message


keys = st.text(st.characters(exclude_characters='{}"\r\n'), max_size=8).filter(lambda key: key != ".")


@settings(deadline=None)
@given(keys, keys, pieces)
@example("", "{", "x")
@example(" a", "a", "x")
@example("a.b", "a", "x")
@example("a.0", "a", "x")
@example("\ud800", "a", "x")
def test_any_key_of_the_first_record_can_be_named(key: str, other: str, value: str) -> None:
    first = {other: "other", key: value}
    raw = json.dumps(first)
    assert fill(f"<{{{key}}}>", raw) == f"<{value}>"
    assert fill(f"<{{{{{key}}}}}>", raw) == f"<{{{key}}}>"
    assert parse_field(f"{{{key}}}", first) == Field(key)
    prompt = Prompt(Template(f"<{{{key}}}>"), Template(f"{{{key}}}"), "m", {"x": OptionText(f"{{{key}}}")})
    (body,) = prompt.bodies([first], [raw.encode()])
    assert isinstance(body, bytes) and body.startswith(prompt.head)
    assert json.loads(body) == {
        "model": "m",
        "messages": [{"role": "system", "content": value}, {"role": "user", "content": f"<{value}>"}],
        "x": value,
    }


def test_a_dot_is_the_whole_record_with_its_own_bytes() -> None:
    raw = '{"a": 1.50, "b":[ 12345678901234567890123 ], "c": "\\u00e9"}'
    assert fill("<{.}>", raw) == f"<{raw}>"
    assert fill("{.}", '{".": "own"}') == "own"
    body = Prompt(Template("{a}"), None, "m", {"x": Field(".")}).body(parse_json(raw), raw.encode())
    assert body.endswith(b',"x":' + raw.encode() + b"}")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{Review Txt}",
            ["{Review Txt} is sent as it stands", "Review Text, text, lang", "did you mean {Review Text}?"],
        ),
        ("{review text}", ["did you mean {Review Text}?"]),
        ("{ Text }", ["{ Text } is sent", "did you mean {text}?"]),
        ("{{Review Txt}}", ["{{Review Txt}} is sent as it stands", "did you mean {Review Text}?"]),
        ("{{text}}", ["{{text}} sends {text} itself", "write {text} for the field", "Review Text, text, lang"]),
        ("{{ text }}", ["{{ text }} sends { text } itself", "write {text}"]),
        ("{{ Review Text }}", ["write {Review Text} for the field"]),
        ('{{"label": "x"}}', ["doubled braces", "no escaping"]),
        ('{{\n  "label": {{"x": 1}} }}', ["doubled braces"]),
    ],
)
def test_what_may_not_be_meant_as_it_is_sent_is_said_once(template: str, words: list[str]) -> None:
    (line,) = said(f"{template} {{text}} {template}", '{"Review Text": 1, "text": 2, "lang": 3}')
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize(
    "template", ['{"label": 1}', "{3} {1,3} {x: y}", "{{a}} {{frac}}", "{text} {lang}", "{tx}", '{"a": {"b": 1}}', "{}"]
)
def test_nothing_is_said_of_other_braces(template: str) -> None:
    assert said(template, '{"Review Text": 1, "text": 2, "lang": 3}') == []


def test_names_and_records_come_into_messages_in_sizes_that_can_be_read() -> None:
    (line,) = said(
        "{Review  Text}" + "{zz\x1b zz}" * 99,
        json.dumps({"Review Text\x1b": 1, **{f"k{n}" * 99: 1 for n in range(999)}}),
    )
    assert line.isprintable()
    assert len(line) < 6_000


def test_latex_has_a_way_out() -> None:
    assert fault("\\frac{a}{b} {text}", '{"text": 1}').endswith("it has: text; for the text {a} itself write {{a}}")
    assert fill("\\frac{{a}}{{b}} {text}", '{"text": 1}') == "\\frac{a}{b} 1"


@pytest.mark.parametrize(
    ("template", "raw", "words"),
    [
        ("{body}", '{"title": 1, "text": 2}', ["body", "title, text"]),
        ("{a.b.c}", '{"a": {"b": 1}, "z": 0}', ["a.b.c", "a, z"]),
        ("{a.b}", '{"a": [1]}', ["a.b"]),
        ("{a.0}{a.b}", '{"a": "text"}', ["a.0"]),
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
        ("{my_field}", '{"my field": 1}', "did you mean {my field}?"),
        ("{reviewText}", '{"Review Text": 1}', "did you mean {Review Text}?"),
        ("{a}", '{"ab": 1}', None),
        ("{a}", '{"A": 1}', "did you mean {A}?"),
        ("{x.y}", '{"X": {"Y": 1}}', "did you mean {X.Y}?"),
        ("{text}", '{"id": 1}', None),
        ("{text}", "{}", None),
    ],
)
def test_a_field_that_was_meant_is_suggested_as_it_is_written(template: str, raw: str, hint: str | None) -> None:
    message = fault(template, raw)
    assert message.endswith(f"; {hint}") if hint else "did you mean" not in message


@pytest.mark.parametrize("value", ['["\\ud800",1.0]', '{"\\udfff":[{"a":"é\\ud800"}],"n":-0}'])
def test_a_lone_surrogate_goes_in_as_an_escape_in_a_list_too(value: str) -> None:
    assert fill("{v}", f'{{"v": {value}}}') == value


@pytest.mark.parametrize("depth", [100, 300, 1_000])
def test_nesting_goes_in(depth: int) -> None:
    value = "[" * depth + "1.0" + "]" * depth
    assert fill("{v}", f'{{"v": {value}}}') == value


def test_a_null_in_a_text_is_said_once_with_its_line_and_the_way_out() -> None:
    prompt = Prompt(Template("{text} {meta.x y}"), None, "m", {"seed": Field("s")})
    raws = [b'{"text":"null","s":null,"meta":{"x y":[null]}}', b'{"text":null,"s":1,"meta":{"x y":null}}'] * 2
    bodies = prompt.bodies(list(map(parse_record, raws)), raws, first_line=7)
    assert json.loads(bodies[1])["messages"][0]["content"] == "null null"  # type: ignore[arg-type]
    assert prompt.notices.take() == [
        "line 8: {text} is null, and is sent as the word null; to leave such rows out: jq -c 'select(.text)'"
    ]


@pytest.mark.parametrize(
    ("name", "record", "path"),
    [
        ("text", {"text": None}, ".text"),
        ("Review Text", {"Review Text": None}, '.["Review Text"]'),
        ("评论", {"评论": None}, '.["评论"]'),
        ("a.b", {"a.b": None}, '.["a.b"]'),
        ("a.b", {"a": {"b": None}}, '.["a"]["b"]'),
        ("a.0.b c", {"a": [{"b c": None}]}, '.["a"][0]["b c"]'),
    ],
)
def test_how_jq_names_a_field(name: str, record: dict[str, Any], path: str) -> None:
    assert jq_path(name, record) == path
    selected = subprocess.run(
        ["jq", "-c", f"select({path} == null)"], input=json.dumps(record).encode(), capture_output=True, check=True
    )
    assert json.loads(selected.stdout) == record


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
        ("{.}", Field(".")),
        ("{评论}", Field("评论")),
        ("{a.0}", Field("a.0")),
        ("{a b}", None),
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
        (
            '{"messages": "hi"}',
            ["no list `messages`", "its `messages` is a string", '[{"role": "user", "content": "…"}]'],
        ),
        ('{"messages": ["hi"]}', ["no list `messages`", "a list of something else", '[{"role": "user"']),
        ('{"messages": []}', ["empty"]),
    ],
)
def test_own_messages_that_cannot_be_sent_are_a_template_error(raw: str, words: list[str]) -> None:
    with pytest.raises(RowError) as caught:
        Prompt(None, None, "m", {}).body(parse_json(raw), raw.encode())
    assert caught.value.kind == "template"
    assert [word for word in words if word not in caught.value.message] == []


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_prompt_takes_the_place_of_the_records_own(role: str) -> None:
    def roles(system: str | None, raw: str) -> list[str]:
        return [each["role"] for each in messages(Prompt(None, system and Template(system), "m", {}), raw)]  # type: ignore[arg-type]

    raw = json.dumps({"messages": [{"role": role, "content": "A"}, {"role": "user"}, {"role": role}]})
    assert roles(None, raw) == [role, "user", role]
    assert roles("B", raw) == ["system", "user", role]
    assert roles("B", '{"messages": [{"role": "user"}]}') == ["system", "user"]
    with pytest.raises(RowError, match="-s"):
        roles("B", json.dumps({"messages": [{"role": role}]}))


def test_a_list_that_ends_with_an_assistant_turn_is_said_once() -> None:
    prompt = Prompt(None, None, "m", {})
    raws = [b'{"messages":[{"role":"user"}]}', *[b'{"messages":[{"role":"user"},{"role":"assistant"}]}'] * 2]
    prompt.bodies(list(map(parse_record, raws)), raws, first_line=5)
    (line,) = prompt.notices.take()
    assert line.startswith("line 6: the record's `messages` end with an assistant turn")
    assert "jq -c '.messages |= .[:-1]'" in line


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
