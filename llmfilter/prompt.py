"""Record → request body, as bytes. Pure.

Only `{name}` and `{dotted.path}` are placeholders, so a JSON example or `\\d{3}` in a prompt needs
no escaping. A value goes in as it is and is never expanded again.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from llmfilter.errors import RowError, UsageError
from llmfilter.record import dump_text, parse_exact

_PATH = r"[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*"
_PLACEHOLDER = re.compile(rf"\{{\{{({_PATH})\}}\}}|\{{({_PATH})\}}", re.ASCII)
_MISSING = object()


class Template:
    """Text with placeholders; `names` lists them, in order.

    It is kept as the inside of a JSON string, encoded once and not again for every record: `parts`
    are its literals, with an empty one at each of `holes`, where a value goes.
    """

    def __init__(self, text: str) -> None:
        self.parts: list[bytes] = []
        self.holes: list[int] = []
        self.names: list[str] = []
        literal, end = "", 0
        for match in _PLACEHOLDER.finditer(text):
            literal += text[end : match.start()]
            end = match.end()
            if match[1]:  # {{name}} stands for {name} itself
                literal += match[0][1:-1]
                continue
            self.parts += [_inside(literal), b""]
            self.holes.append(len(self.parts) - 1)
            self.names.append(match[2])
            literal = ""
        self.parts.append(_inside(literal + text[end:]))


def _inside(text: str) -> bytes:
    return dump_text(text)[1:-1]


def _text_at(name: str, record: Mapping[str, Any], raw: bytes) -> str:
    value = _look_up(name, record)
    if value is _MISSING:
        there = ", ".join(record) or "none"
        raise RowError("template", f"the record has no field {name}; it has: {there}")
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None or (type(value) is int and value):
        return orjson.dumps(value).decode()
    # Numbers must stand as in the input: 1.0, 1e5, -0 and 20 digits are not what Python prints.
    return _dump(f"the field {name}", _look_up(name, parse_exact(raw))).decode()


def _dump(what: str, value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as fault:
        why = "is nested too deeply" if "ecursion" in str(fault) else "holds text that is not Unicode"
        raise RowError("template", f"{what} {why}") from None


def _look_up(path: str, record: Mapping[str, Any]) -> Any:
    value: Any = record
    for segment in path.split("."):
        value = value.get(segment, _MISSING) if isinstance(value, dict) else _MISSING
    return value


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
        self._tail = b"]" + (b"," + orjson.dumps(fields)[1:] if fields else b"}")
        self._parts = [orjson.dumps({"model": model, "messages": []})[:-2]]
        self._holes: list[tuple[int, str, str | None]] = []  # place, name, and key if the name is one
        self._own_at: int | None = None
        if system:
            self._add_message(b"system", system)
            self._parts[-1] += b","
        if user:
            self._add_message(b"user", user)
        else:
            self._own_at = len(self._parts)
            self._parts += [b"", b""]
        self._parts[-1] += self._tail
        self.head = self._parts[0]
        self.fixed_bytes = sum(map(len, self._parts))

    def _add_message(self, role: bytes, template: Template) -> None:
        self._parts[-1] += b'{"role":"%b","content":"%b' % (role, template.parts[0])
        first = len(self._parts) - 1
        for at, name in zip(template.holes, template.names, strict=True):
            self._holes.append((first + at, name, None if "." in name else name))
        self._parts += template.parts[1:]
        self._parts[-1] += b'"}'

    def body(self, record: Mapping[str, Any], raw: bytes) -> bytes:
        """The request for one record, whose own bytes are `raw`; RowError(`template`) if it can't be built."""
        parts = self._parts.copy()
        try:
            for at, name, key in self._holes:
                value = record.get(key) if key else None
                parts[at] = orjson.dumps(value if type(value) is str else _text_at(name, record, raw))[1:-1]
        except orjson.JSONEncodeError:  # a lone surrogate
            for at, name, _ in self._holes:
                parts[at] = _inside(_text_at(name, record, raw))
        if self._own_at is not None:
            parts[self._own_at] = _own_messages(record, raw)
        return b"".join(parts)

    def extend(self, body: bytes, turns: Sequence[tuple[str, str]]) -> bytes:
        """`body` with more messages, (role, content) each, at the end of its list."""
        added = b"".join([b',{"role":"%b","content":%b}' % (role.encode(), dump_text(text)) for role, text in turns])
        return body.removesuffix(self._tail) + added + self._tail


def _own_messages(record: Mapping[str, Any], raw: bytes) -> bytes:
    messages = record.get("messages")
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        there = ", ".join(record) or "none"
        raise RowError("template", f"the record has no list `messages` (and there is no -p); it has: {there}")
    if not messages:
        raise RowError("template", "the record's `messages` is an empty list")
    return _dump("the record's `messages`", parse_exact(raw)["messages"])[1:-1]


def read_prompt(text: str) -> str:
    """A prompt file's text without a `#!` line and without its final newline."""
    if text.startswith("#!"):
        text = text.partition("\n")[2]
    return text.removesuffix("\n").removesuffix("\r")


def check_placeholders(first_keys: Sequence[str] | None) -> None:
    """Raises the UsageError for a prompt without placeholders; first_keys: the first record's, if known."""
    example = (first_keys or ["text"])[0]
    known = f"; the first record has: {', '.join(first_keys)}" if first_keys else ""
    raise UsageError(
        "the prompt has no placeholder, so every row would be the same request: "
        f"name a field in it, like {{{example}}}{known}"
    )
