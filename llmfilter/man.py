"""The manual page, from the parser, the help's text and manual.txt: `python -m llmfilter.man > llmfilter.1`."""

import argparse
import re
from pathlib import Path

from llmfilter import __version__
from llmfilter.options import EXAMPLES, STATUSES, make_parser

_SECTION = re.compile(r"^(\S.*):\n((?: .*\n|\n)+)", re.MULTILINE)
# What stands before two spaces, or before a line that is indented deeper, is explained by what follows.
_ITEM = re.compile(r"^  (\S.*?)(?: {2,}|\n {3,})", re.MULTILINE)
# Characters that troff would make typographic ones, which no shell takes.
_PLAIN = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"})


def render() -> str:
    """Return the page in man(7)'s language."""
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
    text = Path(__file__).with_name("manual.txt").read_text(encoding="utf-8")
    for title, body in _SECTION.findall(text + STATUSES):
        lines += [f".SH {title.upper()}", _body(body)]
    lines += [".SH EXAMPLES", ".nf", _escape(EXAMPLES.partition("\n")[2].rstrip()), ".fi"]
    return "\n".join(lines) + "\n"


def _option(action: argparse.Action) -> list[str]:
    names = ", ".join(rf"\fB{_escape(name)}\fR" for name in action.option_strings)
    value = rf" \fI{_escape(str(action.metavar))}\fR" if action.nargs != 0 else ""
    return [".TP", names + value, _escape(action.help or "")]


def _body(text: str) -> str:
    text = _ITEM.sub(".TP\n\\\\fB\\1\\\\fR\n", _escape(text.strip("\n")))
    text = re.sub(r"\n\n(?!\.TP)", "\n.PP\n", text).replace("\n\n", "\n")
    return re.sub("^ +", "", text, flags=re.MULTILINE)


def _escape(text: str) -> str:
    # A line that begins with a dot would be a request.
    return re.sub(r"^( *)\.", r"\1\&.", text.translate(_PLAIN), flags=re.MULTILINE)


if __name__ == "__main__":
    print(render(), end="")
