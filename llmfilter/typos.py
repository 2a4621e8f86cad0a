"""What was meant by a name that isn't known: for messages."""

from collections.abc import Iterable
from itertools import islice

_LOOKED_AT_MOST = 200  # a record may have any number of keys


def did_you_mean(typed: str, known: Iterable[str], shown: str = "{}") -> str:
    """Return "; did you mean NAME?" for the known name most like `typed`, else nothing; shown: how to write it."""
    from difflib import get_close_matches  # only a message needs it

    close = get_close_matches(typed, islice(known, _LOOKED_AT_MOST), n=1)
    return f"; did you mean {shown.format(close[0])}?" if close else ""
