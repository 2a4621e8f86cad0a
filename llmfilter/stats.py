"""What a run did, in numbers."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Usage(NamedTuple):
    """Tokens as a server counts them.

    prompt: of the prompts.
    completion: of the answers, reasoning included.
    cached: those of the prompts that the server had in a cache of its own, and bills at another price.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    @property
    def total(self) -> int:
        """Return all of them."""
        return self.prompt + self.completion

    def plus(self, other: "Usage") -> "Usage":
        """Return the sum."""
        return Usage(self.prompt + other.prompt, self.completion + other.completion, self.cached + other.cached)


NOTHING = Usage()


class Price(NamedTuple):
    """Money for a million tokens, in whatever currency (`--price`).

    prompt: of prompts.
    completion: of answers.
    cached: of prompts, as far as the server had them in its cache.
    """

    prompt: float
    completion: float
    cached: float

    def cost(self, usage: Usage) -> float:
        """Return what tokens cost."""
        fresh = (usage.prompt - usage.cached) * self.prompt
        return (fresh + usage.cached * self.cached + usage.completion * self.completion) / 1e6


@dataclass(slots=True)
class Stats:
    """Counters of one run; rows = answered + failed (+ unfinished, after an early stop).

    asked: rows that were answered by a request of their own; cached: without one; unstored: answers
    that are not in the cache since it failed; replaced: rows of which a key was replaced, the first
    of them by its line, whose key it was, and the key; refusals: requests for which the server had no
    room; limit: what it was found to take, like `8 at a time`; billed: tokens of this run; saved: those
    that the cache's answers had cost; price: of tokens, if it is known; run: what was asked of whom, and when.
    """

    rows: int = 0
    asked: int = 0
    cached: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    unstored: int = 0
    replaced: int = 0
    first_replaced: tuple[int, str, str] | None = None
    requests: int = 0
    retries: int = 0
    reasked: int = 0
    refusals: int = 0
    limit: str | None = None
    billed: Usage = NOTHING
    saved: Usage = NOTHING
    price: Price | None = None
    run: dict[str, Any] = field(default_factory=dict)
    started_at: float = field(default_factory=time.monotonic)

    def count_replaced(self, line: int, whose: str, key: str) -> None:
        """Note a row in whose line another value stands in a key's place; whose: `record` or `answer`."""
        self.replaced += 1
        self.first_replaced = self.first_replaced or (line, whose, key)

    def count_replays(self, rows: int, usage: Usage) -> None:
        """Note rows that were answered without a request of their own, and what their answers had cost."""
        self.cached += rows
        self.saved = self.saved.plus(usage)

    def expense(self, usage: Usage) -> float:
        """Return what tokens cost: money where there is a price, else their number."""
        return self.price.cost(usage) if self.price else usage.total

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
        costs = {}
        if self.price:
            costs = {
                "cost": round(self.price.cost(self.billed), 9),
                "cost_saved": round(self.price.cost(self.saved), 9),
            }
        return {
            "run": self.run,
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
            "tokens": {"billed": _tokens(self.billed), "saved": _tokens(self.saved)},
            **costs,
            "seconds": round(self.seconds, 3),
        }


def _tokens(usage: Usage) -> dict[str, int]:
    return {"prompt": usage.prompt, "cached_prompt": usage.cached, "completion": usage.completion}


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
