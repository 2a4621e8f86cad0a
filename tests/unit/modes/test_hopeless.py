"""breaker: what ends a run, by what was met before."""

from collections.abc import Callable

import pytest

from llmfilter.api.faults import ModelMissing
from llmfilter.errors import LATE_S, Faulty, Retryable, RowError, RunError
from llmfilter.modes.hopeless import LATE_MOST, REJECTED_MOST, Hopeless
from llmfilter.stats import Stats, Usage

Event = Callable[[Hopeless, Stats], object]
NETWORK = Retryable("network", "connection refused", is_unreachable=True)
DROPPED = Retryable("network", "it broke", is_dropped=True)
LATE = Retryable("network", "the connection broke", overdue_s=LATE_S)
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
    stats.count_replays(1, Usage(1, 1))


def succeed(breaker: Hopeless, stats: Stats) -> None:
    breaker.succeed()


def answer(breaker: Hopeless, stats: Stats) -> None:
    breaker.hear_answer()


def unusable(message: str, raw: str, kind: str = "invalid") -> Event:
    return lambda breaker, stats: breaker.hear_unusable(RowError(kind, message, raw=raw))


def blame(param: str | None, message: str = "no") -> RowError:
    return RowError("http", message, status=400, param=param)


PAGE = Faulty("no JSON", b"<html>", shape=("a web page", "give the URL"))
FOR_ALL = [204, 301, 308, 405, 410, 413, 501]  # beside 400
REFUSALS = [reject(RowError("http", "no", status=status)) for status in (400, 403, 404, 422)] * (REJECTED_MOST // 4)
UNSENT = [reject_unsent] * REJECTED_MOST


def end_of(events: list[Event]) -> str | None:
    """What a run ends with at the last of these events; None if it goes on."""
    stats = Stats()
    breaker = Hopeless(stats, ["temperature", "response_format", "top_k", "max_tokens"])
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
        ([reject(DROPPED)], None),  # the row may be what breaks it
        ([reject(DROPPED)] * 2, "can't be reached: it broke"),
        ([hear(RowError("http", "busy", status=500)), *[reject(DROPPED)] * 2], None),
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
        ([reject(LATE)] * LATE_MOST, "the first 8 rows all ended at a time limit, the last with the connection broke"),
        ([reject(LATE)] * (LATE_MOST - 1), None),  # not "can't be reached" either
        ([*[reject(LATE)] * (LATE_MOST - 1), succeed, reject(LATE)], None),
        *[([reject(RowError("http", "no", status=status))] * 32, "refused the first") for status in FOR_ALL],
        ([hear(PAGE)] * 3, "first 3 answers are not chat completions but a web page: give the URL"),
        ([hear(PAGE)] * 2, None),
        ([answer, *[hear(PAGE)] * 3], None),
        ([reject(blame("temperature"))], "-o temperature=null, or for a model that reasons -o reasoning_effort=none"),
        ([reject(blame("response_format.type"))], "-o response_format=null"),
        ([reject(blame(None, "unknown field `top_k`"))], "leave out -o top_k=…"),
        ([reject(blame("model"))], "check -m"),
        ([succeed, reject(blame("temperature"))], None),
        ([reject(blame("messages"))] * 31, None),
        ([reject(blame("max_tokens"))] * 31, None),
        ([reject(blame(None, "the model's context is 10 tokens"))] * 31, None),
        ([unusable("no", "Spam.")] * 32, "for answers in plain text give --text"),
        ([unusable("no", "[1]")] * 32, 'ask for an object that holds the list, like {"items": [...]}'),
        ([unusable("the key 'lable' is missing", '{"label": 1}')] * 32, "they lack the key `lable`; they have: label"),
        ([unusable("at /n: 1.5 is not an integer", '{"n": 1.5}')] * 32, "1.5 is not an integer (32 of 32)"),
        ([unusable("cut", "x", "truncated")] * 32, "raise -o max_tokens=N, or for answers in plain text give --text"),
        ([unusable("no", "Spam.")] * 31, None),
        ([*[unusable("no", "Spam.")] * 31, succeed, unusable("no", "Spam.")], None),
        ([replay, *[unusable("no", "Spam.")] * 32], None),
        (UNSENT, "none of the first 32 rows can be sent; the first: row 1 is no JSON"),
        (UNSENT[:-1], None),
        ([send, *UNSENT[:-1]], None),
        ([*UNSENT[:-1], send, UNSENT[-1]], None),
    ],
)
def test_only_what_refuses_every_row_ends_a_run(events: list[Event], words: str | None) -> None:
    end = end_of(events)
    assert end is None if words is None else words in (end or "")
