"""Text with placeholders, and the values that fill them. Pure.

Plain names, `{name}` and `{a.b.0}`, are always placeholders. Other text in braces is one where it names a
field of the first record, so that any column can be named, and a JSON example, `\\d{3}` or code in a
prompt needs no escaping. A value goes in as it is and is never expanded again.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import orjson

from llmfilter.errors import RowError, UsageError
from llmfilter.jsontext import dump_text, parse_exact
from llmfilter.words import did_you_mean, listed, printable

_BRACES = re.compile(r'\{\{([^{}"\r\n]*)\}\}|\{([^{}"\r\n]*)\}')
_DOUBLED_JSON = re.compile(r'\{\{\s*"')  # no JSON begins so: an object has no key that is one
WHOLE = "."  # the record itself
MISSING = object()
_NAMES_MOST = 20  # about so many names in braces there is something to say
_INDEX_DIGITS = 9


def is_plain(name: str) -> bool:
    """Return whether a text in braces is a placeholder whatever the records hold."""
    first, *others = name.split(".")
    return name == WHOLE or (_is_word(first) and all(_is_word(each) or _is_index(each) for each in others))


def _is_word(segment: str) -> bool:
    """Return whether it is letters of any script, digits, `_` and `-`, and begins with a letter or `_`."""
    return segment.replace("-", "_").isidentifier() and not segment.startswith("-")


def _is_index(segment: str) -> bool:
    return segment.isascii() and segment.isdigit() and len(segment) <= _INDEX_DIGITS


class Braces(NamedTuple):
    """`{…}` or `{{…}}` in a text.

    whole: as it stands there.
    text: what is between the braces.
    field: the field that this names, or may name as long as no record is known; None if it names none.
    """

    whole: str
    text: str
    field: str | None

    @property
    def is_doubled(self) -> bool:
        """Whether it stands for the same in single braces."""
        return self.whole.startswith("{{")


class Template:
    """Text with placeholders.

    first: the first record, by which other than plain names are judged; without it they are literals,
    but for themselves.

    It is kept as the inside of a JSON string, encoded once and not again for every record:
    parts: its literals, with an empty one where a value goes.
    placeholders: the places of the empty ones, each with the name of its field.
    braces: all that stands in braces.
    """

    def __init__(self, text: str, first: Mapping[str, Any] | None = None) -> None:
        self._text = text
        self.parts: list[bytes] = []
        self.placeholders: list[tuple[int, str]] = []
        self.braces: list[Braces] = []
        literal, end = "", 0
        for match in _BRACES.finditer(text):
            literal += text[end : match.start()]
            end = match.end()
            braces = _judge(match, first)
            self.braces.append(braces)
            if braces.field is None:
                literal += braces.whole
            elif first is None and not is_plain(braces.text):
                self.parts += [inside(literal), inside(braces.whole)]
                literal = ""
            elif braces.is_doubled:
                literal += braces.whole[1:-1]
            else:
                self.parts += [inside(literal), b""]
                self.placeholders.append((len(self.parts) - 1, braces.field))
                literal = ""
        self.parts.append(inside(literal + text[end:]))

    def settle(self, first: Mapping[str, Any]) -> "Template":
        """Return the same text, judged by the first record."""
        return Template(self._text, first)

    @property
    def may_vary(self) -> bool:
        """Whether it holds a placeholder, by one record or another."""
        return any(braces.field is not None and not braces.is_doubled for braces in self.braces)

    def doubts(self, first: Mapping[str, Any]) -> Iterator[str]:
        """Yield what to tell people of this text, settled by the first record: what may not be meant as it is sent."""
        for braces in itertools.islice(dict.fromkeys(self.braces), _NAMES_MOST):
            shown = printable(braces.whole, 100)
            if braces.field is None:
                hint = did_you_mean(braces.text.strip(), nameable(first), "{{{}}}")
                if hint:
                    yield f"{shown} is sent as it stands: it names no field of the first record, {_has(first)}{hint}"
            elif braces.is_doubled and find(braces.field, first) is not MISSING:
                field = printable(f"{{{braces.field}}}", 100)
                way = f"write {field} for the field; the first record has: {listed(first)}"
                yield f"{shown} sends {shown[1:-1]} itself: {way}"
            elif not braces.field:
                yield f'{{}} is filled from the field "" of the records, {_has(first)}: {{ }} are plain braces'
        if _DOUBLED_JSON.search(self._text):
            yield 'the doubled braces of {{"…": …}} are sent as they stand: JSON in a prompt needs no escaping here'


def _judge(match: re.Match[str], first: Mapping[str, Any] | None) -> Braces:
    text = match[2] if match[1] is None else match[1]
    if first is None or is_plain(text):
        return Braces(match[0], text, text)
    named = [name for name in (text, text.strip()) if find(name, first) is not MISSING]
    return Braces(match[0], text, named[0] if named else None)


def _has(first: Mapping[str, Any]) -> str:
    return f"which has: {listed(first)}"


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
    match = _BRACES.fullmatch(text)
    braces = _judge(match, first or {}) if match else None
    if braces is None or braces.field is None:
        return None
    return text[1:-1] if braces.is_doubled else Field(braces.field)


def inside(text: str) -> bytes:
    """Return a text as it stands inside of a JSON string."""
    return dump_text(text)[1:-1]


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
        elif isinstance(value, list) and _is_index(segment) and int(segment) < len(value):
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
        f"[{each if _is_index(each) and at else dump_text(each).decode()}]" for at, each in enumerate(steps)
    )


def _missing(name: str, record: Mapping[str, Any], way_out: str = "") -> RowError:
    hint = did_you_mean(name, nameable(record), "{{{}}}")
    return RowError("template", f"the record has no field {name}; it has: {listed(record)}{hint or way_out}")


def nameable(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a placeholder can name: the record's keys, then those one level below."""
    for path in itertools.chain(record, _paths(record)):
        if _BRACES.fullmatch(f"{{{path}}}"):
            yield path


def _paths(record: Mapping[str, Any]) -> Iterator[str]:
    for outer, value in record.items():
        if isinstance(value, dict):
            yield from (f"{outer}.{inner}" for inner in value)


def parse_prompt(text: str) -> str:
    """Return a prompt file's text without a `#!` line and without its final newline."""
    if text.startswith("#!"):
        text = text.partition("\n")[2]
    return text.removesuffix("\n").removesuffix("\r")


def refuse_fixed(first_keys: Sequence[str] | None) -> NoReturn:
    """Raise the UsageError for a prompt without placeholders; first_keys: the first record's, if known."""
    example = printable((first_keys or ["text"])[0], 100)
    known = f"; the first record has: {listed(first_keys)}" if first_keys else ""
    raise UsageError(
        "the prompt has no placeholder, so every row would be the same request: "
        f"name a field in it, like {{{example}}}{known}"
    )
