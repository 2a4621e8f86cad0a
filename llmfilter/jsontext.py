"""JSON as bytes: parsed to be read, spliced to be written.

A record is never re-encoded. Big integers, `1.0`, key order and escapes would not survive a round
trip through Python's types, so what goes out is cut from what came in.
"""

import json
import math
import re
import sys
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NoReturn

import orjson

# A record under way: its line number, its own bytes without white space around, and the same parsed. A plain tuple,
# since nearly every row of a replay needs nothing else.
Row = tuple[int, bytes, dict[str, Any]]

_SPACE = re.compile(r"[ \t\n\r]*")
# A line break in valid JSON stands between two tokens, never inside a string.
_LINE_BREAK = re.compile(r"[\r\n][ \t\r\n]*")


_DIGITS_MOST = 4_300  # of an integer (sys.int_info.default_max_str_digits)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _number(text: str) -> Any:
    """Return a number: an int as far as Python reads one, a Decimal where a float can't hold it, or infinity."""
    if len(text) <= _DIGITS_MOST and text.lstrip("-").isdigit():
        return int(text)
    value = float(text)
    if math.isfinite(value):
        return value
    from decimal import Decimal, InvalidOperation

    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of 19 digits
        return value


_decoder = json.JSONDecoder(parse_int=_number, parse_float=_number, parse_constant=_refuse)
ODD_BYTES_MOST = 4 << 20
_DEPTH_MOST = 1_024  # orjson's; Python's json has to take the same, on every version
sys.setrecursionlimit(4 * _DEPTH_MOST)
_STRING_OR_PLAIN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[^"\[\]{}]++', re.DOTALL)
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


def is_deeper(text: str, most: int) -> bool:
    """Return whether more than so many brackets are open somewhere."""
    brackets = _STRING_OR_PLAIN.sub("", text)
    return any(level > most for level in accumulate(_STEPS[bracket] for bracket in brackets))


def parse_json(text: bytes | memoryview | str) -> Any:
    """Return the value of a JSON text; raise ValueError saying where parsing stopped.

    orjson refuses some valid JSON (1e400, numbers of thousands of digits, lone surrogates); there
    Python's json steps in, with numbers as `_number` reads them, since its own int stops at 4,300 digits.
    It takes up to 0.2 s a MB, so that a larger text with such things in it stays refused.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        fault = str(error)
    if len(text) > ODD_BYTES_MOST:
        raise ValueError(f"{fault}; what is odd but valid is taken up to {ODD_BYTES_MOST >> 20} MiB")
    try:
        # Decoded here, since json would also guess UTF-16 and UTF-32.
        source = text if isinstance(text, str) else bytes(text).decode()
        if not is_deeper(source, _DEPTH_MOST):
            return _decoder.decode(source)
        fault = "it is nested too deeply"
    except ValueError:
        pass
    raise ValueError(fault)


def parse_exact(text: bytes) -> Any:
    """Return the value of a JSON text with each number as an `orjson.Fragment`, which encodes as it stood."""
    return json.loads(
        text.decode(),
        parse_int=orjson.Fragment,
        parse_float=orjson.Fragment,
        parse_constant=_refuse,
    )


def is_exact(text: str) -> bool:
    """Return whether orjson keeps a JSON text: no number is too large for it, no surrogate alone."""
    integers: list[str] = []
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    json.loads(text, parse_int=integers.append)
    return all(len(each) <= 20 and -(2**63) <= int(each) < 2**64 for each in integers)


def dump_text(text: str) -> bytes:
    """Return a string as JSON in UTF-8; a lone surrogate, which UTF-8 can't hold, stays an escape."""
    try:
        return orjson.dumps(text)
    except orjson.JSONEncodeError:
        encoded = json.dumps(text, ensure_ascii=False)
        return encoded.encode("utf-8", "backslashreplace")


def one_line(text: str) -> bytes:
    """Return JSON without the line breaks and indentation between its tokens, which keep their characters."""
    if "\n" in text or "\r" in text:
        text = _LINE_BREAK.sub("", text)
    return text.strip().encode("utf-8", "backslashreplace")


def members(text: bytes) -> list[tuple[str, bytes, bytes]]:
    """Return the members of a valid JSON object, in order: key, and key and value as they stand."""
    source = text.decode()
    return [
        (key, source[at:key_end].encode(), source[value_at:end].encode())
        for key, at, key_end, value_at, end in _spans(source)
    ]


def _spans(source: str) -> list[tuple[str, int, int, int, int]]:
    """Return the members of a valid JSON object, in order: key, and where key and value start and end."""
    found = []
    at = _skip(source, source.index("{") + 1)
    while source[at] != "}":
        key, key_end = _decoder.raw_decode(source, at)
        value_at = _skip(source, _skip(source, key_end) + 1)
        end = _decoder.raw_decode(source, value_at)[1]
        found.append((key, at, key_end, value_at, end))
        at = _skip(source, end)
        if source[at] == ",":
            at = _skip(source, at + 1)
    return found


def value_at(text: bytes, key: str) -> bytes:
    """Return the value of a key of a valid JSON object as it stands there; raise KeyError."""
    return {name: value for name, _, value in members(text)}[key]


def drop_repeated(text: str, value: Mapping[str, Any]) -> str:
    """Return a JSON object without the members whose key comes again later; value: the same, parsed."""
    # As it nearly always is, and without a look at each member: a dropped one's colon is missing in `value`.
    colons = text.count(":")
    try:
        if colons == len(value) or ("\\u003" not in text and colons == orjson.dumps(value).count(b":")):
            return text
    except TypeError:
        pass  # it holds what orjson can't write
    found = members(text.encode("utf-8", "backslashreplace"))
    if len(found) == len(value):
        return text
    return join(list({part[0]: part for part in found}.values())).decode()


def object_end(source: str, start: int) -> int:
    """Return where the JSON value that starts at `start` ends, or -1 if none does."""
    try:
        return _decoder.raw_decode(source, start)[1]
    except (ValueError, RecursionError):
        return -1


def _skip(source: str, at: int) -> int:
    space = _SPACE.match(source, at)
    assert space is not None  # the pattern matches the empty string
    return space.end()


def join(parts: list[tuple[str, bytes, bytes]]) -> bytes:
    """Return members as one object."""
    return b"{" + b",".join([key + b":" + value for _, key, value in parts]) + b"}"


def splice(raw: bytes, record: Mapping[str, Any], answer: bytes, answer_keys: Mapping[str, Any]) -> bytes:
    """Return one output line: the record's bytes, then the answer's members.

    raw, answer: JSON objects without white space around them; record, answer_keys: the same,
    parsed. Where both have a key, the answer's value stands in the record's place.
    """
    if record.keys().isdisjoint(answer_keys):
        if not answer_keys:
            return raw + b"\n"
        if not record:
            return answer + b"\n"
        return b"%b,%b\n" % (raw[:-1], answer[1:])
    news = {key: (key_text, value) for key, key_text, value in members(answer)}
    source, line, end = raw.decode(), [], 0
    for number, (key, at, _, value_at, value_end) in enumerate(_spans(source)):
        if key not in answer_keys:
            continue
        if key in news:
            line += [source[end:value_at].encode(), news.pop(key)[1]]
        else:  # it came before: this one goes, with the comma before it
            line.append(source[end:at].rstrip().removesuffix("," if number else "").encode())
        end = value_end
    line.append(source[end:-1].encode())
    line += [b",%b:%b" % member for member in news.values()]
    return b"".join(line) + b"}\n"
