"""Text with placeholders, and the values that fill them. Pure.

Only `{name}` and `{dotted.path}` are placeholders, so a JSON example or `\\d{3}` in a prompt needs
no escaping. A value goes in as it is and is never expanded again.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from llmfilter.errors import RowError, UsageError
from llmfilter.jsontext import dump_text, parse_exact
from llmfilter.words import did_you_mean

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
            self.parts += [inside(literal), b""]
            self.placeholders.append((len(self.parts) - 1, match[2]))
            literal = ""
        self.parts.append(inside(literal + text[end:]))


class Field(NamedTuple):
    """A request field whose value is a field of the record: the name of that."""

    name: str


def parse_field(text: str) -> Field | str | None:
    """Return the Field for `{name}`, the text {name} for `{{name}}`, and None for all other text."""
    match = _PLACEHOLDER.fullmatch(text)
    if not match:
        return None
    return text[1:-1] if match[1] else Field(match[2])


def inside(text: str) -> bytes:
    """Return a text as it stands inside of a JSON string."""
    return dump_text(text)[1:-1]


def text_at(name: str, record: Mapping[str, Any], raw: bytes) -> str:
    """Return a field's value as it goes into a text; raise RowError(`template`)."""
    value = look_up(name, record)
    if isinstance(value, str):
        return value
    if type(value) is int and value:
        return str(value)
    if isinstance(value, bool) or value is None:
        return orjson.dumps(value).decode()
    # Numbers must stand as in the input: 1.0, 1e5, -0 and 20 digits are not what Python prints.
    return dump_value(f"the field {name}", look_up(name, parse_exact(raw))).decode()


def json_at(name: str, record: Mapping[str, Any], raw: bytes) -> bytes:
    """Return a field's value as JSON; raise RowError(`template`)."""
    text = text_at(name, record, raw)
    return dump_text(text) if isinstance(look_up(name, record), str) else text.encode()


def dump_value(what: str, value: Any) -> bytes:
    """Return a value as JSON; raise RowError(`template`) where it can't be."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise RowError("template", f"{what} is nested too deeply, or holds text that is not Unicode") from None


def look_up(path: str, record: Mapping[str, Any]) -> Any:
    """Return the value at a path of a record; raise RowError(`template`) where there is none."""
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


def varies(user: Template, system: Template | None, fields: Mapping[str, Any]) -> bool:
    """Return whether anything of a request comes from its record."""
    templates = [user, system] if system else [user]
    return any(each.placeholders for each in templates) or any(isinstance(each, Field) for each in fields.values())
