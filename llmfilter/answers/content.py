"""The model's content → the one JSON object in it, or its text. Pure.

Whatever is ambiguous is refused, never guessed, and broken JSON is not repaired: a wrong answer
that parses costs more than one that is asked for again.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import orjson

from llmfilter.answers.reasoning import drop_reasoning
from llmfilter.errors import RowError
from llmfilter.jsontext import drop_repeated, object_end, one_line, parse_json

_SPECIAL_END = re.compile(r"(?:<\|\w+\|>\s*)+\Z")  # <|im_end|>, <|eot_id|>, <|return|>
_LIST = re.compile(r"\s*(?:```\w*\s*)?\[\s*[\[{\"\d]")  # of objects, mostly in a fence
_STEPS_MOST = 10_000_000  # characters read in search of an object: keeps hostile text from costing n²


def extract(content: str) -> tuple[bytes, dict[str, Any]]:
    """Return the one JSON object in a content, in one line and parsed; raise RowError(`unparsable`).

    Of a key that comes twice the last value counts.

    Tried in this order: the whole; without leading reasoning; from the first `{` to the last `}`, unless
    a `[` that is open before it says that the object is only part of the answer.
    """
    try:
        value = orjson.loads(content)  # nearly always it is the whole
    except orjson.JSONDecodeError:
        return _search(content)
    if isinstance(value, dict):
        return one_line(drop_repeated(content, value)), value
    raise _no_object(value, content)


def _no_object(value: Any, content: str) -> RowError:
    way = 'a list: put it into an object, like {"items": [...]}' if isinstance(value, list) else "not an object"
    return RowError("unparsable", f"the answer is JSON, but {way}", raw=content)


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
        raise _no_object(value, content)
    if _LIST.match(content):
        raise _no_object([], content)
    raise RowError("unparsable", f"the answer is not one JSON object: {fault}", raw=content)


def _readings(content: str) -> Iterator[str]:
    whole = content.strip()
    yield whole
    rest = drop_reasoning(whole, lambda text, at: not _is_in_object(text, at))
    if rest is None:  # what reasoning holds is a draft
        return
    rest = rest.strip()
    if rest != whole:
        yield rest
    start, end = rest.find("{"), rest.rfind("}")
    if 0 <= start < end and not _leaves_list_open(rest[:start]):
        yield rest[start : end + 1]


def _leaves_list_open(prose: str) -> bool:
    """Return whether what follows is part of a list; a citation like [1] is none."""
    return prose.count("[") > prose.count("]")


def _is_in_object(text: str, at: int) -> bool:
    """Return whether an object that starts before `at` ends behind it: what stands before `at` is its data."""
    starts_most = _STEPS_MOST // len(text) + 1
    starts = [match.start() for match in islice(re.finditer("{", text[:at]), starts_most + 1)]
    return len(starts) > starts_most or any(object_end(text, start) > at for start in starts)


def parse_text(content: str) -> str:
    """Return a plain-text answer; raise RowError(`unparsable`) if there is none beside reasoning.

    Reasoning and special tokens at the end are dropped, and nothing else.
    """
    rest = drop_reasoning(content, lambda text, at: text.startswith(("\n", "\r"), at))
    if rest is not content:
        rest = (rest or "").strip()
    text = _SPECIAL_END.sub("", rest)
    if not text:
        raise RowError("unparsable", "the model reasoned but gave no answer", raw=content)
    return text
