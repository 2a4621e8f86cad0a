"""The fields of a request beside model and messages: what `-o` means. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from llmfilter.errors import UsageError
from llmfilter.input.template import Template, read_braces
from llmfilter.input.values import MISSING, find
from llmfilter.jsontext import is_deeper, is_exact, one_line, parse_json
from llmfilter.words import SAMPLES, printable

_BUILT = {"messages": "-p and -s", "model": "-m", "stream_options": "--stream", "n": None}  # what -o may not set
_DEPTH_MOST = 254  # what orjson writes


def request_fields(options: list[str], response_format: Any) -> dict[str, Any]:
    """Return the fields of a request beside model and messages: what is built, then what `-o` says."""
    fields: dict[str, Any] = {"temperature": 0, "response_format": response_format}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise UsageError(f"-o {option!r}: give KEY=VALUE, like -o max_tokens=500")
        if key != key.strip():
            raise UsageError(f"-o {option!r}: no blanks around the =: -o {key.strip()}={text.strip()}")
        if key in _BUILT:
            instead = f"use {_BUILT[key]}" if _BUILT[key] else f"each row is one answer; for several: {SAMPLES}"
            raise UsageError(f"-o {key}=…: llmfilter sets this field itself; {instead}")
        if key == "extra_body":
            raise UsageError("-o extra_body=…: it is openai-python's own: give its fields themselves, like -o top_k=5")
        fields[key] = parse_value(key, text)
        if key == "stream" and fields[key] is not False:
            raise UsageError("-o stream=…: only false can be given, for servers that stream unless told; else --stream")
    return {key: value for key, value in fields.items() if value is not None}


def parse_value(key: str, text: str) -> Any:
    """Return what the VALUE of `-o` stands for: a field of the record, JSON, or else text.

    JSON that Python's values can't hold (1e400, integers beyond 64 bits, lone surrogates) goes out as typed.
    """
    field = parse_field(text)
    if field is not None:
        return field
    try:
        value = parse_json(text)
    except ValueError:
        return OptionText(text) if "{" in text else text
    if is_deeper(text, _DEPTH_MOST):
        raise UsageError(f"-o {key}=…: the value is nested too deeply, in more than {_DEPTH_MOST} levels")
    return value if is_exact(text) else orjson.Fragment(one_line(text))


class Field(NamedTuple):
    """A request field whose value is a field of the record: the name of that."""

    name: str


class OptionText(str):
    """A value of `-o` that is no JSON and holds braces: what they mean, the first record tells."""

    def settle(self, first: Mapping[str, Any]) -> Field | str:
        """Return the Field that the text names, or the text that it stands for."""
        field = parse_field(self, first)
        return str(self) if field is None else field

    def doubts(self, first: Mapping[str, Any]) -> Iterator[str]:
        """Yield what to tell people of it: a field among other text is not filled in."""
        if parse_field(self, first) is None:
            for _, name in Template(self, first).placeholders:
                if find(name, first) is not MISSING:
                    yield f"{printable(f'{{{name}}}', 100)} is sent as it stands: a value is text, or one field alone"


def parse_field(text: str, first: Mapping[str, Any] | None = None) -> Field | str | None:
    """Return the Field for `{name}`, the text {name} for `{{name}}`, and None for all other text.

    first: the first record, by which other than plain names are judged; without it they are no field.
    """
    braces = read_braces(text, first or {})
    if braces is None or braces.field is None:
        return None
    return text[1:-1] if braces.is_doubled else Field(braces.field)
