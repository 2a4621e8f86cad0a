"""Record → request body, as bytes, and the key that it is cached under. Pure."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from llmfilter.errors import RowError, UsageError, attempt
from llmfilter.input.pictures import picture_parts
from llmfilter.input.template import Field, Template, dump_value, inside, json_at, parse_field, text_at
from llmfilter.jsontext import depth, dump_text, is_exact, object_end, one_line, parse_exact, parse_json
from llmfilter.words import SAMPLES

if TYPE_CHECKING:
    pass


_BUILT = {"messages": "-p and -s", "model": "-m", "stream_options": "--stream", "n": None}  # what -o may not set
_DEPTH_MOST = 254  # what orjson writes


class Prompt:
    """Builds the body of a chat request.

    user: the template of the user message, or None where each record carries its own `messages`.
    system: the template of the system message.
    image: the field that names the pictures behind the user's text, or None.
    fields: the other request fields, in order; as an attribute their names.
    head: what each body begins with.
    fixed_bytes: the size of a body without the record's values.
    """

    def __init__(
        self,
        user: Template | None,
        system: Template | None,
        model: str,
        fields: Mapping[str, Any],
        image: str | None = None,
    ) -> None:
        self.image = image
        self._pictures_at: int | None = None
        self._parts = [orjson.dumps({"model": model, "messages": []})[:-2]]
        self._list_at = len(self._parts[0].decode()) - 1
        self._texts: list[tuple[int, str, str | None]] = []  # place, name, and key if the name is one
        self._values: list[tuple[int, str]] = []  # place and name
        self._own_at: int | None = None
        if system:
            self._add_message(b"system", system)
            self._parts[-1] += b","
        if user:
            self._add_message(b"user", user, has_pictures=image is not None)
        else:
            self._own_at = len(self._parts)
            self._parts += [b"", b""]
        self._parts[-1] += b"]"
        for key, value in fields.items():
            self._add_field(key, value)
        self._parts[-1] += b"}"
        self.head = self._parts[0]
        self.fields = fields.keys()
        self.fixed_bytes = sum(map(len, self._parts))

    def _add_message(self, role: bytes, template: Template, has_pictures: bool = False) -> None:
        opening = b'[{"type":"text","text":' if has_pictures else b""
        self._parts[-1] += b'{"role":"%b","content":%b"%b' % (role, opening, template.parts[0])
        first = len(self._parts) - 1
        for at, name in template.placeholders:
            self._texts.append((first + at, name, None if "." in name else name))
        self._parts += template.parts[1:]
        self._parts[-1] += b'"'
        if has_pictures:  # behind the text, which others may share: servers' caches work on prefixes
            self._parts[-1] += b"}"
            self._pictures_at = len(self._parts)
            self._parts += [b"", b"]"]
        self._parts[-1] += b"}"

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
                parts[at] = orjson.dumps(value if type(value) is str else text_at(name, record, raw))[1:-1]
        except orjson.JSONEncodeError:  # a lone surrogate
            for at, name, _ in self._texts:
                parts[at] = inside(text_at(name, record, raw))
        if self._own_at is not None:
            parts[self._own_at] = _own_messages(record, raw)
        if self._pictures_at is not None and self.image is not None:
            parts[self._pictures_at] = picture_parts(self.image, record)
        for at, name in self._values:
            parts[at] = json_at(name, record, raw)
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
    return dump_value("the record's `messages`", parse_exact(raw)["messages"])[1:-1]


class Keys:
    """Request body → key: a 256-bit digest of URL, headers as typed, and the exact body.

    head: what each body begins with, which is digested only once.
    """

    def __init__(self, url: str, headers: Sequence[str], head: bytes = b"") -> None:
        # Neither a URL nor a header line can hold a line break or a zero byte.
        self._hash = hashlib.sha256("\n".join([url, *headers, "\0"]).encode() + head)
        self._head_bytes = len(head)

    def of(self, bodies: Iterable[bytes]) -> list[bytes]:
        """Return the keys of the requests with these bodies."""
        copy, head_bytes = self._hash.copy, self._head_bytes
        keys = []
        for body in bodies:
            digest = copy()
            digest.update(body[head_bytes:])
            keys.append(digest.digest())
        return keys


def request_fields(options: list[str], response_format: Any) -> dict[str, Any]:
    """Return the fields of a request beside model and messages: what is built, then what `-o` says."""
    fields: dict[str, Any] = {"temperature": 0, "response_format": response_format}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise UsageError(f"-o {option!r}: give KEY=VALUE, like -o max_tokens=500")
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
        return text
    if depth(text) > _DEPTH_MOST:
        raise UsageError(f"-o {key}=…: the value is nested too deeply, in more than {_DEPTH_MOST} levels")
    return value if is_exact(text) else orjson.Fragment(one_line(text))
