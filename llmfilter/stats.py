"""What a run did, in numbers."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_BUCKETS = 50  # of the histogram for each factor of e: 2 % wide


class Histogram:
    """Durations in buckets that grow with them, so that memory is bounded whatever their number."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self._buckets[round(math.log(max(seconds, 1e-6)) * _BUCKETS)] += 1

    def quantile(self, fraction: float) -> float | None:
        """Return the seconds that so many take at most, within 1 %; None if nothing was counted."""
        left = math.ceil(fraction * self._buckets.total())
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return round(math.exp(bucket / _BUCKETS), 4)
        return None


@dataclass(slots=True)
class Stats:
    """Counters of one run; rows = answered + failed (+ unfinished, after an early stop).

    asked: rows that were answered by a request of their own; cached: without one; unstored: answers
    that are not in the cache since it failed; replaced: rows of which a key was replaced, the first
    of them by its line and key; refusals: requests for which the server had no room; answer_s: how
    long those took that it answered; limit: what it was found to take, like `8 at a time`.
    """

    rows: int = 0
    asked: int = 0
    cached: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    unstored: int = 0
    replaced: int = 0
    first_replaced: tuple[int, str] | None = None
    requests: int = 0
    retries: int = 0
    reasked: int = 0
    refusals: int = 0
    limit: str | None = None
    answer_s: Histogram = field(default_factory=Histogram)
    billed_prompt: int = 0
    billed_completion: int = 0
    saved_prompt: int = 0
    saved_completion: int = 0
    started_at: float = field(default_factory=time.monotonic)

    def count_replaced(self, line: int, record: Mapping[str, Any], answer_keys: Mapping[str, Any]) -> None:
        """Note the keys of a record that its answer has too: the answer's values stand in their place."""
        if record.keys().isdisjoint(answer_keys):
            return
        self.replaced += 1
        if self.first_replaced is None:
            self.first_replaced = (line, next(key for key in record if key in answer_keys))

    def count_replays(self, rows: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Note rows that were answered without a request of their own."""
        self.cached += rows
        self.saved_prompt += prompt_tokens
        self.saved_completion += completion_tokens

    @property
    def answered(self) -> int:
        """Rows that got an answer."""
        return self.asked + self.cached

    @property
    def failed(self) -> int:
        """Rows that got an error line."""
        return self.by_kind.total()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started_at

    def as_dict(self) -> dict[str, Any]:
        """Return the counters as `--stats` writes them."""
        seconds = max(self.seconds, 0.001)
        return {
            "rows": self.rows,
            "answered": self.answered,
            "cached": self.cached,
            "failed": self.failed,
            "by_kind": dict(sorted(self.by_kind.items())),
            "unstored": self.unstored,
            "replaced": self.replaced,
            "unfinished": self.rows - self.answered - self.failed,
            "requests": self.requests,
            "retries": self.retries,
            "reasked": self.reasked,
            "refusals": self.refusals,
            "limit": self.limit,
            "answer_seconds": {"median": self.answer_s.quantile(0.5), "p95": self.answer_s.quantile(0.95)},
            "tokens": {
                "billed": {"prompt": self.billed_prompt, "completion": self.billed_completion},
                "saved": {"prompt": self.saved_prompt, "completion": self.saved_completion},
            },
            "tokens_per_second": {
                "prompt": round(self.billed_prompt / seconds, 1),
                "completion": round(self.billed_completion / seconds, 1),
            },
            "seconds": round(seconds, 3),
        }


class UnderWay(NamedTuple):
    """What was taken and has no line yet.

    requests: how many there are.
    first_unfinished: the lowest of their lines, or None.
    at_server: how many were sent and not answered.
    limit: what was found of the server's limit, if any.
    waits_s: for how long nothing has come back from the server but refusals and faults.
    """

    requests: int = 0
    first_unfinished: int | None = None
    at_server: int = 0
    limit: str | None = None
    waits_s: float = 0.0


class Snapshot(NamedTuple):
    """How far a run is.

    bytes_done: about how much of the input has its lines.
    is_held: whether lines wait for the reader of the output.
    is_ending: whether nothing more is taken.
    first_unfinished: the lowest line without an outcome, or None.
    under_way: what was taken and has no line yet.
    """

    bytes_done: float
    is_held: bool
    is_ending: bool
    first_unfinished: int | None
    under_way: UnderWay
