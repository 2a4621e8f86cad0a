"""The model's content → the one JSON object in it, or its text. Pure.

Whatever is ambiguous is refused, never guessed, and broken JSON is not repaired: a wrong answer
that parses costs more than one that is asked for again.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import orjson

from llmfilter.errors import RowError
from llmfilter.jsontext import drop_repeated, object_end, one_line, parse_json

_THINK, _THINK_END = "<think>", "</think>"
_STEPS_MOST = 10_000_000  # characters read in search of an object: keeps hostile text from costing n²


def extract(content: str) -> tuple[bytes, dict[str, Any]]:
    """Return the one JSON object in a content, in one line and parsed; raise RowError(`unparsable`).

    Of a key that comes twice the last value counts.

    Tried in this order: the whole; without a leading think block; from the first `{` to the last
    `}`, unless a `[` before or a `]` after it says that the object is only part of the answer.
    """
    try:
        value = orjson.loads(content)  # nearly always it is the whole
    except orjson.JSONDecodeError:
        return _search(content)
    if isinstance(value, dict):
        return one_line(drop_repeated(content, value)), value
    raise RowError("unparsable", "the answer is JSON, but not an object", raw=content)


def _search(content: str) -> tuple[bytes, dict[str, Any]]:
    fault = "it is empty"
    for text in _readings(content):
        try:
            value = parse_json(text)
        except ValueError as error:
            fault = str(error)
            continue
        if isinstance(value, dict):
            return one_line(drop_repeated(text, value)), value
        raise RowError("unparsable", "the answer is JSON, but not an object", raw=content)
    raise RowError("unparsable", f"the answer is not one JSON object: {fault}", raw=content)


def _readings(content: str) -> Iterator[str]:
    whole = content.strip()
    yield whole
    rest = drop_think(whole).strip()
    if rest != whole:
        yield rest
    start, end = rest.find("{"), rest.rfind("}")
    is_reasoning = rest.startswith(_THINK)  # a think block without an end: what it holds is a draft
    if not is_reasoning and 0 <= start < end and "[" not in rest[:start] and "]" not in rest[end:]:
        yield rest[start : end + 1]


def drop_think(text: str) -> str:
    """Return a text without a leading think block, also one whose opening tag the server's template swallowed."""
    head, end_tag, rest = text.partition(_THINK_END)
    if end_tag and (head.lstrip().startswith(_THINK) or not _is_in_object(text, len(head))):
        return rest
    return text


def _is_in_object(text: str, at: int) -> bool:
    """Return whether an object that starts before `at` ends behind it: what stands there is its data."""
    starts_most = _STEPS_MOST // len(text) + 1
    starts = [match.start() for match in islice(re.finditer("{", text[:at]), starts_most + 1)]
    return len(starts) > starts_most or any(object_end(text, start) > at for start in starts)


def parse_text(content: str) -> str:
    """Return a plain-text answer without its think block; raise RowError(`unparsable`) if nothing else is there."""
    head, end_tag, rest = content.partition(_THINK_END)
    opened = head.lstrip().startswith(_THINK)
    if end_tag and (opened or rest.startswith(("\n", "\r"))):
        if text := rest.strip():
            return text
        opened = True
    if opened:
        raise RowError("unparsable", "the model reasoned but gave no answer", raw=content)
    return content
