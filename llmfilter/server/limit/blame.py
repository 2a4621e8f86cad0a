"""What refusals speak of: of a number of requests in flight, or of a rate.

Of a number, if as many were in flight as the server has borne before; of a rate, if there were fewer. One refusal
proves nothing, so each moves a score.
"""

from collections import deque

from llmfilter.server.limit.history import History, Ticket

IS_NUMBER, IS_RATE = 0.6, 0.4  # they don't meet, so that the verdict does not flap
SURE_RATE = 0.1  # after a trial: then only several refusals in a row make it a number again
WEIGHT = 0.25  # of one refusal
ALIKE = 0.02  # of what was borne: fewer in flight by so much are as many
FADES_BY = 50  # answers: what was borne above the ceiling


class Blame:
    """Whether refusals speak of a number or of a rate.

    borne: most in flight that the server took lately.
    """

    def __init__(self) -> None:
        self.borne = 0.0
        self._score = (IS_NUMBER + IS_RATE) / 2
        self._answered: deque[Ticket] = deque()  # lately: a refusal may still be heard of one sent before
        self._first = 0  # requests before this number say nothing of what is borne now

    @property
    def is_number(self) -> bool:
        """Tell whether it is a number."""
        return self._score > IS_NUMBER

    @property
    def is_rate(self) -> bool:
        """Tell whether it is a rate."""
        return self._score < IS_RATE

    @property
    def is_rather_number(self) -> bool:
        """Tell which it is if it has to be one of them."""
        return self._score >= (IS_NUMBER + IS_RATE) / 2

    def answered(self, ticket: Ticket, ceiling: float, settle_s: float, history: History, now: float) -> None:
        """Learn from an answer how many in flight are borne.

        ceiling: what was borne beyond it is forgotten by and by
        settle_s: a request that was not refused by then was taken
        """
        self.borne -= max(0.0, self.borne - ceiling) / FADES_BY
        self._answered.append(ticket)
        while self._answered and self._answered[0].sent_at + settle_s <= now:
            taken = self._answered.popleft()
            if taken.number >= self._first:
                self.borne = max(self.borne, history.held(taken) + 1)

    def weigh(self, held: int) -> None:
        """Move the score by a refusal with so many in flight; with none it counts twice: no ceiling refuses that."""
        weight = WEIGHT if held else 2 * WEIGHT
        self._score += weight * (self.is_full(held) - self._score)

    def is_full(self, held: int) -> bool:
        """Tell whether so many in flight are as many as the server has borne."""
        return held > 0 and held + 0.5 >= (1 - ALIKE) * self.borne

    def be_sure_of_rate(self) -> None:
        """Take it for a rate, as a trial has shown."""
        self._score = min(self._score, SURE_RATE)

    def restart(self, number: int) -> None:
        """Forget what was borne before the request of this number."""
        self._first = number
        self.borne = 0.0
