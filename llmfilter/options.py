"""The command line: what may be typed, and the help that says so."""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from llmfilter import __version__
from llmfilter.errors import UsageError
from llmfilter.stats import Price
from llmfilter.words import did_you_mean, printable

EXAMPLES = """\
examples:
  cat data.jsonl | llmfilter -p prompt.md > out.jsonl
  head -3 data.jsonl | llmfilter -p prompt.md -n        # see the requests, send none
  llmfilter -m gpt-4o-mini --schema answer.json -p prompt.md < in.jsonl > out.jsonl
  llmfilter -u http://localhost:8000/v1 -j 256 -p prompt.md < in.jsonl > out.jsonl
  llmfilter --text --as fr -p translate.md < in.jsonl 2> errors.jsonl > out.jsonl
  grep '^{' errors.jsonl | jq -c '.input | objects' | llmfilter -p better.md
"""

STATUSES = """\
exit status:
  0    every row was answered
  1    some rows failed: one line of JSON each on stderr; the same command tries them again
  2    wrong usage or configuration: nothing was sent
  3    stopped early: the server refuses the whole run, the budget is used up, or an output
       can't be written
  128+n  ended by signal n (130: Ctrl-C); the same command goes on from there
  141  the reader of stdout, or of stderr, has gone
"""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help of one look on every Python version and terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27, width=96)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        if len(action.option_strings) == 1:
            names = "    " + names
        return names if action.nargs == 0 else f"{names} {action.metavar}"


class _Parser(argparse.ArgumentParser):
    color = False  # Python 3.14 would colour the help

    def error(self, message: str) -> NoReturn:
        what, _, arguments = message.partition(": ")
        if what == "unrecognized arguments":
            typed = arguments.partition(" ")[0].partition("=")[0]
            if typed.startswith(("-", "–", "—")):  # some editors make dashes of two hyphens
                hint = did_you_mean(typed, self._option_string_actions)
                message += hint or "; a field of the request is given like -o max_tokens=500"
            else:
                message += ": records come on stdin, like < data.jsonl"
        raise UsageError(f"{printable(message)} (see llmfilter --help)")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what was typed; raise UsageError. argv: the program's own arguments if None."""
    parser = make_parser()
    args = sys.argv[1:] if argv is None else argv
    for name in (arg.partition("=")[0] for arg in args):
        if name.startswith("-") and f"-{name}" in parser._option_string_actions:
            parser.error(f"{name}: did you mean -{name}?")  # -model is -m with the value odel
    parsed = parser.parse_args(args)
    if parsed.price is None and isinstance(parsed.budget, float):
        parser.error(f"argument --budget: {parsed.budget:g} is not a whole number of tokens; money needs --price")
    return parsed


class _Once(argparse.Action):
    """Stores an option's value, and refuses a second one: which of them was meant can't be known."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given: set[str] = vars(namespace).setdefault("given", set())
        if self.dest in given:
            parser.error(f"{option} is given twice, but takes one value")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; it raises UsageError instead of exiting."""
    parser = _Parser(
        prog="llmfilter",
        usage="llmfilter [-p FILE] [option ...] < records.jsonl > answers.jsonl",
        description="Run a language model over JSON lines: each record on stdin becomes one chat request, and\n"
        "goes to stdout with the parsed answer merged into it; what failed goes to stderr.",
        epilog=f"{EXAMPLES}\n{STATUSES}",
        formatter_class=_Help,
        allow_abbrev=False,
        add_help=False,
    )
    parser.register("action", None, _Once)  # for options that name no other
    _add_prompt(parser.add_argument_group("prompt"))
    _add_server(parser.add_argument_group("server"))
    _add_answers(parser.add_argument_group("answers"))
    _add_run(parser.add_argument_group("run"))
    _add_other(parser.add_argument_group("other"))
    return parser


def _add_prompt(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-p",
        "--prompt",
        metavar="FILE",
        help="user prompt; {field} is filled from each record (default: none, the record carries its own `messages`)",
    )
    group.add_argument(
        "-s",
        "--system",
        metavar="TEXT",
        help="system prompt, or @FILE to read it from a file; may hold {field}s too",
    )


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-m",
        "--model",
        metavar="NAME",
        help="model (default: $OPENAI_MODEL, else the server's only model)",
    )
    group.add_argument(
        "-u",
        "--base-url",
        metavar="URL",
        help="server; a query string is kept, and a URL that ends in "
        "/chat/completions is taken as it is (default: $OPENAI_BASE_URL, else OpenAI's)",
    )
    group.add_argument(
        "-o",
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="request field; VALUE is JSON, else text; {field} alone is that field's JSON from each record; "
        "null leaves it out (default: temperature=0)",
    )
    group.add_argument(
        "-H",
        "--header",
        metavar="'K: V'",
        action="append",
        default=[],
        help="extra header; $VAR in V comes from "
        "the environment. The key comes from $OPENAI_API_KEY; a server on this machine needs none",
    )


def _add_answers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--schema",
        metavar="FILE",
        help="JSON Schema of the answers: asked of the server, and checked here",
    )
    group.add_argument(
        "-f",
        "--fields",
        metavar="A,B",
        help="keep only these keys of the answer; all must be there",
    )
    group.add_argument("--as", dest="as_key", metavar="KEY", help="put the answer under KEY (default: merge it)")
    group.add_argument("--text", action="store_true", help="plain-text answers, under --as (default: answer)")
    group.add_argument(
        "--response",
        metavar="KEY",
        help="also put the server's whole response under KEY: log-probabilities, usage, reasoning",
    )
    group.add_argument(
        "--reask",
        metavar="N",
        type=_count,
        default=1,
        help="on an unusable answer, show the model its answer and the fault, and ask again, N times (default: 1)",
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-j", "--jobs", metavar="N", type=_positive, default=32, help="most requests in flight (default: 32)"
    )
    group.add_argument(
        "-k", "--keep-order", action="store_true", help="output in input order (default: as they finish)"
    )
    group.add_argument(
        "-r",
        "--retries",
        metavar="N",
        type=_count,
        default=5,
        help="extra attempts after a fault; waiting out a rate limit uses none up (default: 5)",
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=600.0,
        help="for one whole attempt (default: 600)",
    )
    group.add_argument(
        "--stream",
        action="store_true",
        help="let the server send each answer piece by piece: for those that take longer than a proxy waits",
    )
    group.add_argument(
        "--rpm",
        metavar="N",
        type=_rate,
        default=math.inf,
        help="requests a minute, at most (default: what the server bears)",
    )
    group.add_argument(
        "--price",
        metavar="IN,OUT[,CACHED]",
        type=_price,
        help="money for a million prompt, completion and cached prompt tokens: what is said of tokens is "
        "then said of money too",
    )
    group.add_argument(
        "--budget",
        metavar="N",
        type=_budget,
        help="end the run when so many tokens, of prompts and answers, have been billed in it, or with --price "
        "so much money; what is in flight then goes beyond",
    )
    group.add_argument(
        "--cache",
        metavar="DIR",
        help="folder of the answers paid for (default: $LLMFILTER_CACHE, else $XDG_CACHE_HOME/llmfilter)",
    )
    group.add_argument("--no-cache", action="store_true", help="look nothing up and store nothing")


def _add_other(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        help="print each request body; send nothing, need no key",
    )
    group.add_argument(
        "--to-batch",
        action="store_true",
        help="print what the cache lacks as lines for a Batch API, each request once; send nothing, need no key",
    )
    group.add_argument(
        "--from-batch",
        action="store_true",
        help="read the lines of a Batch API's results, and put the answers into the cache",
    )
    group.add_argument("--stats", metavar="FILE", help="write the final counters as one JSON object")
    group.add_argument("-q", "--quiet", action="store_true", help="no bar and no summary (both only on a terminal)")
    group.add_argument("--version", action="version", version=f"llmfilter {__version__}", help="print the version")
    group.add_argument("-h", "--help", action="help", help="print this help")


def _count(text: str) -> int:
    return _number(text, 0)


def _positive(text: str) -> int:
    return _number(text, 1)


def _number(text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
    return int(text)


def _seconds(text: str) -> float:
    return _amount(text, "a number of seconds")


def _rate(text: str) -> float:
    return _amount(text, "a number of requests a minute")


def _budget(text: str) -> float:
    """Return tokens as an int, money as a float."""
    return _number(text, 1) if text.isdigit() else _amount(text, "a number of tokens, or with --price of money,")


def _price(text: str) -> Price:
    try:
        prices = [float(each) for each in text.split(",")]
        if len(prices) in (2, 3) and all(0 <= each < math.inf for each in prices):
            return Price(prices[0], prices[1], prices[2] if len(prices) == 3 else prices[0])
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not like 0.15,0.60 or 0.15,0.60,0.075: money for a million tokens")


def _amount(text: str, what: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 < amount < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} above 0")
    return amount
