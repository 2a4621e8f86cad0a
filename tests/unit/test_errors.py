"""errors: foreign text may be anything, what is shown of it may not; an attempt hides one kind of error only."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmfilter.errors import RowError, attempt
from llmfilter.words import describe_bug, printable

# As a list: of one alphabet the odd ones would be rare.
odd = st.sampled_from("\x1b\r\n\t\x7f\x85\x9b\u2028\u2029\ud800\udfff ")
texts = st.lists(odd | st.characters()).map("".join)


@given(texts, st.integers(1, 30))
@example("\x1b]0;title\x07", 500)
@example("x" * 30 + "\ud83d\ude00", 30)
@example("x\n" * 50, 30)
@example("\n" * 100 + "x", 3)
def test_shown_text_is_one_bounded_line_that_no_terminal_obeys_and_utf_8_can_hold(text: str, most: int) -> None:
    shown = printable(text, most)
    assert len(shown) <= most
    assert shown.encode().decode() == shown
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in shown)
    assert printable(shown, most) == shown.strip()


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30))
def test_text_that_is_fit_is_left_alone(text: str) -> None:
    assert printable(text, 30) == text.strip()


def test_a_bug_is_described_in_one_line_that_names_the_place() -> None:
    def fail() -> None:
        raise LookupError("two\nlines")

    try:
        fail()
    except LookupError as bug:
        said = describe_bug(bug)
    assert "please report it" in said and "LookupError: two lines in fail, line " in said
    assert said.endswith("test_errors.py")
    assert "RuntimeError: it" in describe_bug(RuntimeError("it"))  # never raised: without a place


def test_an_attempt_gives_what_comes_out_or_the_row_s_error_and_hides_nothing_else() -> None:
    def divide(dividend: int, *, by: int) -> int:
        if by < 0:
            raise fault
        return dividend // by

    fault = RowError("input", "negative")
    assert attempt(divide, 6, by=2) == 3
    assert attempt(divide, 6, by=-1) is fault
    with pytest.raises(ZeroDivisionError):
        attempt(divide, 6, by=0)
