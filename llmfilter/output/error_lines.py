"""A row that failed, as one line: JSON for programs, short for a person."""

import re
import unicodedata
from bisect import bisect_right
from itertools import accumulate

from llmfilter.errors import RowError
from llmfilter.jsontext import dump_text
from llmfilter.output.terminal import Terminal
from llmfilter.words import printable

# What JSON lets stand unescaped and a terminal may obey: DEL and C1 (ECMA-48), in UTF-8.
_CONTROL = re.compile(rb"\x7f|\xc2[\x80-\x9f]")


def escape_controls(line: bytes) -> bytes:
    """JSON with these as escapes: it means the same."""
    return _CONTROL.sub(lambda match: b"\\u%04x" % match[0][-1], line)


def _show(text: str) -> bytes:
    return escape_controls(dump_text(text))


def error_line(number: int, error: RowError, attempts: int, raw: bytes, is_record: bool) -> bytes:
    """One line of JSON about a row that failed; `raw` are the row's own bytes, spliced in if it is a record."""
    parts = [b'{"line":%d,"error":"%b","message":%b' % (number, error.kind.encode(), _show(error.message))]
    if error.status is not None:
        parts.append(b',"status":%d' % error.status)
    if attempts:
        parts.append(b',"attempts":%d' % attempts)
    if error.raw:
        parts.append(b',"raw":' + _show(error.raw))
    parts.append(b',"input":' + (raw if is_record else _show(raw.decode("utf-8", "replace"))) + b"}\n")
    return b"".join(parts)


def short_line(terminal: Terminal, number: int, error: RowError, raw: bytes, name: str = "") -> bytes:
    """Return what a person wants to see of a row that failed, in one line that fits the terminal; name: before it."""
    columns = terminal.columns
    record = printable(raw.decode("utf-8", "replace"), columns)
    what = printable(f"{name}line {number}: {error.kind}: {error.message}")
    what = fit(what, columns - 2 - min(len(record), columns // 4))
    return f"{fit(f'{what}: {record}', columns)}\n".encode()


def fit(text: str, columns: int) -> str:
    """Return the text, or as much of its beginning as fits into so many columns, with an ellipsis."""
    ends = list(accumulate(map(_width, text)))
    if not ends or ends[-1] <= columns:
        return text
    return text[: bisect_right(ends, columns - 1)] + "…"


def _width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
