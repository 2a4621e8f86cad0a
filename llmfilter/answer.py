"""The model's content → the answer that goes into the record. Pure.

Whatever is ambiguous is refused, never guessed, and broken JSON is not repaired: a wrong answer
that parses costs more than one that is asked for again.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import orjson

from llmfilter.errors import RowError
from llmfilter.record import drop_repeated, dump_text, join, members, object_end, one_line, parse_json, splice
from llmfilter.typos import did_you_mean

if TYPE_CHECKING:
    from llmfilter.schema import Schema

_THINK, _THINK_END = "<think>", "</think>"
_FAULTS_MOST = 5
_STEPS_MOST = 10_000_000  # characters read in search of an object: keeps hostile text from costing n²


# A JSON object as bytes in one line, and the same parsed: splicing needs its keys.
Answer = tuple[bytes, Mapping[str, Any]]


class Checks:
    """What an answer must be, and how it goes into the record.

    schema: it must satisfy it; fields: the keys to keep, all of which must be there; key: put it
    under this key instead of merging it; is_text: any text is an answer, under `key`; response: the
    key of the server's whole response beside the answer, or None.
    takes_any: any object is an answer, and goes in as it is.
    """

    def __init__(
        self,
        schema: "Schema | None" = None,
        fields: Sequence[str] = (),
        key: str | None = None,
        is_text: bool = False,
        response: str | None = None,
    ) -> None:
        self._schema = schema
        self._fields = list(dict.fromkeys(fields))
        self._key = key
        self._is_text = is_text
        self.response = response
        self.takes_any = not (schema or fields or key is not None or is_text)

    def parse(self, content: str) -> Answer:
        """Return the answer in a content; raise RowError (`unparsable`, `invalid`)."""
        if self._is_text:
            return _under("answer" if self._key is None else self._key, dump_text(parse_text(content)))
        text, value = extract(content)
        if self.takes_any:
            return text, value
        self._check(value, content)
        if self._fields and len(value) > len(self._fields):
            text = join([part for part in members(text) if part[0] in self._fields])
            value = dict.fromkeys(self._fields)
        return (text, value) if self._key is None else _under(self._key, text)

    def parse_whole(self, content: str) -> Answer | None:
        """Return the answer in a content that is nothing but one JSON object, or None."""
        if self._is_text or not content.rstrip().endswith("}"):
            return None
        try:
            if not isinstance(parse_json(content), dict):
                return None
            return self.parse(content)
        except (ValueError, RowError):
            return None

    def add_response(self, answer: Answer, body: bytes) -> Answer:
        """Return an answer with the body that it came in under `response`, in one line."""
        assert self.response is not None
        member, keys = _under(self.response, one_line(body.decode()))
        return splice(*answer, member, keys)[:-1], {**answer[1], **keys}

    def _check(self, value: dict[str, Any], content: str) -> None:
        missing = [name for name in self._fields if name not in value]
        faults = [f"the key {name!r} is missing{did_you_mean(name, value, '{!r}')}" for name in missing]
        if self._schema:
            faults += self._schema.faults(value)
        if faults:
            raise RowError("invalid", "; ".join(faults[:_FAULTS_MOST]), raw=content)


def _under(key: str, text: bytes) -> Answer:
    return b"{%b:%b}" % (dump_text(key), text), {key: None}


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
