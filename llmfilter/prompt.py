"""Record → request body, as bytes. Pure.

Only `{name}` and `{dotted.path}` are placeholders, so a JSON example or `\\d{3}` in a prompt needs
no escaping. A value goes in as it is and is never expanded again.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from llmfilter.errors import RowError, UsageError, attempt
from llmfilter.record import dump_text, object_end, parse_exact
from llmfilter.typos import did_you_mean

_SEGMENT = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
_PATH = rf"{_SEGMENT.pattern}(?:\.{_SEGMENT.pattern})*"
_PLACEHOLDER = re.compile(rf"\{{\{{({_PATH})\}}\}}|\{{({_PATH})\}}", re.ASCII)


class Template:
    """Text with placeholders.

    It is kept as the inside of a JSON string, encoded once and not again for every record: `parts`
    are its literals, with an empty one where a value goes; `placeholders` lists these places, each
    with the name of its field.
    """

    def __init__(self, text: str) -> None:
        self.parts: list[bytes] = []
        self.placeholders: list[tuple[int, str]] = []
        literal, end = "", 0
        for match in _PLACEHOLDER.finditer(text):
            literal += text[end : match.start()]
            end = match.end()
            if match[1]:  # {{name}} stands for {name} itself
                literal += match[0][1:-1]
                continue
            self.parts += [_inside(literal), b""]
            self.placeholders.append((len(self.parts) - 1, match[2]))
            literal = ""
        self.parts.append(_inside(literal + text[end:]))


class Field(NamedTuple):
    """A request field whose value is a field of the record: the name of that."""

    name: str


def parse_field(text: str) -> Field | str | None:
    """Return the Field for `{name}`, the text {name} for `{{name}}`, and None for all other text."""
    match = _PLACEHOLDER.fullmatch(text)
    if not match:
        return None
    return text[1:-1] if match[1] else Field(match[2])


def _inside(text: str) -> bytes:
    return dump_text(text)[1:-1]


def _text_at(name: str, record: Mapping[str, Any], raw: bytes) -> str:
    value = _look_up(name, record)
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None or (type(value) is int and value):
        return orjson.dumps(value).decode()
    # Numbers must stand as in the input: 1.0, 1e5, -0 and 20 digits are not what Python prints.
    return _dump(f"the field {name}", _look_up(name, parse_exact(raw))).decode()


def _json_at(name: str, record: Mapping[str, Any], raw: bytes) -> bytes:
    text = _text_at(name, record, raw)
    return dump_text(text) if isinstance(_look_up(name, record), str) else text.encode()


def _dump(what: str, value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise RowError("template", f"{what} is nested too deeply, or holds text that is not Unicode") from None


def _look_up(path: str, record: Mapping[str, Any]) -> Any:
    value: Any = record
    for segment in path.split("."):
        if not isinstance(value, dict) or segment not in value:
            there = ", ".join(record) or "none"
            hint = did_you_mean(path, _paths(record), "{{{}}}")
            raise RowError("template", f"the record has no field {path}; it has: {there}{hint}")
        value = value[segment]
    return value


def _paths(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a placeholder can name: the record's keys, then those one level below."""
    yield from filter(_SEGMENT.fullmatch, record)
    for outer, value in record.items():
        if isinstance(value, dict) and _SEGMENT.fullmatch(outer):
            yield from (f"{outer}.{inner}" for inner in value if _SEGMENT.fullmatch(inner))


class Prompt:
    """Builds the body of a chat request.

    user: the template of the user message, or None where each record carries its own `messages`;
    system: the template of the system message; fields: the other request fields, in order.
    head: what each body begins with; fixed_bytes: the size of a body without the record's values.
    """

    def __init__(
        self,
        user: Template | None,
        system: Template | None,
        model: str,
        fields: Mapping[str, Any],
    ) -> None:
        self._parts = [orjson.dumps({"model": model, "messages": []})[:-2]]
        self._list_at = len(self._parts[0].decode()) - 1
        self._texts: list[tuple[int, str, str | None]] = []  # place, name, and key if the name is one
        self._values: list[tuple[int, str]] = []  # place and name
        self._own_at: int | None = None
        if system:
            self._add_message(b"system", system)
            self._parts[-1] += b","
        if user:
            self._add_message(b"user", user)
        else:
            self._own_at = len(self._parts)
            self._parts += [b"", b""]
        self._parts[-1] += b"]"
        for key, value in fields.items():
            self._add_field(key, value)
        self._parts[-1] += b"}"
        self.head = self._parts[0]
        self.fixed_bytes = sum(map(len, self._parts))

    def _add_message(self, role: bytes, template: Template) -> None:
        self._parts[-1] += b'{"role":"%b","content":"%b' % (role, template.parts[0])
        first = len(self._parts) - 1
        for at, name in template.placeholders:
            self._texts.append((first + at, name, None if "." in name else name))
        self._parts += template.parts[1:]
        self._parts[-1] += b'"}'

    def _add_field(self, key: str, value: Any) -> None:
        self._parts[-1] += b",%b:" % orjson.dumps(key)
        if isinstance(value, Field):
            self._values.append((len(self._parts), value.name))
            self._parts += [b"", b""]
        else:
            self._parts[-1] += orjson.dumps(value)

    def body(self, record: Mapping[str, Any], raw: bytes) -> bytes:
        """Return the request for one record, whose own bytes are `raw`; raise RowError(`template`) if it can't be."""
        parts = self._parts.copy()
        try:
            for at, name, key in self._texts:
                value = record.get(key) if key else None
                parts[at] = orjson.dumps(value if type(value) is str else _text_at(name, record, raw))[1:-1]
        except orjson.JSONEncodeError:  # a lone surrogate
            for at, name, _ in self._texts:
                parts[at] = _inside(_text_at(name, record, raw))
        if self._own_at is not None:
            parts[self._own_at] = _own_messages(record, raw)
        for at, name in self._values:
            parts[at] = _json_at(name, record, raw)
        return b"".join(parts)

    def bodies(self, records: Sequence[dict[str, Any] | RowError], raws: Sequence[bytes]) -> list[bytes | RowError]:
        """Return the request for each record, or what is wrong with it; what was wrong before stays so."""
        try:
            if {*map(type, records)} == {dict}:
                return list(map(self.body, records, raws))  # type: ignore[arg-type]
        except RowError:
            pass
        return [
            record if isinstance(record, RowError) else attempt(self.body, record, raw)
            for record, raw in zip(records, raws, strict=True)
        ]

    def extend(self, body: bytes, turns: Sequence[tuple[str, str]]) -> bytes:
        """Return `body` with more messages, (role, content) each, at the end of its list."""
        added = b"".join([b',{"role":"%b","content":%b}' % (role.encode(), dump_text(text)) for role, text in turns])
        text = body.decode()
        end = object_end(text, self._list_at) - 1
        return text[:end].encode() + added + text[end:].encode()


def _own_messages(record: Mapping[str, Any], raw: bytes) -> bytes:
    messages = record.get("messages")
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        there = ", ".join(record) or "none"
        raise RowError("template", f"the record has no list `messages` (and there is no -p); it has: {there}")
    if not messages:
        raise RowError("template", "the record's `messages` is an empty list")
    return _dump("the record's `messages`", parse_exact(raw)["messages"])[1:-1]


def parse_prompt(text: str) -> str:
    """Return a prompt file's text without a `#!` line and without its final newline."""
    if text.startswith("#!"):
        text = text.partition("\n")[2]
    return text.removesuffix("\n").removesuffix("\r")


def refuse_fixed(first_keys: Sequence[str] | None) -> None:
    """Raise the UsageError for a prompt without placeholders; first_keys: the first record's, if known."""
    example = (first_keys or ["text"])[0]
    known = f"; the first record has: {', '.join(first_keys)}" if first_keys else ""
    raise UsageError(
        "the prompt has no placeholder, so every row would be the same request: "
        f"name a field in it, like {{{example}}}{known}"
    )
