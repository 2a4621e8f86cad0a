"""Words for people: counts, durations, near names, foreign text made fit for a terminal."""

import re
from collections.abc import Iterable
from itertools import islice

# What a terminal would obey (C0, DEL and C1: ECMA-48), or take for a line's end.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # JSON may hold one alone, UTF-8 may not
# The way to several samples of each row, for those who look for `n`.
SAMPLES = "jq -c 'range(5) as $seed | . + {seed: $seed}' | llmfilter -o seed={seed} -o temperature=1 ..."
_LINE_MOST = 2000  # characters of a line that says something of the whole run
_LOOKED_AT_MOST = 200  # a record may have any number of keys
_LISTED_MOST = 50
_NAME_MOST = 100  # characters of one that anybody reads
_SEPARATORS = re.compile(r"[\s_-]+")


def plain_line(message: str, name: str = "llmfilter") -> bytes:
    """Return the line that says something of the whole run: the one door to a terminal for foreign words."""
    return f"{name}: {printable(message, _LINE_MOST)}\n".encode()


def counted(number: int, noun: str) -> str:
    """Return like `1 row` or `2,000 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Return like 0:07, 12:30 or 3:05:00."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def short(number: int) -> str:
    """Return like 950, 12.3k or 4.56M."""
    # Each unit begins where three digits of the one below would be rounded to a thousand.
    for limit, unit, name in ((999.5e9, 1e12, "T"), (999.5e6, 1e9, "G"), (999.5e3, 1e6, "M"), (1e4, 1e3, "k")):
        if number >= limit:
            return f"{number / unit:.3g}{name}"
    return str(number)


def money(amount: float) -> str:
    """Return like 1,234.50, 0.0123 or 0.000012: cents, or what is to be seen of less."""
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{amount:.{4 if amount >= 0.01 else 6}f}"


def did_you_mean(typed: str, known: Iterable[str], shown: str = "{}") -> str:
    """Return "; did you mean NAME?" for the known name most like `typed`, else nothing; shown: how to write it.

    Most like it is a name that differs only in case, white space, `_` and `-`.
    """
    from difflib import get_close_matches  # only a message needs it

    if len(typed) > _NAME_MOST:
        return ""
    names = {name.casefold(): name for name in reversed([*islice(known, _LOOKED_AT_MOST)]) if len(name) <= _NAME_MOST}
    plain = {_SEPARATORS.sub("", name): name for name in names}
    close = [plain[key]] if (key := _SEPARATORS.sub("", typed.casefold())) in plain and key else []
    if not close and len(typed) > 1:  # a single letter is like nothing
        close = get_close_matches(typed.casefold(), names, n=1)
    return f"; did you mean {printable(shown.format(names[close[0]]), 2 * _NAME_MOST)}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Return like `id, text`, as many of the names as anybody reads."""
    shown = [printable(name, _NAME_MOST) or '""' for name in islice(names, _LISTED_MOST + 1)]
    return ", ".join([*shown[:_LISTED_MOST], "…"] if len(shown) > _LISTED_MOST else shown) or "none"


def describe_bug(bug: BaseException) -> str:
    """Return what to say of a bug in llmfilter: what it is, where, and that it should be reported."""
    at = bug.__traceback__
    while at and at.tb_next:
        at = at.tb_next
    place = f" in {at.tb_frame.f_code.co_name}, line {at.tb_lineno} of {at.tb_frame.f_code.co_filename}" if at else ""
    return printable(f"a bug in llmfilter, please report it with this line: {type(bug).__name__}: {bug}{place}")


def printable(text: str, most: int = 500) -> str:
    """Return foreign text fit for one line on a terminal, encodable as UTF-8 and of at most `most` characters."""
    text = text[: 20 * most]  # what comes behind is not looked at
    text = _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text)).strip()
    return text if len(text) <= most else text[: most - 1] + "…"
