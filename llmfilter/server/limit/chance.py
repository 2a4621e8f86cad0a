"""Refusals that are no limit: one bad replica, a gateway that says 503 to one in 200.

Chance rarely refuses two in a row, and refuses as often whatever the load is.
"""

from llmfilter.server.limit.history import Ticket

MOST = 0.4  # a larger share is no chance
MEMORY = 120  # requests
RARE = 1 / 200  # a run of refusals as unlikely as this is no chance
SLACK, SLACK_TIMES = 0.01, 1.25  # of all requests, and of the share: so many more refusals are no sign yet
ALARM, ALARM_TIMES = 3.0, 40  # refusals beyond that, and more of them for a large share, whose noise is larger


class Chance:
    """The share of requests that is refused whatever one does, and whether there are more than that.

    share: of all requests
    first: the first refusal since there were none in excess
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._excess = 0.0
        self._number = self._count = 0
        self.first = Ticket(None, 0, 0.0, 0, 0)

    def learn(self, share: float, count: int) -> None:
        """Take in what was refused of so many requests that no limit can have refused."""
        self.share += (min(MOST, share) - self.share) * count / (count + MEMORY)

    def set(self, share: float) -> None:
        """Replace what was learned."""
        self.share = min(MOST, share)

    def explains_run(self, run: int) -> bool:
        """Tell whether so many refusals in a row may be chance."""
        return run == 1 or self.share**run > RARE

    def explains(self, ticket: Ticket) -> bool:
        """Count a refusal; tell whether chance explains all since there were none in excess (a one-sided CUSUM)."""
        if not self.excess(ticket.number):
            self.first, self._count = ticket, 0
        self._excess += 1
        self._count += 1
        return self._excess < ALARM + ALARM_TIMES * self.share

    def excess(self, number: int) -> float:
        """Return how many refusals there were beyond chance, up to the request of this number."""
        passed = max(0, number - self._number)
        self._number += passed
        self._excess = max(0.0, self._excess - passed * (SLACK + SLACK_TIMES * self.share))
        return self._excess

    @property
    def stretch(self) -> float:
        """Return the share that was refused since there were none in excess."""
        return self._count / max(1, self._number - self.first.number + 1)

    def forgive(self, number: int) -> None:
        """Begin to count with the request of this number."""
        self._excess = 0.0
        self._number = number
