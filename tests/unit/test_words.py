"""typos: a name that isn't known is likely one that is, misspelt."""

from collections.abc import Sequence

import pytest

from llmfilter.words import did_you_mean


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("lable", ["text", "label", "id"], "label"),
        ("labels", ["id", "label"], "label"),
        ("label", ["id", "text"], None),
        ("label", [], None),
        ("", ["id"], None),
        ("lable", [*map(str, range(199)), "label"], "label"),
        ("lable", [*map(str, range(200)), "label"], None),  # a record with so many keys costs no more time
    ],
)
def test_the_known_name_most_like_it_is_suggested(typed: str, known: Sequence[str], meant: str | None) -> None:
    assert did_you_mean(typed, known) == (f"; did you mean {meant}?" if meant else "")


def test_it_is_shown_as_it_is_written_here() -> None:
    assert did_you_mean("lable", ["label"], "{{{}}}") == "; did you mean {label}?"
