"""stats: what is counted in bounded memory."""

import math

from hypothesis import given
from hypothesis import strategies as st

from llmfilter.stats import Histogram


@given(st.lists(st.floats(0.0001, 10_000), min_size=1), st.sampled_from([0.5, 0.95]))
def test_a_quantile_is_right_within_a_bucket(durations: list[float], fraction: float) -> None:
    histogram = Histogram()
    for seconds in durations:
        histogram.add(seconds)
    exact = sorted(durations)[math.ceil(fraction * len(durations)) - 1]
    found = histogram.quantile(fraction)
    assert found is not None
    assert abs(found - exact) <= 0.011 * exact + 0.0001


def test_of_nothing_there_is_no_quantile() -> None:
    assert Histogram().quantile(0.5) is None
