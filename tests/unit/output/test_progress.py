"""progress: numbers for people."""

import asyncio
import time
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmfilter.output.progress import Progress, summary
from llmfilter.output.screen import Screen
from llmfilter.stats import Price, Snapshot, Stats, UnderWay, Usage
from llmfilter.words import counted, duration, money, short


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (950, "950"),
        (9999, "9999"),
        (10_000, "10k"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (4_560_000, "4.56M"),
        (999_999_999, "1G"),
        (12_300_000_000, "12.3G"),
        (2_000_000_000_000, "2T"),
    ],
)
def test_a_large_number_is_shown_by_three_digits(number: int, shown: str) -> None:
    assert short(number) == shown


@given(st.integers(0, 10**14))
@example(999_600)
@example(999_999_999)
def test_what_is_shown_is_short_and_right_within_half_a_percent(number: int) -> None:
    shown = short(number)
    unit = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(shown[-1], 1)
    assert len(shown) <= 5
    assert abs(float(shown.rstrip("kMGT")) * unit - number) <= 0.005 * number


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (7.9, "0:07"), (59.99, "0:59"), (60, "1:00"), (750, "12:30"), (3599, "59:59"), (3600, "1:00:00"),
     (11_100, "3:05:00"), (360_000, "100:00:00")],
)  # fmt: skip
def test_a_duration_is_shown_as_on_a_clock(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("number", "shown"), [(0, "0 rows"), (1, "1 row"), (2000, "2,000 rows")])
def test_one_is_singular(number: int, shown: str) -> None:
    assert counted(number, "row") == shown


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "0.00"),
        (0.0000123, "0.000012"),
        (0.0123, "0.0123"),
        (0.5, "0.5000"),
        (1.2, "1.20"),
        (12_345.678, "12,345.68"),
    ],
)
def test_money_is_shown_to_the_cent_or_to_what_is_there(amount: float, shown: str) -> None:
    assert money(amount) == shown


@pytest.mark.parametrize(
    ("waits_s", "said"),
    [
        (0.5, ["50 rows", "50%", "2:38:20 left", "2 failed", "0.0 rows/s", "8 in flight", "730 tokens"]),
        (1.5, ["50 rows", "50%", "waiting for the server", "2 failed", "730 tokens"]),
    ],
)
def test_while_the_server_is_away_the_bar_says_so_and_no_speed(waits_s: float, said: list[str]) -> None:
    async def segments() -> list[str]:
        stats, now = Stats(), Snapshot(0, False, False, 1, UnderWay())
        progress = Progress(stats, lambda: now, 1000, Screen(lambda data: None, None, False, False))
        stats.started_at -= 9500
        stats.asked, stats.by_kind["http"], stats.billed = 48, 2, Usage(700, 30)
        return progress.segments(Snapshot(500, False, False, 51, UnderWay(8, 51, 8, waits_s=waits_s)))

    assert asyncio.run(segments()) == said


def test_with_a_price_or_a_server_s_cache_a_summary_says_so_first() -> None:
    stats = Stats(billed=Usage(1_000_000, 100_000, 640_000), saved=Usage(500_000, 1000), price=Price(2, 10, 0.5))
    assert summary(stats)[0] == "cost 2.04, saved 1.01; 64% of prompt tokens in the server's cache"
    stats.price = None
    assert summary(stats)[0] == "64% of prompt tokens in the server's cache"


def test_a_summary_tells_the_costs_and_then_what_became_of_the_rows() -> None:
    stats = Stats(rows=1, asked=1, billed=Usage(700, 30), started_at=time.monotonic() - 7.5)
    assert summary(stats) == [
        "730 tokens billed (700 in, 30 out), 0 saved by the cache",
        "1 row in 0:07: 1 answered (0 from the cache)",
    ]
    stats = Stats(
        rows=3000,
        asked=1500,
        cached=1000,
        by_kind=Counter({"http": 1, "invalid": 9}),
        billed=Usage(1_000_000, 20_000),
        saved=Usage(30_000),
        started_at=time.monotonic() - 3700.5,
    )
    assert summary(stats) == [
        "1.02M tokens billed (1M in, 20k out), 30k saved by the cache",
        "2,510 rows in 1:01:40: 2,500 answered (1,000 from the cache), 10 failed (9 invalid, 1 http)"
        "; the rest is unread",
    ]
