"""What can go wrong, named by its remedy."""

import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# What a terminal would obey (C0, DEL and C1: ECMA-48), or take for a line's end.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # JSON may hold one alone, UTF-8 may not


OUT_OF_MEMORY = "out of memory: raise ulimit -v, or give smaller records or a smaller -j"


class UsageError(Exception):
    """Wrong usage or configuration: nothing was sent (exit status 2)."""


class RunError(Exception):
    """What refuses every row: the run ends here (exit status 3)."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class RowError(Exception):
    """One row fails; the others go on.

    kind: the KIND of its error line; status: the HTTP status, where there was one;
    raw: the model's answer as far as there was one, so that what was paid for is not lost.
    """

    def __init__(self, kind: str, message: str, *, status: int | None = None, raw: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.raw = raw


def attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RowError:
    """Return what a function returns, or the RowError that it raises."""
    try:
        return function(*args, **kwargs)
    except RowError as fault:
        return fault


class Retryable(RowError):
    """The same request may succeed later.

    after_s: how long the server asks to wait; is_refusal: the server has no room now (a rate limit, a
    full queue, a model that loads), which uses up no attempt. Otherwise it is a fault. advice: what to
    do if it is all that was ever heard of the server.
    """

    after_s: float | None = None
    is_refusal = False
    advice = "check -u (or $OPENAI_BASE_URL)"


class Abandoned(Exception):
    """The run is stopping: this row gets neither an answer nor an error line."""


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
