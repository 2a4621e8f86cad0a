"""What can go wrong, named by its remedy."""

from collections.abc import Callable
from typing import Any, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
CHECK_URL = "check -u (or $OPENAI_BASE_URL)"
OUT_OF_MEMORY = "out of memory: raise ulimit -v, or give smaller records or a smaller -j"


class UsageError(Exception):
    """Wrong usage or configuration: nothing was sent (exit status 2)."""


class Fault(Exception):
    """What is told of a row or a run that fails. It is not changed after it was made: `but` makes another one."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def but(self, **changes: Any) -> Self:
        """Return the same error with other attributes."""
        attributes = {**vars(self), **changes}
        other = type(self).__new__(type(self), attributes["message"])
        vars(other).update(attributes)
        return other


class RunError(Fault):
    """What refuses every row: the run ends here (exit status 3)."""


class RowError(Fault):
    """One row fails; the others go on.

    kind: the KIND of its error line.
    status: the HTTP status, where there was one.
    raw: the model's answer as far as there was one, so that what was paid for is not lost.
    param: the field of the request that the server blames, where it names one.
    """

    def __init__(
        self, kind: str, message: str, *, status: int | None = None, raw: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.raw = raw
        self.param = param


def attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RowError:
    """Return what a function returns, or the RowError that it raises."""
    try:
        return function(*args, **kwargs)
    except RowError as fault:
        return fault


LATE_S = 30.0  # an answer that was waited for so long was most likely billed


class Retryable(RowError):
    """The same request may succeed later.

    after_s: how long the server asks to wait, or None.
    is_refusal: the server has no room now (a rate limit, a full queue, a model that loads), which uses up
    no attempt. Otherwise it is a fault.
    is_unreachable: nothing could be sent.
    is_dropped: the connection broke before anything of the answer came.
    overdue_s: where it ended at a time limit, ours or another's, after how long.
    advice: what to do if it is all that was ever heard of the server.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        status: int | None = None,
        raw: str | None = None,
        after_s: float | None = None,
        is_refusal: bool = False,
        is_unreachable: bool = False,
        is_dropped: bool = False,
        overdue_s: float | None = None,
        advice: str = CHECK_URL,
    ) -> None:
        super().__init__(kind, message, status=status, raw=raw)
        self.after_s = after_s
        self.is_refusal = is_refusal
        self.is_unreachable = is_unreachable
        self.is_dropped = is_dropped
        self.overdue_s = overdue_s
        self.advice = advice

    @property
    def is_late(self) -> bool:
        """Tell whether it ended at a time limit after so long that the answer was most likely billed."""
        return self.overdue_s is not None and self.overdue_s >= LATE_S


class Incomplete(RowError):
    """An answer that lacks a field of `-f`, and is sound but for that: worth keeping."""


_SHOWN = 1000  # characters of a body that is no completion


class Faulty(Retryable):
    """A 200 that is no answer: kind `server`.

    document: what was parsed of it.
    shape: where it is no completion at all what it is instead, and the way out.
    """

    def __init__(self, message: str, body: bytes, document: Any = None, shape: tuple[str, ...] | None = None) -> None:
        super().__init__("server", message, raw=body[: 4 * _SHOWN].decode("utf-8", "replace")[:_SHOWN])
        self.document = document
        self.shape = shape


class Abandoned(Exception):
    """The run is stopping: this row gets neither an answer nor an error line."""
