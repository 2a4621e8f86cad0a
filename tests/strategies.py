"""JSON as people and programs write it, for property tests: any white space, escapes and numbers.

Everything is drawn as text, never dumped from Python values, so that nothing hides what a parser
might lose. `exact` is the judge: it parses with Python's json and keeps each number as it stands.
"""

import json
from typing import Any, NamedTuple

from hypothesis import strategies as st


class Num(NamedTuple):
    """A number as it stands; unlike the string of the same characters."""

    text: str


def refuse(constant: str) -> None:
    raise ValueError(constant)


def exact(text: bytes | str) -> Any:
    """JSON → Python value in which each number is a Num."""
    source = text if isinstance(text, str) else text.decode()
    return json.loads(source, parse_int=Num, parse_float=Num, parse_constant=refuse)


def compact(value: Any) -> str:
    """What `exact` gave, as compact JSON with non-ASCII unescaped."""
    if isinstance(value, Num):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{compact(key)}:{compact(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(compact, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def escape_all(text: str) -> str:
    """A JSON string with every character as an escape."""
    units = text.encode("utf-16-be")
    return '"' + "".join(f"\\u{units[at]:02X}{units[at + 1]:02x}" for at in range(0, len(units), 2)) + '"'


class Member(NamedTuple):
    """A member of an object: its key, and key and value as they stand."""

    key: str
    key_text: str
    value_text: str


_spellings = st.sampled_from([lambda text: json.dumps(text, ensure_ascii=False), json.dumps, escape_all])
_odd_texts = st.sampled_from(
    ["a", "b", "", "</think>", "```json", "{name}", '{"a": 1}', "\u2028\x7f", "😀é", "\\", '"']
)
_texts = st.one_of(_odd_texts, st.text(max_size=6))
strings = st.builds(lambda spell, text: spell(text), _spellings, _texts)
lone_surrogates = st.sampled_from([r'"\ud800"', r'"x\uDFFFy"'])
numbers = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["0", "-0", "1.0", "1e5", "1E+05", "-0.10", "1e400", "12345678901234567890123", "9" * 5000]),
)
scalars = st.one_of(strings, numbers, st.sampled_from(["true", "false", "null"]))
_keys = st.one_of(st.sampled_from(["a", "b", "c", "</think>"]), st.text(max_size=4))
_line_blanks = st.sampled_from(["", "", "", " ", "\t", "\r", "  "])
_any_blanks = st.sampled_from(["", "", "", " ", "\n", "\r\n  ", "\t"])


def _array(blank: str, items: list[str]) -> str:
    return f"[{blank}" + f"{blank},".join(items) + f"{blank}]"


def write_object(members: list[Member], blank: str) -> str:
    """An object with white space at every place where it may stand."""
    written = [f"{blank}{key}{blank}:{blank}{value}{blank}" for _, key, value in members]
    return "{" + (",".join(written) or blank) + "}"


def _members(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[Member]]:
    member = st.builds(lambda spell, key, value: Member(key, spell(key), value), _spellings, _keys, values)
    return st.lists(member, max_size=4, unique_by=lambda each: each.key)


def _values(blanks: st.SearchStrategy[str], leaves: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(_array, blanks, st.lists(inner, max_size=3)),
            st.builds(write_object, _members(inner), blanks),
        ),
        max_leaves=6,
    )


values = _values(_any_blanks, scalars)
# The members of an object that stands in one line, with the object's text.
line_members = _members(_values(_line_blanks, st.one_of(scalars, lone_surrogates)))
objects = st.builds(write_object, _members(_values(_any_blanks, scalars)), _any_blanks)
line_blanks = _line_blanks
