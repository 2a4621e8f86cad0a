"""What ends a run: a server, or an input, that refuses every row alike."""

from llmfilter.api import faults
from llmfilter.errors import Retryable, RowError, RunError
from llmfilter.stats import Stats

REJECTED_MOST = 32  # distinct rows rejected before any success: all the others would be, too


class Hopeless:
    """Tells, as long as nothing has succeeded, whether what one row met every row will meet.

    An answer, also an unusable one, is a success, and so is a cache hit.
    """

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._has_answered = False
        self._has_spoken = False
        self._rejected = 0
        self._unsent = 0
        self._first_unsent: RowError | None = None

    def succeed(self) -> None:
        """Note that the server has answered a row."""
        self._has_answered = True

    def hear(self, fault: RowError) -> None:
        """Note that the server has said something, if only in an error."""
        self._has_spoken |= fault.status is not None or fault.raw is not None

    def reject(self, fault: RowError) -> None:
        """Note that a row has failed for good; raise RunError if all of them would."""
        if self._has_answered or self._stats.answered:
            return
        if isinstance(fault, Retryable) and fault.kind == "network" and not self._has_spoken:
            raise RunError(f"the server can't be reached: {fault.message}: {fault.advice}")
        if isinstance(fault, faults.ModelMissing):
            raise RunError(f"the server has no such model ({fault.message}): check -m and -u")
        if fault.status in faults.REJECTIONS:
            self._rejected += 1
            if self._rejected >= REJECTED_MOST:
                raise RunError(f"the server refused the first {REJECTED_MOST} rows, the last with {fault.message}")

    def reject_unsent(self, fault: RowError) -> None:
        """Note that no request could be made of a row; raise RunError if that holds for all."""
        self._first_unsent = self._first_unsent or fault
        self._unsent += 1
        if self._unsent == REJECTED_MOST == self._stats.rows:
            raise RunError(
                "check the prompt and the input: "
                f"none of the first {REJECTED_MOST} rows can be sent, the first since {self._first_unsent.message}"
            )
