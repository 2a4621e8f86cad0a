"""Which requests were refused, by the numbers that they were sent with."""

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

KEPT = 10_000  # numbers of refused requests: far more than are ever in flight
RUN_MOST = 8


@dataclass(slots=True)
class Ticket:
    """A request that was sent: hand it back with the server's verdict.

    row: whose it is, as far as `==` tells
    number: how many requests were sent before
    ahead: how many of them were in flight
    refused: how many had been refused by then
    """

    row: Any
    number: int
    sent_at: float
    ahead: int
    refused: int


class History:
    """Numbers each request, and remembers the refused ones."""

    def __init__(self) -> None:
        self.sent = self.refused = 0
        self._numbers: list[int] = []

    @property
    def taken(self) -> int:
        """Count the requests that were not refused, or not yet."""
        return self.sent - self.refused

    def add(self, number: int) -> None:
        """Note that a request was refused."""
        self.refused += 1
        insort(self._numbers, number)
        if len(self._numbers) > KEPT:
            del self._numbers[: KEPT // 2]

    def count(self, first: int, end: int) -> int:
        """Count the refused requests from one number up to another."""
        return bisect_left(self._numbers, end) - bisect_left(self._numbers, first)

    def held(self, ticket: Ticket) -> int:
        """Return how many requests the server held when it was asked: those in flight that it did not refuse.

        Exact however refusals overtake each other, once all of them were heard.
        """
        lower = self.refused - len(self._numbers) + bisect_left(self._numbers, ticket.number)
        return max(0, ticket.ahead - (lower - ticket.refused))

    def run(self, number: int) -> int:
        """Return how many requests in a row were refused around this one, RUN_MOST at most."""
        numbers = self._numbers
        first = last = bisect_left(numbers, number)
        while first and numbers[first - 1] == numbers[first] - 1 and last - first < RUN_MOST:
            first -= 1
        while last + 1 < len(numbers) and numbers[last + 1] == numbers[last] + 1 and last - first < RUN_MOST:
            last += 1
        return last - first + 1
