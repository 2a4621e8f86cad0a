"""stats: what tokens cost."""

import pytest

from llmfilter.stats import Price, Stats, Usage


@pytest.mark.parametrize(
    ("price", "usage", "cost"),
    [
        (Price(1, 10, 1), Usage(1_000_000, 100_000), 2),
        (Price(1, 10, 0.1), Usage(1_000_000, 0, 900_000), 0.19),
        (Price(0, 0, 0), Usage(5, 5, 5), 0),
    ],
)
def test_cached_tokens_of_a_prompt_have_their_own_price(price: Price, usage: Usage, cost: float) -> None:
    assert price.cost(usage) == pytest.approx(cost)
    assert Stats(price=price).expense(usage) == pytest.approx(cost)


def test_without_a_price_tokens_are_counted() -> None:
    assert Stats().expense(Usage(5, 6, 4)) == 11
