"""terminal: what is shown fits into the columns that there are."""

import os
import pty
import termios
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmfilter.errors import RowError
from llmfilter.output.error_lines import fit, short_line
from llmfilter.output.terminal import Terminal

characters = st.sampled_from("abc é日本😀ｶ\u0301\u0308…") | st.characters(exclude_categories=["Cc", "Cs"])
texts = st.lists(characters, max_size=40).map("".join)


def width(text: str) -> int:
    """The columns that a terminal needs: two for what East Asia writes wide, none for what joins the letter before."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


@given(texts, st.integers(1, 50))
@example("日本", 3)
@example("日本", 4)
@example("ab" + "\u0301" * 9, 2)
@example("abc" + "\u0301" * 9, 2)
def test_a_text_is_cut_just_where_it_must_be(text: str, columns: int) -> None:
    shown = fit(text, columns)
    if width(text) <= columns:
        assert shown == text
        return
    kept = shown.removesuffix("…")
    assert text.startswith(kept) and shown == kept + "…" and width(shown) <= columns
    assert width(text[: len(kept) + 1] + "…") > columns  # not one more


@pytest.fixture(scope="module")
def terminal() -> Iterator[int]:
    ours, theirs = pty.openpty()
    yield theirs
    os.close(theirs)
    os.close(ours)


@given(st.text(), st.binary(), st.integers(21, 200))
@example("m" * 500, b"r" * 500, 80)
@example("m" * 500, b"", 80)
@example("日" * 500, "日".encode() * 500, 80)
def test_an_error_is_one_line_that_fits(terminal: int, message: str, raw: bytes, columns: int) -> None:
    termios.tcsetwinsize(terminal, (24, columns))
    line = short_line(Terminal(terminal, True, False), 7, RowError("invalid", message), raw)
    assert line.endswith(b"\n")
    (shown,) = line.decode().splitlines()
    assert width(shown) < columns  # the last column would wrap some
    assert shown.startswith("line 7: invalid:"[: columns - 10])


@pytest.mark.parametrize(
    ("message", "record", "shown"),
    [
        ("no label", '{"id":1}', 'line 7: invalid: no label: {"id":1}'),
        ("no label", "r" * 99, "line 7: invalid: no label: rrrrrrrrrrrr…"),
        ("m" * 99, "r" * 99, "line 7: invalid: mmmmmmmmmm…: rrrrrrrrr…"),
        ("m" * 99, '{"id":1}', 'line 7: invalid: mmmmmmmmmmmm…: {"id":1}'),
        ("m\nm", "\x1b[m\ud800", "line 7: invalid: m m: [m\ufffd\ufffd\ufffd"),
    ],
)
def test_of_a_long_error_a_part_of_the_record_is_still_seen(
    terminal: int, message: str, record: str, shown: str
) -> None:
    termios.tcsetwinsize(terminal, (24, 41))
    raw = record.encode("utf-8", "surrogatepass")
    line = short_line(Terminal(terminal, True, False), 7, RowError("invalid", message), raw)
    assert line.decode() == f"{shown}\n"


@pytest.mark.parametrize(("told", "columns"), [(0, 79), (1, 20), (80, 79), (300, 299)])
def test_a_terminal_that_tells_no_width_or_an_odd_one_has_a_usable_one(terminal: int, told: int, columns: int) -> None:
    termios.tcsetwinsize(terminal, (24, told))
    assert Terminal(terminal, True, False).columns == columns


def test_what_is_no_terminal_has_the_usual_width() -> None:
    with open(os.devnull, "w") as null:
        assert Terminal(null.fileno(), True, False).columns == 79
