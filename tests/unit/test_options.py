"""options: the help declares what may be typed; of all else only the name is repeated."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfilter.errors import UsageError
from llmfilter.options import HELP, OPTIONS, make_parser, parse


def complaint(*typed: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(typed)
    return str(caught.value)


def test_each_line_of_the_help_that_names_an_option_declares_it() -> None:
    shown = [
        line.split("  ")[1] if line[2:3] == "-" else line.strip()
        for line in OPTIONS.splitlines()
        if "  --" in f" {line[3:]}" or line[2:3] == "-"
    ]
    actions = make_parser()._actions
    assert len(shown) == len(actions)
    for line, action in zip(shown, actions, strict=True):
        assert line.split("  ")[0].startswith(", ".join(action.option_strings))


@pytest.mark.parametrize("action", make_parser()._actions, ids=lambda action: action.dest)
def test_what_the_help_says_of_an_option_is_what_it_does(action: argparse.Action) -> None:
    assert (action.nargs == 0) is (action.metavar is None)
    assert action.help and action.help in " ".join(HELP.split())
    if type(action.default) in (int, float) and action.default < 1e9:
        assert f"(default: {action.default:g})" in action.help


@pytest.mark.parametrize(
    ("typed", "way"),
    [
        ("--concurrency", "-j N"),
        ("--workers", "-j N"),
        ("--resume", "the same command again"),
        ("--limit", "head -n N"),
        ("--input", "< data.jsonl"),
        ("--output", "> out.jsonl"),
        ("--temperature", "-o temperature="),
        ("--max-tokens", "-o max_tokens="),
        ("--max_tokens", "-o max_tokens="),
        ("--retry", "-r N"),
        ("--base_url", "--base-url"),
        ("--system-prompt", "-s TEXT"),
        ("--samples", "seed={seed}"),
        ("--n", "seed={seed}"),
        ("--cache-dir", "--cache DIR"),
        ("--verbose", "--stats FILE"),
        ("--api-key", "$OPENAI_API_KEY"),
    ],
)
def test_what_others_call_it_is_said_in_our_words(typed: str, way: str) -> None:
    for arguments in ([typed, "some"], [f"{typed}=some"]):
        message = complaint(*arguments)
        assert message.startswith(f"unrecognized option {typed}")
        assert way in message
        assert "some" not in message.replace("samples", "")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="-="), min_size=8))
def test_the_value_of_an_unknown_option_is_never_repeated(value: str) -> None:
    value = f"|{value}|"  # no message holds such a text of its own accord
    for arguments in (["--api-key", value], [f"--nope={value}"], ["--nope", value, "--nor"]):
        assert value not in complaint(*arguments)


@pytest.mark.parametrize("option", ["-p", "-m", "-u", "--schema", "--stats"])
def test_an_empty_value_is_refused_where_it_can_not_be_meant(option: str) -> None:
    assert "the value is empty" in complaint(option, "")
