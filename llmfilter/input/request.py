"""Record → request body, as bytes, and the key that it is cached under. Pure."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import orjson

from llmfilter.errors import RowError, attempt
from llmfilter.input.fields import Field, OptionText
from llmfilter.input.pictures import picture_parts
from llmfilter.input.records import kind_of
from llmfilter.input.template import Template, inside, refuse_fixed
from llmfilter.input.values import dump_value, find, jq_path, json_at, text_at
from llmfilter.jsontext import dump_text, object_end, parse_exact
from llmfilter.notices import Notices
from llmfilter.words import listed, printable

_NAME_MOST = 100  # characters of a field's name that are shown
_SYSTEM_ROLES = ("system", "developer")  # OpenAI's newer name for it


class Prompt:
    """Builds the body of a chat request.

    user: the template of the user message, or None where each record carries its own `messages`.
    system: the template of the system message; takes the place of one that a record brings along.
    fields: the other request fields, in order; as an attribute their names.
    notices: gets what to tell people about the whole run.
    image: the field that names the pictures behind the user's text, or None.
    head: what each body begins with.
    fixed_bytes: about the size of a body without the record's values.

    The first record decides what texts in braces are placeholders: `settle`.
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
        self._user, self._system, self._fields = user, system, fields
        self.notices = Notices()
        self._start = orjson.dumps({"model": model, "messages": []})[:-2]
        self._list_at = len(self._start.decode()) - 1
        self.is_settled = False
        self._build()
        self.head = self._parts[0]
        self.fields = fields.keys()
        self.fixed_bytes = sum(map(len, self._parts))

    def settle(self, first: Mapping[str, Any]) -> None:
        """Decide by the first record which texts in braces are placeholders; note what may be meant otherwise."""
        self._user, self._system = (each and each.settle(first) for each in (self._user, self._system))
        doubts = [
            *(self._system.doubts(first) if self._system else ()),
            *(self._user.doubts(first) if self._user else ()),
        ]
        fields = {}
        for key, value in self._fields.items():
            fields[key] = value.settle(first) if isinstance(value, OptionText) else value
            doubts += [f"-o {key}: {doubt}" for doubt in value.doubts(first)] if isinstance(value, OptionText) else []
        self._fields = fields
        for doubt in doubts:
            self.notices.add(doubt, doubt)
        self._build()
        self.is_settled = True

    def _build(self) -> None:
        self._parts = [self._start]
        self._texts: list[tuple[int, str]] = []  # place and name of each value in a text
        self._values: list[tuple[int, str]] = []  # the same of each value that is a request field
        self._own_at: int | None = None
        self._pictures_at: int | None = None
        if self._system:
            self._add_message(b"system", self._system)
            self._parts[-1] += b","
        if self._user:
            self._add_message(b"user", self._user, has_pictures=self.image is not None)
        else:
            self._own_at = len(self._parts)
            self._parts += [b"", b""]
        self._parts[-1] += b"]"
        for key, value in self._fields.items():
            self._add_field(key, value)
        self._parts[-1] += b"}"

    def _add_message(self, role: bytes, template: Template, has_pictures: bool = False) -> None:
        opening = b'[{"type":"text","text":' if has_pictures else b""
        self._parts[-1] += b'{"role":"%b","content":%b"%b' % (role, opening, template.parts[0])
        first = len(self._parts) - 1
        self._texts += [(first + at, name) for at, name in template.placeholders]
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
        elif isinstance(value, OptionText):
            self._parts += [dump_text(value), b""]
        else:
            self._parts[-1] += orjson.dumps(value)

    def body(self, record: Mapping[str, Any], raw: bytes, line: int = 0) -> bytes:
        """Return the request for the record on a line, whose own bytes are `raw`; raise RowError(`template`)."""
        parts = self._parts.copy()
        try:
            for at, name in self._texts:
                value = record.get(name)
                parts[at] = orjson.dumps(value if type(value) is str else self._text(name, record, raw, line))[1:-1]
        except orjson.JSONEncodeError:  # a lone surrogate
            for at, name in self._texts:
                parts[at] = inside(text_at(name, record, raw))
        if self._own_at is not None:
            parts[self._own_at] = self._own_messages(record, raw, line)
        if self._pictures_at is not None and self.image is not None:
            parts[self._pictures_at] = picture_parts(self.image, record)
        for at, name in self._values:
            parts[at] = json_at(name, record, raw)
        return b"".join(parts)

    def _text(self, name: str, record: Mapping[str, Any], raw: bytes, line: int) -> str:
        text = text_at(name, record, raw)
        if text == "null" and find(name, record) is None:
            shown, way = printable(f"{{{name}}}", _NAME_MOST), printable(jq_path(name, record), _NAME_MOST)
            self.notices.add(
                "null",
                f"line {line}: {shown} is null, and is sent as the word null; to leave such rows out: "
                f"jq -c 'select({way})'",
            )
        return text

    def _own_messages(self, record: Mapping[str, Any], raw: bytes, line: int) -> bytes:
        messages = parse_messages(record)
        start = int(self._system is not None and messages[0].get("role") in _SYSTEM_ROLES)
        if start == len(messages):
            raise RowError("template", "the record's `messages` has only a system turn, which -s replaces")
        if messages[-1].get("role") == "assistant":
            self.notices.add(
                "assistant",
                f"line {line}: the record's `messages` end with an assistant turn, which the model will continue; "
                "to leave it out: jq -c '.messages |= .[:-1]'",
            )
        return dump_value(parse_exact(raw)["messages"][start:])[1:-1]

    def bodies(
        self, records: Sequence[dict[str, Any] | RowError], raws: Sequence[bytes], first_line: int = 1
    ) -> list[bytes | RowError]:
        """Return the request for each record, or what is wrong with it; what was wrong before stays so.

        Raise UsageError where the first record shows that nothing in the prompt is a field.
        """
        if not self.is_settled:
            self._settle_by_first(records)
        lines = range(first_line, first_line + len(records))
        try:
            if {*map(type, records)} == {dict}:
                sound = cast(Sequence[dict[str, Any]], records)
                return [*(self._plain_bodies(sound) or map(self.body, sound, raws, lines))]
        except RowError:
            pass
        return [
            record if isinstance(record, RowError) else attempt(self.body, record, raw, line)
            for record, raw, line in zip(records, raws, lines, strict=True)
        ]

    def _plain_bodies(self, records: Sequence[Mapping[str, Any]]) -> list[bytes] | None:
        """Return the requests where one text of each record is all that differs, as nearly always; else None."""
        if len(self._texts) != 1 or self._values or self._own_at is not None or self._pictures_at is not None:
            return None
        ((at, name),) = self._texts
        texts = [record.get(name) for record in records]
        if {*map(type, texts)} != {str}:
            return None
        before, after = b"".join(self._parts[:at]), b"".join(self._parts[at + 1 :])
        try:
            return [b"".join((before, orjson.dumps(text)[1:-1], after)) for text in texts]
        except orjson.JSONEncodeError:  # a lone surrogate
            return None

    def _settle_by_first(self, records: Sequence[dict[str, Any] | RowError]) -> None:
        first = next((each for each in records if isinstance(each, dict)), None)
        if first is not None:
            self.settle(first)
            is_fixed = self._own_at is None and self._pictures_at is None and not self._texts and not self._values
            if is_fixed:
                refuse_fixed(list(first))

    def extend(self, body: bytes, turns: Sequence[tuple[str, str]]) -> bytes:
        """Return `body` with more messages, (role, content) each, at the end of its list."""
        added = b"".join([b',{"role":"%b","content":%b}' % (role.encode(), dump_text(text)) for role, text in turns])
        text = body.decode()
        end = object_end(text, self._list_at) - 1
        return text[:end].encode() + added + text[end:].encode()


def may_vary(user: Template, system: Template | None, fields: Mapping[str, Any]) -> bool:
    """Return whether anything of a request can come from its record."""
    templates = [user, system] if system else [user]
    values = fields.values()
    return any(each.may_vary for each in templates) or any(isinstance(each, Field | OptionText) for each in values)


def parse_messages(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a record's own `messages`; raise RowError(`template`) where they are no list of turns."""
    messages = record.get("messages")
    if isinstance(messages, list) and all(isinstance(each, dict) for each in messages):
        if messages:
            return messages
        raise RowError("template", "the record's `messages` is an empty list")
    if "messages" in record:
        found = "a list of something else" if isinstance(messages, list) else kind_of(messages)
        why = f'; its `messages` is {found}: a turn is an object, like [{{"role": "user", "content": "…"}}]'
    else:
        why = f" (and there is no -p); it has: {listed(record)}"
    raise RowError("template", f"the record has no list `messages`{why}")


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
