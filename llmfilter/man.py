"""The manual page, from the parser: `python -m llmfilter.man > llmfilter.1`."""

import argparse

from llmfilter import __version__
from llmfilter.options import EXAMPLES, STATUSES, make_parser


def render() -> str:
    """The page in man(7)'s language."""
    parser = make_parser()
    lines = [
        f'.TH LLMFILTER 1 "" "llmfilter {__version__}" "User Commands"',
        ".SH NAME",
        r"llmfilter \- run a language model over JSON lines",
        ".SH SYNOPSIS",
        _escape(parser.usage or ""),
        ".SH DESCRIPTION",
        _escape(parser.description or ""),
        ".SH OPTIONS",
    ]
    for group in parser._action_groups:
        if group._group_actions:
            lines.append(f".SS {(group.title or '').capitalize()}")
            for action in group._group_actions:
                lines += _option(action)
    for text in (EXAMPLES, STATUSES):
        title, _, body = text.partition("\n")
        lines += [f".SH {title.rstrip(':').upper()}", ".nf", _escape(body.rstrip()), ".fi"]
    return "\n".join(lines) + "\n"


def _option(action: argparse.Action) -> list[str]:
    names = ", ".join(rf"\fB{_escape(name)}\fR" for name in action.option_strings)
    value = rf" \fI{_escape(str(action.metavar))}\fR" if action.nargs != 0 else ""
    return [".TP", names + value, _escape(action.help or "")]


def _escape(text: str) -> str:
    text = text.replace("\\", r"\e").replace("-", r"\-")
    # A line that begins with a dot or an apostrophe would be a request.
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n"))


if __name__ == "__main__":
    print(render(), end="")
