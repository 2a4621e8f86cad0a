"""So many requests at a time: measured at a refusal, and probed by one more.

If the server takes C at a time, C were under way when it refused. Keeping to that costs no slot and no refusal,
however long answers take.
"""

import math

OWED = 60  # answers that a refused probe costs before the next: probing alone has 1.7 % refused
SILENT_S = 10.0  # without an answer: what is in flight may hang; twice as long each time it did not


class Ceiling:
    """The number of requests in flight that the server bears.

    most: requests in flight, at most
    sure: the same without a probe that may still be refused
    """

    def __init__(self) -> None:
        self.most = self.sure = math.inf
        self._step = 1
        self._owed = 0
        self._set_at = -math.inf
        self._answers = 0  # since then
        self._silent_s = SILENT_S

    def cut(self, held: int, in_flight: int, now: float) -> None:
        """Keep to what the server held when it refused one more; in_flight: what it can't all have refused yet."""
        if held >= self.sure:
            if self._owed > 0:
                self._silent_s *= 2
            self._owed = OWED
        self._set(max(1, held, in_flight), now)

    def lower(self, held: int, in_flight: int) -> None:
        """Correct the last cut by another refusal of the same burst."""
        self.most = self.sure = min(self.sure, max(1, held, in_flight))

    def restart(self, in_flight: int, now: float) -> None:
        """Begin with one request more than there are, and double."""
        self._owed = 0
        self._set(in_flight + 1, now)

    def widen(self, most: float, now: float) -> None:
        """Allow more, where another limit holds."""
        self._set(max(2, most), now)

    def _set(self, most: float, now: float) -> None:
        self.most = self.sure = most
        self._step, self._set_at, self._answers = 1, now, 0

    def pay(self) -> None:
        """Count an answer towards the next probe."""
        self._owed -= 1
        self._answers += 1

    @property
    def is_proven(self) -> bool:
        """Tell whether as much was answered since the last probe as a refused one costs."""
        return self._answers >= OWED

    def probe_at(self, now: float, settle_s: float, sent_at: float, answered_at: float) -> float:
        """Return when more may be tried.

        settle_s: what is not refused by then was taken
        sent_at, answered_at: when the last request was sent, and when the last answer came
        """
        if self._owed > 0:
            return max(self._set_at, answered_at) + self._silent_s
        # A probe on another's heels would be refused for that, where the server has no burst.
        quiet_s = (now - self._set_at) / (2 * self._answers) if self._step == 1 and self._answers else 0.0
        return max(self._set_at + settle_s, sent_at + quiet_s)

    def probe(self, now: float) -> None:
        """Try one more; if nothing was refused since the last time, twice as many more."""
        self.sure = self.most
        self.most += self._step
        self._step *= 2
        self._set_at, self._answers = now, 0
