"""Text with placeholders. Pure.

Plain names, `{name}` and `{a.b.0}`, are always placeholders. Other text in braces is one where it names a
field of the first record, so that any column can be named, and a JSON example, `\\d{3}` or code in a
prompt needs no escaping. A value goes in as it is and is never expanded again.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from llmfilter.errors import UsageError
from llmfilter.input.values import MISSING, NAME, WHOLE, find, is_index, nameable
from llmfilter.jsontext import dump_text
from llmfilter.words import did_you_mean, listed, printable

_BRACES = re.compile(rf"\{{\{{({NAME})\}}\}}|\{{({NAME})\}}")
_DOUBLED_JSON = re.compile(r'\{\{\s*"')  # no JSON begins so: an object has no key that is one
_NAMES_MOST = 20  # about so many names in braces there is something to say


def is_plain(name: str) -> bool:
    """Return whether a text in braces is a placeholder whatever the records hold."""
    first, *others = name.split(".")
    return name == WHOLE or (_is_word(first) and all(_is_word(each) or is_index(each) for each in others))


def _is_word(segment: str) -> bool:
    """Return whether it is letters of any script, digits, `_` and `-`, and begins with a letter or `_`."""
    return segment.replace("-", "_").isidentifier() and not segment.startswith("-")


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


def read_braces(text: str, first: Mapping[str, Any]) -> Braces | None:
    """Return what a text is that is nothing but `{…}` or `{{…}}`, judged by the first record; None for all others."""
    match = _BRACES.fullmatch(text)
    return _judge(match, first) if match else None


def _has(first: Mapping[str, Any]) -> str:
    return f"which has: {listed(first)}"


def inside(text: str) -> bytes:
    """Return a text as it stands inside of a JSON string."""
    return dump_text(text)[1:-1]


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
