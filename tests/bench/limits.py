# ruff: noqa: E402
"""A limit's table: each case beside an oracle that knows the limit, and beside the version before.

python tests/bench/limits.py [PART OF A NAME] [--only-new]
"""

import math
import multiprocessing
import random
import sys
from collections.abc import Awaitable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from pace_before import Pace
from simulated import Bucket, Case, Fixed, Outcome, Sliding, Slots, drive, log_normal, oracle_s, run, uniform

from llmfilter.server.limit.turns import Limit


class Before:
    """The version before: a pace alone."""

    paces_rows = False

    def __init__(self, case: Case) -> None:
        self._pace = Pace(case.per_s_most)

    def turn(self, row: object) -> Awaitable[float]:
        return self._pace.turn()

    def answered(self, ticket: float) -> None:
        self._pace.accept(ticket)

    def refused(self, ticket: float, after_s: float | None) -> None:
        self._pace.reject(ticket)

    def failed(self, ticket: float) -> None:
        pass


def slots(most: int) -> list[Any]:
    """A server that takes so many at a time."""
    return [Slots(most)]


def bucket(rate: float) -> list[Any]:
    """One that takes so many a second, a fifth of them at once."""
    return [Bucket(rate, rate / 5)]


def sliding(rate: int) -> list[Any]:
    """One that takes so many in each second."""
    return [Sliding(rate, 1.0)]


def cases() -> list[Case]:
    """All of them."""
    short, long, even = log_normal(0.3), log_normal(3.0), uniform(0.1, 0.5)
    found = []
    for most in (1, 4, 8, 20, 100, 500):
        jobs = {1: 32, 4: 32, 8: 64, 20: 128, 100: 400, 500: 2000}[most]
        rows = 60 * most if most >= 20 else max(60 * most, 300)
        for name, answer_s in (("0.3 s", short), ("3 s", long), ("uniform", even)):
            found.append(Case(f"slots {most}, {name}", partial(slots, most), jobs, rows, answer_s))
        found.append(Case(f"slots {most}, refused after 500 ms", partial(slots, most), jobs, rows, short, 0.5))
    found += [
        Case("slots 8, -j 8", lambda: [Slots(8)], 8, 600, short),
        Case("slots 8, -j 2000", lambda: [Slots(8)], 2000, 3000, short),
        Case("slots 8, Retry-After 1", lambda: [Slots(8)], 64, 800, short, after_s=1.0),
        Case("slots 8 and a queue of 16", lambda: [Slots(24)], 128, 1500, even, queue=16),
        Case("slots 32 and a queue of 64, 3 s", lambda: [Slots(96)], 400, 3000, long, queue=64),
    ]
    for rate, answer_s, jobs in (
        (1, short, 8),
        (10, short, 32),
        (50, short, 64),
        (200, short, 400),
        (200, long, 1500),
        (1000, short, 1000),
        (50, log_normal(0.001), 64),
        (1000, log_normal(0.01), 200),
        (3000, log_normal(0.005), 200),
    ):
        rows = min(60000, max(100, 60 * rate)) if rate < 1000 else 30 * rate
        length = answer_s(random.Random(1))
        name = f"{rate}/s, ~{length:.2g} s"
        found.append(Case(f"bucket 0.2 s {name}", partial(bucket, rate), jobs, rows, answer_s))
        found.append(Case(f"sliding 1 s {name}", partial(sliding, rate), jobs, rows, answer_s))
    found += [
        Case("no burst 50/s (nginx limit_req)", lambda: [Bucket(50, 1)], 64, 1500, short),
        Case("bucket 1 min deep, 1/s", lambda: [Bucket(1, 60)], 32, 300, short),
        Case("bucket 10/s, Retry-After 1", lambda: [Bucket(10, 10)], 32, 600, short, after_s=1.0),
        Case("HAProxy http_req_rate 50", lambda: [Sliding(50, 1.0, True)], 64, 1500, even),
        Case("fixed 50 a second", lambda: [Fixed(50, 1.0)], 64, 3000, short, is_free_tier=True),
        Case("fixed 3 a minute", lambda: [Fixed(3, 60.0)], 8, 60, short, is_free_tier=True),
        Case("fixed 20 a minute", lambda: [Fixed(20, 60.0)], 16, 400, short, is_free_tier=True),
        Case("fixed 20 a minute, 3 s, half over", lambda: [Fixed(20, 60.0, 30.0)], 32, 400, long, is_free_tier=True),
        Case(
            "fixed 20 a minute, Retry-After 10",
            lambda: [Fixed(20, 60.0)],
            16,
            400,
            short,
            after_s=10.0,
            is_free_tier=True,
        ),
        Case("sliding 3 a minute", lambda: [Sliding(3, 60.0)], 8, 60, short, is_free_tier=True),
        Case("sliding 20 a minute", lambda: [Sliding(20, 60.0)], 16, 400, short, is_free_tier=True),
        Case("--rpm 300, slots 8", lambda: [Slots(8)], 64, 600, short, per_s_most=5.0),
        Case("--rpm 600, bucket 5/s", lambda: [Bucket(5, 5)], 64, 600, short, per_s_most=10.0),
        Case("slots 20 and 50/s", lambda: [Slots(20), Bucket(50, 10)], 128, 3000, short),
        Case("slots 20 and 100/s, uniform", lambda: [Slots(20), Bucket(100, 20)], 128, 3000, even),
        Case("slots 16 then 8 then 16", lambda: [Slots(lambda t: 8 if 15 < t < 45 else 16)], 128, 2400, short),
        Case("slots 100 then 50 then 100", lambda: [Slots(lambda t: 50 if 15 < t < 45 else 100)], 400, 15000, short),
        Case(
            "bucket 200/s then 100 then 200",
            lambda: [Bucket(lambda t: 100 if 15 < t < 45 else 200, 40)],
            400,
            12000,
            short,
        ),
        Case("slots 20, a tenant takes 0 to 12", lambda: [Slots(lambda t: 20 - int(t / 5) * 7 % 13)], 128, 2400, short),
        Case("away 20 s, slots 8", lambda: [Slots(8)], 64, 1500, short, outage=(10.0, 30.0)),
        Case("away 20 s, no limit", lambda: [], 64, 6000, short, outage=(10.0, 30.0)),
        Case("503 to all for 20 s, no limit", lambda: [], 16, 2000, short, outage=(10.0, 30.0), is_reset=False),
        Case("429 to all for the first 5 s", lambda: [], 64, 1000, short, outage=(0.0, 5.0), is_reset=False),
        Case("chance 5 %", lambda: [], 16, 500, uniform(0.08, 0.12), chance=0.05),
        Case("chance 20 %", lambda: [], 16, 300, uniform(0.08, 0.12), chance=0.20),
        Case("chance 5 %, long", lambda: [], 64, 6000, short, chance=0.05),
        Case("chance 20 %, long", lambda: [], 64, 6000, short, chance=0.20),
        Case("chance 5 %, slots 20", lambda: [Slots(20)], 128, 2400, short, chance=0.05),
        Case("no limit", lambda: [], 64, 2000, short),
    ]
    return found


def measure(case: Case, is_new: bool) -> Outcome:
    """One run."""
    make: Any = (lambda c: Limit(c.jobs, c.per_s_most)) if is_new else Before
    try:
        outcome: Outcome = run(drive(case, make))
    except Exception as error:
        print(case.name, repr(error), file=sys.stderr)
        raise
    return outcome


def row(index_and_only: tuple[int, bool]) -> tuple[int, str, bool]:
    """A line of the table, and whether what is to reach was reached."""
    index, only_new = index_and_only
    case = cases()[index]
    best_s = oracle_s(case)
    if case.per_s_most < math.inf:
        best_s = max(best_s, case.rows / case.per_s_most)
    new = measure(case, True)
    used = best_s / new.seconds
    refused_most = 0.15 if case.is_free_tier else 0.05
    least = 0.95
    if case.chance:
        refused_most, least = 1.0, 1 / 2 if case.chance == 0.05 else 1 / 3
    is_reached = used >= least and new.refused_share <= refused_most and new.rows == case.rows
    before = "|  |  " if only_new else _columns(best_s, measure(case, False))
    mark = "" if is_reached else " **missed**"
    return (
        index,
        (
            f"| {case.name}, `-j {case.jobs}`, {case.rows} rows | {best_s:.1f} s {_columns(best_s, new)}"
            f"| {new.refused} | {new.found or ''} {before}|{mark}"
        ),
        is_reached,
    )


def _columns(best_s: float, outcome: Outcome) -> str:
    return f"| {best_s / outcome.seconds:.1%} | {outcome.refused_share:.1%} "


def main() -> None:
    """Print the table."""
    only_new = "--only-new" in sys.argv
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    chosen = [i for i, case in enumerate(cases()) if all(word in case.name for word in words)]
    print(
        "| server | oracle | of it | refused after the first burst | refused in all | found "
        "| before: of the oracle | refused | |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with multiprocessing.Pool(2) as pool:
        missed = 0
        for _, line, is_reached in pool.imap(row, [(i, only_new) for i in chosen]):
            print(line, flush=True)
            missed += not is_reached
    print(f"\n{len(chosen) - missed} of {len(chosen)} cases reach what is to be reached.")


if __name__ == "__main__":
    main()
