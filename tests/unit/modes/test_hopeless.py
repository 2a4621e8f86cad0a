"""breaker: what ends a run, by what was met before."""

from collections.abc import Callable

import pytest

from llmfilter.api.faults import ModelMissing
from llmfilter.errors import Retryable, RowError, RunError
from llmfilter.modes.hopeless import REJECTED_MOST, Hopeless
from llmfilter.stats import Stats

Event = Callable[[Hopeless, Stats], None]
NETWORK = Retryable("network", "connection refused")
REFUSED = RowError("http", "HTTP 400: no", status=400)


def reject(fault: RowError) -> Event:
    return lambda breaker, stats: breaker.reject(fault)


def hear(fault: RowError) -> Event:
    return lambda breaker, stats: breaker.hear(fault)


def reject_unsent(breaker: Hopeless, stats: Stats) -> None:
    stats.rows += 1
    breaker.reject_unsent(RowError("input", f"row {stats.rows} is no JSON"))


def send(breaker: Hopeless, stats: Stats) -> None:
    stats.rows += 1


def replay(breaker: Hopeless, stats: Stats) -> None:
    stats.count_replays(1, 1, 1)


def succeed(breaker: Hopeless, stats: Stats) -> None:
    breaker.succeed()


REFUSALS = [reject(RowError("http", "no", status=status)) for status in (400, 403, 404, 422)] * (REJECTED_MOST // 4)
UNSENT = [reject_unsent] * REJECTED_MOST


def end_of(events: list[Event]) -> str | None:
    """What a run ends with at the last of these events; None if it goes on."""
    stats = Stats()
    breaker = Hopeless(stats)
    for event in events[:-1]:
        event(breaker, stats)
    try:
        events[-1](breaker, stats)
    except RunError as end:
        return end.message
    return None


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([reject(NETWORK)], "can't be reached: connection refused"),
        ([hear(NETWORK), reject(NETWORK)], "can't be reached"),
        ([hear(RowError("http", "busy", status=500)), reject(NETWORK)], None),
        ([succeed, reject(NETWORK)], None),
        ([replay, reject(NETWORK)], None),
        ([reject(ModelMissing("http", "no model x", status=404))], "no such model (no model x)"),
        ([succeed, reject(ModelMissing("http", "no model x", status=404))], None),
        (REFUSALS, f"refused the first {REJECTED_MOST} rows"),
        (REFUSALS[:-1], None),
        ([*REFUSALS[:-1], succeed, REFUSALS[-1]], None),
        ([*REFUSALS[:-1], replay, REFUSALS[-1]], None),
        ([reject(RowError("http", "broken", status=500))] * 100, None),
        ([reject(RowError("timeout", "too slow"))] * 100, None),
        ([reject(RowError("invalid", "no label"))] * 100, None),
        ([*[reject(RowError("timeout", "too slow"))] * 100, *REFUSALS], "refused the first"),
        (UNSENT, "none of the first 32 rows can be sent, the first since row 1 is no JSON"),
        (UNSENT[:-1], None),
        ([send, *UNSENT[:-1]], None),
        ([*UNSENT[:-1], send, UNSENT[-1]], None),
    ],
)
def test_only_what_refuses_every_row_ends_a_run(events: list[Event], words: str | None) -> None:
    end = end_of(events)
    assert end is None if words is None else words in (end or "")
