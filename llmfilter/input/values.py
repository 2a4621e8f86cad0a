"""A record's values by their names, as they go into a text or stand as JSON. Pure.

A name is a key, or a path of keys and indices with dots between them.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from llmfilter.errors import RowError
from llmfilter.jsontext import dump_text, parse_exact
from llmfilter.words import did_you_mean, listed

WHOLE = "."  # the record itself
MISSING = object()
NAME = r'[^{}"\r\n]*'  # what can stand in braces
_INDEX_DIGITS = 9


def text_at(name: str, record: Mapping[str, Any], raw: bytes) -> str:
    """Return a field's value as it goes into a text; raise RowError(`template`)."""
    value = find(name, record)
    if isinstance(value, str):
        return value
    if value is MISSING:
        raise _missing(name, record, f"; for the text {{{name}}} itself write {{{{{name}}}}}")
    return _json_of(value, name, record, raw).decode()


def json_at(name: str, record: Mapping[str, Any], raw: bytes) -> bytes:
    """Return a field's value as JSON; raise RowError(`template`)."""
    value = look_up(name, record)
    return dump_text(value) if isinstance(value, str) else _json_of(value, name, record, raw)


def _json_of(value: Any, name: str, record: Mapping[str, Any], raw: bytes) -> bytes:
    """Return the value that the record has under a name, which is no text, as JSON."""
    if value is record:
        return raw
    if type(value) is int and value:
        return str(value).encode()
    if isinstance(value, bool) or value is None:
        return orjson.dumps(value)
    # Numbers must stand as in the input: 1.0, 1e5, -0 and 20 digits are not what Python prints.
    return dump_value(find(name, parse_exact(raw)))


def dump_value(value: Any) -> bytes:
    """Return a value of `parse_exact` as compact JSON in UTF-8; a lone surrogate stays an escape."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # nested too deeply for it, or such a surrogate
        pass
    if isinstance(value, dict):
        return b"{" + b",".join([dump_text(key) + b":" + dump_value(each) for key, each in value.items()]) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(dump_value, value)) + b"]"
    return dump_text(value)


def look_up(name: str, record: Mapping[str, Any]) -> Any:
    """Return the value that a record has under a key or at a path; raise RowError(`template`)."""
    value = find(name, record)
    if value is MISSING:
        raise _missing(name, record)
    return value


def find(name: str, record: Mapping[str, Any]) -> Any:
    """Return the value that a record has under a key or at a path, or MISSING.

    A key with dots in it comes before a path; behind a dot a number is a list's index.
    """
    value: Any = record
    rest: str | None = name
    while rest is not None:
        if isinstance(value, dict) and rest in value:
            return value[rest]
        segment, dot, behind = rest.partition(".")
        if isinstance(value, dict) and segment in value:
            value = value[segment]
        elif isinstance(value, list) and is_index(segment) and int(segment) < len(value):
            value = value[int(segment)]
        else:
            return record if name == WHOLE else MISSING
        rest = behind if dot else None
    return value


def jq_path(name: str, record: Mapping[str, Any]) -> str:
    """Return how jq names the field that `find` finds under a name: like .text or .["a b"][0]."""
    if name in record and name.isascii() and name.isidentifier():
        return f".{name}"
    steps = [name] if name in record else name.split(".")
    return "." + "".join(
        f"[{each if is_index(each) and at else dump_text(each).decode()}]" for at, each in enumerate(steps)
    )


def _missing(name: str, record: Mapping[str, Any], way_out: str = "") -> RowError:
    hint = did_you_mean(name, nameable(record), "{{{}}}")
    return RowError("template", f"the record has no field {name}; it has: {listed(record)}{hint or way_out}")


def nameable(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a placeholder can name: the record's keys, then those one level below."""
    for path in itertools.chain(record, _paths(record)):
        if re.fullmatch(NAME, path):
            yield path


def _paths(record: Mapping[str, Any]) -> Iterator[str]:
    for outer, value in record.items():
        if isinstance(value, dict):
            yield from (f"{outer}.{inner}" for inner in value)


def is_index(segment: str) -> bool:
    """Return whether a step of a path can be a list's index."""
    return segment.isascii() and segment.isdigit() and len(segment) <= _INDEX_DIGITS
