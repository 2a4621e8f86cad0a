"""schema: what is asked of the server, and what is checked here."""

import json
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmfilter.answers.schema import Schema, allows_strict
from llmfilter.errors import UsageError

# As pydantic writes models: a nested one under $defs, an enum, an optional field, a list of models.
PYDANTIC: dict[str, Any] = {
    "$defs": {
        "Mood": {"enum": ["good", "bad"], "title": "Mood", "type": "string"},
        "Place": {
            "properties": {
                "name": {"title": "Name", "type": "string", "minLength": 1},
                "zip": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            },
            "required": ["name"],
            "title": "Place",
            "type": "object",
        },
    },
    "properties": {
        "mood": {"$ref": "#/$defs/Mood"},
        "stars": {"minimum": 1, "maximum": 5, "type": "integer"},
        "places": {"items": {"$ref": "#/$defs/Place"}, "type": "array"},
    },
    "required": ["mood", "stars", "places"],
    "title": "Review",
    "type": "object",
}


def make(document: Any) -> Schema:
    return Schema(json.dumps(document).encode(), "answer.json")


GOOD: dict[str, Any] = {"mood": "good", "stars": 5, "places": [{"name": "Rome", "zip": 184}, {"name": "Oslo"}]}


@pytest.mark.parametrize(
    "change",
    [{}, {"stars": 1.0}, {"places": []}, {"places": [{"name": "X", "zip": None}]}, {"more": 12345678901234567890123}],
)
def test_a_value_that_satisfies_the_schema_has_no_faults(change: dict[str, Any]) -> None:
    assert make(PYDANTIC).faults(GOOD | change) == []


@pytest.mark.parametrize(
    ("change", "places"),
    [
        ({"mood": "fair"}, [("/mood", "fair")]),
        ({"stars": 6}, [("/stars", "5")]),
        ({"stars": "5"}, [("/stars", "integer")]),
        ({"stars": True}, [("/stars", "integer")]),
        ({"stars": 4.5}, [("/stars", "integer")]),
        ({"places": [{"name": "Rome"}, {"zip": 1}]}, [("/places/1", "name")]),
        ({"places": [{"name": ""}]}, [("/places/0/name", "1")]),
        ({"mood": "fair", "stars": 0}, [("/mood", "fair"), ("/stars", "minimum of 1")]),
    ],
)
def test_each_fault_names_its_place_and_what_was_wanted(change: dict[str, Any], places: list[tuple[str, str]]) -> None:
    faults = make(PYDANTIC).faults(GOOD | change)
    assert len(faults) == len(places)
    for fault, (place, word) in zip(sorted(faults), places, strict=True):
        assert fault.startswith(f"at {place}: ")
        assert word in fault


def test_a_missing_property_is_named() -> None:
    assert make(PYDANTIC).faults({"mood": "good", "stars": 5}) == ['"places" is a required property']


def test_an_older_draft_is_obeyed_where_the_schema_names_it() -> None:
    pair = {"items": [{"type": "integer"}, {"type": "string"}]}
    draft_7 = make({"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"pair": pair}})
    assert draft_7.faults({"pair": [1, 2]}) == ['at /pair/1: 2 is not of type "string"']


def test_a_fault_is_no_longer_than_a_line() -> None:
    """It goes into the error line and, with re-asking, to the model, which has just sent the value."""
    (fault,) = make({"properties": {"mood": {"enum": ["good"]}}}).faults({"mood": "x" * 100_000})
    assert fault.startswith('at /mood: "xxx')
    assert fault.endswith('is not one of "good"')
    assert len(fault) <= 1_000


# Bad schema files


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ["not JSON"]),
        (b'{"type": "object",\n "required": [a]}', ["not JSON", "line 2 column 15"]),
        (b'{"type": "\xff"}', ["not JSON"]),
        (b"[]", ["object"]),
        (b'"object"', ["object"]),
        (b'{"type": "strin"}', ["at /type", "strin"]),
        (b'{"properties": {"a": {"type": "strin"}}}', ["at /properties/a/type", "strin"]),
        (b'{"properties": {"a": {"minimum": "5"}}}', ["at /properties/a/minimum", '"5"']),
        (b'{"properties": {"a": {"pattern": "["}}}', ["at /properties/a/pattern", "regex"]),
        (b'{"required": "a"}', ["at /required"]),
        (b'{"properties": {"a": {"$ref": "#/$defs/Nope"}}}', ["/$defs/Nope"]),
        (b'{"$ref": "other.json"}', ["other.json"]),
        (b'{"$schema": "http://nowhere.invalid/draft"}', ["http://nowhere.invalid/draft"]),
        (b'{"properties": {"a": {"maximum": 1e400}}}', ["can't be sent", "too large"]),
        (b'{"title": "\\ud800", "type": "object"}', ["can't be sent", "not Unicode"]),
        (b'{"items":' * 252 + b"{}" + b"}" * 252, ["can't be sent", "nested too deeply"]),
        (b'{"items":' * 1000 + b"{}" + b"}" * 1000, ["can't be sent", "nested too deeply"]),
        (b"{}", ["checks nothing"]),
        (b'{"title": "Answer", "label": "spam"}', ["checks nothing", '"properties": {"label"']),
    ],
)
def test_a_bad_schema_is_a_usage_error_that_names_file_and_place(text: bytes, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        Schema(text, "answer.json")
    message = str(caught.value)
    assert message.startswith("--schema answer.json: ")
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


SCHEMA: dict[str, Any] = {"type": "object", "required": ["a"]}


@pytest.mark.parametrize(
    ("wrapper", "path"),
    [
        ({"name": "x", "strict": True, "schema": SCHEMA}, ".schema"),
        ({"schema": SCHEMA}, ".schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, ".json_schema.schema"),
        ({"json_schema": {"name": "x", "schema": SCHEMA}}, ".json_schema.schema"),
        ({"type": "json_schema", "name": "x", "schema": SCHEMA}, ".schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            ".response_format.json_schema.schema",
        ),
        ({"type": "function", "function": {"name": "f", "parameters": SCHEMA}}, ".function.parameters"),
        ({"name": "f", "input_schema": SCHEMA}, ".input_schema"),
    ],
)
def test_a_schema_in_a_wrapper_is_refused_with_the_jq_that_takes_it_out(
    wrapper: dict[str, Any], path: str, tmp_path: Path
) -> None:
    assert run_jq(complaint(wrapper), wrapper, tmp_path) == SCHEMA
    assert f"jq {path} " in complaint(wrapper)


@pytest.mark.parametrize("defs", [{}, {"$defs": {"P": SCHEMA}}])
def test_a_schema_of_a_list_is_refused_with_the_jq_that_makes_one_of_an_object(
    defs: dict[str, Any], tmp_path: Path
) -> None:
    listed = {"type": "array", "items": {"$ref": "#/$defs/P"} if defs else SCHEMA, **defs}
    schema = make(run_jq(complaint(listed), listed, tmp_path))
    assert schema.faults({"items": [{"a": 1}]}) == []
    assert schema.faults({"items": [{}]})


def run_jq(message: str, document: Any, folder: Path) -> Any:
    """What the command in a message makes of a document."""
    (folder / "answer.json").write_text(json.dumps(document))
    subprocess.run(message[message.index("jq ") :], shell=True, check=True, cwd=folder)
    return json.loads((folder / "new-schema.json").read_bytes())


def complaint(document: Any) -> str:
    with pytest.raises(UsageError) as caught:
        make(document)
    return str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        {"type": "array"},
        {"type": "string"},
        {"type": ["array", "null"]},
        {"enum": ["good", "bad"]},
        {"const": 1},
        {"$ref": "#/$defs/Mood", "$defs": {"Mood": {"enum": ["good"]}}},
        {"anyOf": [{"type": "string"}, {"type": "array"}]},
        {"allOf": [{"required": ["a"]}, {"type": "array"}]},
        {"oneOf": [False]},
    ],
)
def test_a_schema_that_no_object_satisfies_is_refused(document: dict[str, Any]) -> None:
    assert "no JSON object satisfies it" in complaint(document)


@pytest.mark.parametrize(
    "document",
    [
        {"type": "object"},
        {"type": ["object", "null"]},
        {"properties": {"schema": {"type": "array"}}},
        {"required": ["schema"], "schema": SCHEMA},
        {"enum": [1, {"a": 1}]},
        {"const": {}},
        {"$ref": "#/$defs/P", "$defs": {"P": SCHEMA}},
        {"anyOf": [{"type": "string"}, {"type": "object"}]},
        {"anyOf": [{"$ref": "#"}, {"type": "object"}]},
        {"not": {"required": ["a"]}},
        json.loads('{"type":"object","properties":{"a":' * 125 + "{}" + "}}" * 125),
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": SCHEMA}},
        PYDANTIC,
    ],
)
def test_a_schema_that_some_object_satisfies_is_taken(document: dict[str, Any]) -> None:
    schema = make(document)
    assert schema.document == document
    assert orjson.dumps(schema.response_format())


# What is asked


def test_the_server_is_asked_for_the_schema_as_it_is() -> None:
    assert make(PYDANTIC).response_format() == {
        "type": "json_schema",
        "json_schema": {"name": "Review", "schema": PYDANTIC},
    }


def test_strict_is_asked_for_where_the_schema_allows_it() -> None:
    closed = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    asked = {"name": "answer", "schema": closed, "strict": True}
    assert make(closed).response_format() == {"type": "json_schema", "json_schema": asked}


@pytest.mark.parametrize(
    ("title", "name"),
    [("Review", "Review"), ("a b/c", "a_b_c"), ("Ünï", "_n_"), ("", "answer"), (None, "answer"), ("x" * 99, "x" * 64)],
)
def test_the_name_is_one_that_servers_take(title: str | None, name: str) -> None:
    document = SCHEMA if title is None else {**SCHEMA, "title": title}
    assert make(document).response_format()["json_schema"]["name"] == name


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "allowed"),
    [
        (closed(), True),
        (closed(a=TEXT, b=TEXT), True),
        (closed(a=closed(b=TEXT)), True),
        (closed(a={"type": "array", "items": closed(b=TEXT)}), True),
        (closed(a={"anyOf": [closed(b=TEXT), {"type": "null"}]}), True),
        (closed(a={"enum": [{"type": "object"}]}, b={"const": {"properties": {}}}), True),
        (closed(properties=TEXT, required=TEXT, type=TEXT, enum=TEXT), True),
        (closed(a={"$ref": "#/$defs/P"}) | {"$defs": {"P": closed(b=TEXT)}}, True),
        (closed(a={"type": ["string", "null"]}), True),
        (closed(a={"$ref": "#/$defs/P"}) | {"$defs": {"P": {"type": "object", "properties": {"b": TEXT}}}}, False),
        ({"type": "object"}, False),
        ({"properties": {"a": TEXT}, "required": ["a"]}, False),
        (closed(a=TEXT) | {"required": []}, False),
        (closed(a=TEXT) | {"additionalProperties": True}, False),
        (closed(a=TEXT) | {"additionalProperties": TEXT}, False),
        (closed(a={"type": "object"}), False),
        (closed(a={"type": "array", "items": {"type": "object"}}), False),
        (closed(a={"anyOf": [{"type": "object", "properties": {"b": TEXT}}, TEXT]}), False),
        (closed(enum={"type": "object"}), False),
        (closed(a={"type": ["object", "null"]}), False),
        (PYDANTIC, False),
    ],
)
def test_strict_needs_every_object_closed_and_complete(schema: dict[str, Any], allowed: bool) -> None:
    assert allows_strict(schema) is allowed


# Nothing in a schema reaches network or disk


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"$ref": "http://127.0.0.1:9/a.json"}}}, "bundle it into $defs"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "bundle it into $defs"),
        ({"properties": {"a": {"$ref": "other.json#/a"}}}, "bundle it into $defs"),
        ({"$id": "http://a.test/b", "properties": {"a": {"$ref": "c"}}}, "bundle it into $defs"),
        ({"properties": {"a": {"$dynamicRef": "http://127.0.0.1:9/#x"}}}, "bundle it into $defs"),
        ({"$schema": "http://127.0.0.1:9/meta.json", "type": "object"}, "is not a known draft of JSON Schema"),
        ({"properties": {"a": {"$ref": "#/$defs/Foo<T>"}}, "$defs": {"Foo<T>": {"type": "string"}}}, "%3C"),
        ({"properties": {"a": {"type": "string", "nullable": True}}}, '{"type": ["string", "null"]}'),
    ],
)
def test_what_reaches_beyond_a_schema_or_means_nothing_is_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(schema)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"},
        {"$id": "http://a.test/b", "properties": {"a": {"$ref": "http://a.test/b#/$defs/x"}}, "$defs": {"x": {}}},
        {"$id": "http://a.test/b", "properties": {"a": {"$ref": "c"}}, "$defs": {"x": {"$id": "c", "type": "string"}}},
        {"properties": {"nullable": {"type": "boolean"}, "$ref": {"type": "string"}}},
        {"properties": {"a": {"$ref": "#"}}},
        {"properties": {"a": {"$ref": "#/$defs/Foo%3CT%3E"}}, "$defs": {"Foo<T>": {"type": "string"}}},
    ],
)
def test_what_stays_within_a_schema_is_taken(schema: dict[str, Any]) -> None:
    make(schema)


def test_formats_are_checked() -> None:
    (fault,) = make({"properties": {"day": {"type": "string", "format": "date"}}}).faults({"day": "yesterday"})
    assert "date" in fault


def doubling(levels: int) -> dict[str, Any]:
    defs: dict[str, Any] = {f"l{level}": {"anyOf": [{"$ref": f"#/$defs/l{level + 1}"}] * 2} for level in range(levels)}
    return {"properties": {"a": {"$ref": "#/$defs/l0"}}, "$defs": {**defs, f"l{levels}": {"type": "integer"}}}


def test_references_that_double_are_refused_before_they_take_minutes() -> None:
    with pytest.raises(UsageError, match="references that double"):
        make(doubling(30))
    make(doubling(5))


def test_numbers_beyond_64_bits_are_sent_and_checked_exactly() -> None:
    large = 12345678901234567890123
    schema = make({"type": "object", "properties": {"n": {"enum": [large]}}})
    assert str(large).encode() in orjson.dumps(schema.response_format())
    assert not schema.faults({"n": float(large)}, b'{"n":%d}' % large)
    assert schema.faults({"n": float(large)}, b'{"n":%d}' % (large + 1))


@pytest.mark.parametrize(
    "inner",
    [{"oneOf": [{"type": "string"}]}, {"$ref": "#/$defs/x", "description": "x"}, {"not": {"type": "null"}}],
)
def test_strict_mode_is_not_asked_for_what_it_refuses(inner: dict[str, Any]) -> None:
    assert not allows_strict({"type": "object", "properties": {"a": inner}, "required": ["a"], **CLOSED})
    assert (
        "strict" not in make({"$ref": "#/$defs/x", "$defs": {"x": {"type": "object"}}}).response_format()["json_schema"]
    )


CLOSED = {"additionalProperties": False}
