"""The command line: the help, which declares what may be typed, and what is said of all else."""

import argparse
import math
import os
import re
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from llmfilter import __version__
from llmfilter.errors import UsageError
from llmfilter.words import SAMPLES, did_you_mean, printable

if TYPE_CHECKING:
    from llmfilter.stats import Price

USAGE = "llmfilter [-p FILE] [option ...] < records.jsonl > answers.jsonl"

DESCRIPTION = """\
Run a language model over JSON lines: each record on stdin becomes one chat request, and
goes to stdout with the parsed answer merged into it; what failed goes to stderr.
"""

# The declaration: an option with a word behind its name takes a value; one without is a switch.
OPTIONS = """\
prompt:
  -p, --prompt FILE        user prompt, or the prompt itself where it has a {; {field} is filled
                           from each record (default: the record's own `messages`)
  -s, --system TEXT        system prompt, or @FILE to read it from a file; may hold {field}s too
      --image FIELD        send a picture behind the text: FIELD holds its path or URL, or a
                           list of these

server:
  -m, --model NAME         model (default: $OPENAI_MODEL, else the server's only model)
  -u, --base-url URL       server; a query string is kept, and a URL that ends in
                           /chat/completions is taken as it is (default: $OPENAI_BASE_URL, else
                           OpenAI's)
  -o, --option KEY=VALUE   request field; VALUE is JSON, else text; {field} alone is that
                           field's JSON from each record; null leaves it out (default:
                           temperature=0)
  -H, --header 'K: V'      extra header; $VAR in V comes from the environment. The key comes
                           from $OPENAI_API_KEY; a server on this machine needs none

answers:
      --schema FILE        JSON Schema of the answers, or the schema itself: asked of the server,
                           and checked here
  -f, --fields A,B         keep only these keys of the answer; all must be there
      --as KEY             put the answer under KEY (default: merge it)
      --text               plain-text answers, under --as (default: answer)
      --response KEY       also put the server's whole response under KEY: log-probabilities,
                           usage, reasoning
      --reask N            show the model an answer that can't be used and what is wrong with it,
                           and ask again, up to N times (default: 1)

run:
  -j, --jobs N             requests in flight, at most (default: 32)
  -k, --keep-order         output in input order (default: as they finish)
  -r, --retries N          extra attempts after a fault; waiting out a rate limit uses none up
                           (default: 5)
      --timeout SECONDS    for one whole attempt (default: 600)
      --stream             receive each answer piece by piece: for answers that take longer than
                           a proxy waits
      --rpm N              requests a minute, at most (default: what the server takes)
      --price IN,OUT[,CACHED]
                           money for a million prompt, completion and cached prompt tokens: the
                           run then tells its cost
      --budget N           stop when N tokens (of prompts and answers), or with --price so much
                           money, have been billed; what is in flight then is finished
      --cache DIR          folder of the answers paid for (default: $LLMFILTER_CACHE, else
                           $XDG_CACHE_HOME/llmfilter)
      --no-cache           look nothing up and store nothing

other:
  -n, --dry-run            print each request body, and count what there is to ask; send nothing,
                           need no key
      --to-batch           print the requests that the cache can't answer as lines for a Batch
                           API, each once; send nothing, need no key
      --from-batch         read a Batch API's result lines, and put the answers into the cache
      --stats FILE         write the final counters as one JSON object
  -q, --quiet              no bar and no summary (both only on a terminal)
      --version            print the version
  -h, --help               print this help
"""

EXAMPLES = """\
examples:
  cat data.jsonl | llmfilter -p prompt.md > out.jsonl
  head -3 data.jsonl | llmfilter -p prompt.md -n        # see the requests, send none
  llmfilter -m MODEL --schema answer.json -p prompt.md < in.jsonl > out.jsonl
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

HELP = f"usage: {USAGE}\n\n{DESCRIPTION}\n{OPTIONS}\n{EXAMPLES}\n{STATUSES}"

_GROUP = re.compile(r"^(\w+):\n((?: .*\n)+)", re.MULTILINE)
_OPTION = re.compile(
    r"^  (?:(?P<short>-\w), |    )(?P<long>--[\w-]+)(?: (?P<value>\S+(?: \S+)*))?"
    r"(?:  +|\n +)(?P<help>.*\n(?: {9,}.*\n)*)",
    re.MULTILINE,
)

# What other programs call it → how it is said here.
_WAYS = {
    "--api-key --apikey --key --token": "the key comes from $OPENAI_API_KEY, or from -H 'api-key: $MY_KEY'",
    "--concurrency --max-concurrency --workers --max-workers --num-workers --parallel --threads": "give -j N",
    "--resume --continue --restart": "run the same command again: it goes on where it stopped",
    "--limit --max-rows --max-samples --head": "head -n N data.jsonl | llmfilter ... asks for the first N only",
    "--input --input-file --in --file --data --dataset -i": "records come on stdin, like < data.jsonl",
    "--output --output-file --out --outfile": "answers go to stdout, like > out.jsonl",
    "--retry --max-retries": "give -r N",
    "--url --api-base --endpoint --host --server": "give -u URL",
    "--system-prompt --system-message": "give -s TEXT, or -s @FILE",
    "--samples --num-samples --n --best-of": f"for several samples of each row: {SAMPLES}",
    "--cache-dir --cache-path": "give --cache DIR",
    "--verbose --debug --progress -v": "kill -USR1 PID shows progress, --stats FILE writes counters",
    "--temperature --temp -t": "give -o temperature=NUMBER",
    "--max-tokens --max-completion-tokens --max-new-tokens": "give -o max_tokens=N",
}


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        return HELP

    def _print_message(self, message: str, file: object = None) -> None:
        try:
            os.write(1, message.encode())  # at once: what is left in a buffer fails too late to be told
        except OSError as error:
            raise UsageError(f"stdout can't be written: {error.strerror}") from None

    def error(self, message: str) -> NoReturn:
        what, _, arguments = message.partition(": ")
        if what == "unrecognized arguments":
            message = describe_unknown(arguments, self._option_string_actions)
        elif arguments == "expected one argument":
            message = f"{what} needs a value: one that begins with - is given behind =, like --system='- Be brief'"
        raise UsageError(f"{printable(message)} (see llmfilter --help)")


def describe_unknown(arguments: str, known: Collection[str]) -> str:
    """Return what to say of arguments that are none of ours; values are not repeated, since one may be a key."""
    typed = arguments.partition(" ")[0].partition("=")[0]
    if not typed.startswith(("-", "–", "—")):  # some editors make dashes of two hyphens
        shown = f" {typed}" if re.fullmatch(r"[\w./-]+\.\w{1,8}", typed) else ""
        return f"unrecognized argument{shown}: records come on stdin, like < data.jsonl, the prompt with -p"
    name = typed.replace("_", "-")
    way = next((f": {way}" for names, way in _WAYS.items() if name in names.split()), "")
    hint = way or did_you_mean(name, known) or "; a field of the request is given like -o max_tokens=500"
    return f"unrecognized option {typed}{hint}"


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


def typed_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was typed beside the defaults, by the options' long names."""
    values = {
        each.option_strings[-1]: (getattr(args, each.dest, None), each.default) for each in make_parser()._actions
    }
    return {name: value for name, (value, default) in values.items() if value not in (default, None)}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser that the help declares; it raises UsageError instead of exiting."""
    parser = _Parser(prog="llmfilter", usage=USAGE, description=DESCRIPTION, allow_abbrev=False, add_help=False)
    parser.register("action", None, _Once)  # for options that name no other
    for title, options in _GROUP.findall(OPTIONS):
        group = parser.add_argument_group(title)
        for option in _OPTION.finditer(options):
            names = [name for name in (option["short"], option["long"]) if name]
            more = _MORE.get(option["long"], {} if option["value"] else {"action": "store_true"})
            if option["value"]:
                more = {"metavar": option["value"], **more}
            group.add_argument(*names, help=" ".join(option["help"].split()), **more)
    return parser


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


_PRICE_MOST = 1e12  # in any currency


def _price(text: str) -> "Price":
    from llmfilter.stats import Price  # takes 10 ms, for which --help need not wait

    try:
        prices = [float(each) for each in text.split(",")]
        if len(prices) in (2, 3) and all(0 <= each <= _PRICE_MOST for each in prices):
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


def _filled(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the value is empty; is a variable not set?")
    return text


def _assignment(text: str) -> str:
    if "=" not in text[1:]:
        key = text if text.isidentifier() else "max_tokens"
        raise UsageError(f"-o {printable(text, 100)!r}: give KEY=VALUE, like -o {key}=0")
    return text


# What the help does not tell of an option.
_MORE: dict[str, dict[str, Any]] = {
    "--prompt": {"type": _filled},
    "--model": {"type": _filled},
    "--base-url": {"type": _filled},
    "--option": {"action": "append", "default": [], "type": _assignment},
    "--header": {"action": "append", "default": []},
    "--schema": {"type": _filled},
    "--as": {"dest": "as_key"},
    "--reask": {"type": _count, "default": 1},
    "--jobs": {"type": _positive, "default": 32},
    "--retries": {"type": _count, "default": 5},
    "--timeout": {"type": _seconds, "default": 600.0},
    "--rpm": {"type": _rate, "default": math.inf},
    "--price": {"type": _price},
    "--budget": {"type": _budget},
    "--stats": {"type": _filled},
    "--version": {"action": "version", "version": f"llmfilter {__version__}"},
    "--help": {"action": "help"},
}
