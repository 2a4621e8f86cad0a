"""Which limit refused a request, and what to do about it.

Theory of operation: five modes, and what leads from one to another.

| from         | what happened                                                              | to              |
|--------------|----------------------------------------------------------------------------|-----------------|
| free         | so many refusals in a row that it is no chance                             | ceiling         |
| ceiling      | the ceiling was raised to all that may be in flight                        | free            |
| ceiling      | more refusals below the ceiling than chance explains, or with fewer in     |                 |
|              | flight than the server has borne                                           | trial           |
| trial        | nothing but chance was refused: it is a rate                               | pace            |
| trial        | more was refused, and hardly less than in the trial before, which was      |                 |
|              | faster: chance                                                             | ceiling or pace |
| trial        | more was refused: that pace was too fast                                   | trial, slower   |
| pace         | more refusals than chance explains                                         | trial           |
| trial, pace  | refused again and again with as many in flight as the server has ever borne | ceiling         |
| any          | four refusals, each sent after the one before was heard, nothing taken     | stopped         |
|              | between; or several rows failed, or the server is out of reach             |                 |
| stopped      | a probe was taken                                                          | the one before  |
| stopped      | … by a server that takes a few requests a minute                           | trial           |

In *free* nothing is bounded. In *ceiling* so many requests are in flight. In *trial* they are sent just below the
rate that was measured, so that all refusals are chance, unless it was measured wrong. In *pace* the rate is raised
until it is refused. In *stopped* one request is out.

A *burst* is what was sent before a refusal was heard: its refusals correct the last decision, and make no new one.
"""

import math
from collections import deque
from typing import Any

from llmfilter.server.limit.ceiling import Ceiling
from llmfilter.server.limit.chance import MOST as CHANCE_MOST
from llmfilter.server.limit.chance import Chance
from llmfilter.server.limit.history import History, Ticket
from llmfilter.server.limit.pace import FORGET_S, MEANT, TRIAL, TRIAL_UNSURE, Pace
from llmfilter.server.limit.probing import Probing

FREE, CEILING, TRIAL_MODE, PACE, STOPPED = "free", "ceiling", "trial", "pace", "stopped"

SETTLE_LEAST_S, SETTLE_TIMES = 0.05, 1.5  # of what refusals take: what is not refused by then was taken
IN_A_ROW = 4  # refusals one after another with nothing taken between: the server takes nothing now
ALIKE = 0.02  # of what was borne: fewer in flight by so much are as many
IS_NUMBER, IS_RATE = 0.6, 0.4  # of a score that each refusal moves; they don't meet, so that it does not flap
SURE_RATE = 0.1  # of the score after a trial: then only several refusals in a row make it a number again
WEIGHT = 0.25  # of one refusal in that score
TRIAL_MOST = 400  # requests of a trial
TRIAL_SLACK = 0.035  # two of 60: more than chance was refused in a trial
TRIAL_REFUSALS = 5  # so many at once, a larger share than chance can have, end a trial
NO_BURST = 0.4  # refused since the pace was raised a little: a bucket without burst, which halves what it takes
FEW_A_MINUTE = 100
FADES_BY = 50  # answers: what was borne above the ceiling
LATE_S = 0.02  # what timers lose by firing late may be caught up, no more
AWAY_ROWS = 5  # failed with no answer in between
IDLE_MOST_S = 120.0  # a longer time without a request is one in which nobody wanted anything


class Judge:
    """Says when the next request may be sent, and learns from what became of it.

    jobs: most requests in flight, kept by the caller
    per_s_most: requests a second that are never exceeded, or infinity
    in_flight: requests that were sent and have no verdict
    mode: one of the table's
    """

    def __init__(self, jobs: int, per_s_most: float, now: float) -> None:
        self._jobs = jobs
        self._per_s_most = per_s_most
        self._history = History()
        self.in_flight = 0
        self._refusal_s = 0.0  # how long a refusal takes
        self._sent_at = now
        self._most_at = self._next_at = -math.inf  # when the next may be sent, by the most and by the pace
        self._has_answered = False
        self._failing: set[Any] = set()  # rows that failed since the last answer
        self._idle_s = 0.0  # without an answer and without a request under way
        self._idle_from: float | None = None
        self._forget(now)

    def _forget(self, now: float) -> None:
        self.mode = self._mode_before = FREE
        self._ceiling, self._pace, self._chance = Ceiling(), Pace(), Chance()
        self._probing = Probing(now, 0, False, False, 0.0, None)
        self._score = (IS_NUMBER + IS_RATE) / 2
        self._borne = 0.0  # most in flight that the server took lately
        self._answered_at = now
        self._answered: deque[Ticket] = deque()  # lately: a refusal may still be heard of one sent before
        self._borne_from = 0  # by requests from this number on
        self._burst_end = 0  # the first number sent after the last decision
        self._in_a_row, self._taken_at_cut = 0, -2
        self._stopped_at = -math.inf
        self._trial_share, self._trial_rate = 0.0, 0.0  # of the trial before, which was faster
        self._start(now)

    def _start(self, now: float) -> None:
        """Begin to count what the server takes."""
        self._since = now, self._history.taken
        self._pace.mark(now, self._history.sent)

    @property
    def found(self) -> str | None:
        """The limit that was found, for people; None where there is none."""
        mode = self._mode_before if self.mode == STOPPED else self.mode
        if mode in (TRIAL_MODE, PACE):
            per_s = self._pace.per_s
            return f"{per_s:.3g}/s" if per_s >= 1 else f"{per_s * 60:.3g}/min"
        return f"{self._ceiling.sure:.0f} at a time" if self._ceiling.sure < self._jobs else None

    @property
    def is_stopped(self) -> bool:
        """Tell whether the server takes nothing now, whoever asks."""
        return self.mode == STOPPED

    @property
    def is_away(self) -> bool:
        """Tell whether the server fails, or can't be reached, whoever asks."""
        return self.mode == STOPPED and self._probing.is_away

    def stuck_s(self, now: float) -> float:
        """Return for how long nothing has been answered, but for the time in which a request was under way."""
        return 0.0 if self._idle_from is None else self._idle_s + min(now - self._idle_from, IDLE_MOST_S)

    # Sending

    def send(self, row: Any, now: float) -> Ticket:
        """Note that a request is sent."""
        history = self._history
        ticket = Ticket(row, history.sent, now, self.in_flight, history.refused)
        history.sent += 1
        self.in_flight += 1
        self._sent_at = now
        if self._idle_from is not None:
            self._idle_s = self.stuck_s(now)
            self._idle_from = None
        self._most_at = max(self._most_at, now - LATE_S) + 1 / self._per_s_most
        if self.mode == STOPPED:
            self._probing.sent(now)
        elif self.mode in (TRIAL_MODE, PACE):
            self._pace.sent(now, ticket.number)
            self._next_at = max(self._next_at, now - LATE_S) + 1 / self._pace.per_s
        return ticket

    def ready_at(self, now: float) -> float:
        """Return when the next request may be sent: now, later, or infinity where only a verdict can tell."""
        if not self.in_flight and now - self._sent_at > FORGET_S and self.mode != STOPPED:
            self._forget(now)
        settle_s = self._settle_s()
        if self.mode == STOPPED and self._probing.survived_at(2 * settle_s) <= now:
            self._resume(now)
        if self.mode == TRIAL_MODE and self._pace.tried_at(settle_s) <= now:
            self._end_trial(now)
        if self.mode == STOPPED:
            at = min(self._probing.ready_at(now), self._probing.survived_at(2 * settle_s))
        elif self.in_flight >= self._ceiling.most:
            at = self._full_until(now, settle_s)
        elif self.mode in (TRIAL_MODE, PACE) and self._next_at > now:
            at = self._paced_until(now, settle_s)
        else:
            at = now
        return max(at, self._most_at)

    def _full_until(self, now: float, settle_s: float) -> float:
        if self.mode == TRIAL_MODE:
            return self._pace.tried_at(settle_s)
        at = self._ceiling.probe_at(now, settle_s, self._sent_at, self._answered_at)
        if at > now:
            return at
        self._ceiling.probe(now)
        return now if self.mode != PACE else max(now, self._next_at)

    def _paced_until(self, now: float, settle_s: float) -> float:
        pace = self._pace
        number = self._history.sent
        is_high = self.mode != PACE or pace.per_s >= self._per_s_most or self._chance.excess(number) > 1
        if not is_high and pace.raise_at(number) <= now:
            self._next_at -= 1 / pace.per_s
            pace.raise_once(now, number)
            self._next_at += 1 / pace.per_s
        return max(now, min(self._next_at, pace.tried_at(settle_s)) if self.mode == TRIAL_MODE else self._next_at)

    def _settle_s(self) -> float:
        return max(SETTLE_LEAST_S, SETTLE_TIMES * self._refusal_s)

    # Verdicts

    def answered(self, ticket: Ticket, now: float) -> None:
        """Note that the server took a request."""
        self._end(ticket, now)
        self._has_answered = True
        self._idle_s, self._idle_from = 0.0, None
        self._failing.clear()
        if self.mode == FREE:
            return
        self._answered_at = now
        self._ceiling.pay()
        if self.mode == CEILING and self._ceiling.most >= self._jobs and self._ceiling.is_proven:
            self.mode, self._ceiling = FREE, Ceiling()
        self._borne -= max(0.0, self._borne - self._ceiling.sure) / FADES_BY
        self._answered.append(ticket)
        while self._answered and self._answered[0].sent_at + self._settle_s() <= now:
            taken = self._answered.popleft()
            if taken.number >= self._borne_from:
                self._borne = max(self._borne, self._history.held(taken) + 1)
        if self.mode == STOPPED and ticket.number >= self._probing.first:
            self._resume(now)

    def refused(self, ticket: Ticket, after_s: float | None, is_own: bool, now: float) -> None:
        """Note that the server had no room.

        after_s: how long it asks to wait, or None
        is_own: it keeps refusing this row while it answers others
        """
        self._end(ticket, now)
        self._history.add(ticket.number)
        self._refusal_s = max(now - ticket.sent_at, 0.9 * self._refusal_s)
        if self.mode == STOPPED:
            if ticket.number >= self._probing.first:
                self._probing.void(now) if is_own else self._probing.failed(now, after_s)
        elif is_own:
            pass
        elif ticket.number < self._burst_end:
            if self.mode == CEILING:
                self._ceiling.lower(self._history.held(ticket), self.in_flight)
        else:
            self._judge(ticket, after_s, now)

    def overdue(self, ticket: Ticket, is_own: bool, now: float) -> None:
        """Note that a request ended at a time limit, as in a queue that is too long: half as many are soon answered.

        is_own: this row keeps failing while others are answered
        """
        burst_end = self._burst_end
        self.refused(ticket, None, is_own, now)
        if self.mode == CEILING and self._burst_end != burst_end:
            self._ceiling.lower(self._history.held(ticket) // 2, 0)

    def failed(self, ticket: Ticket, is_own: bool, is_unreachable: bool, now: float) -> None:
        """Note that a request came to nothing, without a word about room: a timeout, a reset, a 5xx.

        is_own: this row keeps failing while others are answered
        is_unreachable: nothing was sent, so it can't be the row's fault
        """
        self._end(ticket, now)
        if self.mode == STOPPED:
            if ticket.number >= self._probing.first:
                self._probing.void(now) if is_own else self._probing.failed(now)
        elif self._has_answered and not is_own:
            self._failing.add(ticket.row)
            if is_unreachable or len(self._failing) >= AWAY_ROWS:
                self._stop(now, is_away=True)

    def released(self, ticket: Ticket, now: float) -> None:
        """Note that a request was given up before there was a verdict: nothing is learned from it."""
        self._end(ticket, now)
        if self.mode == STOPPED and ticket.number >= self._probing.first:
            self._probing.void(now)

    def _end(self, ticket: Ticket, now: float) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle_from = now

    # The table

    def _judge(self, ticket: Ticket, after_s: float | None, now: float) -> None:
        """Decide what a refusal speaks of: a probe, chance, a number, a rate."""
        history, chance = self._history, self._chance
        held, run = history.held(ticket), history.run(ticket.number)
        is_probe = held >= self._ceiling.sure
        if self.mode == TRIAL_MODE:
            first, end = self._pace.first, ticket.number + 1
            refusals = history.count(first, end)
            if run >= IN_A_ROW or (refusals >= TRIAL_REFUSALS and refusals > CHANCE_MOST * (end - first)):
                self._slow_down(ticket, held, after_s, now)
            return
        is_excess = (self.mode == PACE or not is_probe) and not chance.explains(ticket)
        if self.mode == PACE:
            self._weigh(held)
            if self._score > IS_NUMBER:
                self._decide()
                self._ceiling.cut(held, self.in_flight, now)
                self._back_to_ceiling()
            elif is_excess or not chance.explains_run(run):
                self._slow_down(ticket, held, after_s, now)
        elif is_probe or not chance.explains_run(run) or (is_excess and chance.stretch > CHANCE_MOST):
            self._cut(ticket, held, after_s, now)
        elif is_excess and (rate := self._measure(ticket, held)):
            # As many requests as had these refusals: so many again would be chance.
            share, count = chance.stretch, ticket.number - chance.first.number + 1
            self._decide()
            self._try_below(rate, min(max(count, TRIAL_UNSURE), TRIAL_MOST), now)
            self._trial_share, self._trial_rate = share, rate
            self._pace.mark(ticket.sent_at, ticket.number)

    def _cut(self, ticket: Ticket, held: int, after_s: float | None, now: float) -> None:
        """Lower the ceiling, or find that it is a rate."""
        self._decide()
        if self._in_a_row >= IN_A_ROW and not self._is_full(held):
            return self._stop(now, after_s=after_s)
        rate = self._measure(ticket, 0)
        if self._in_a_row == 1:
            self._weigh(held)
            self._pace.mark(ticket.sent_at, ticket.number)
        if self.mode == CEILING and self._score < IS_RATE and rate:
            self._try_below(rate, TRIAL_UNSURE, now)
        else:
            self._ceiling.cut(held, self.in_flight, now)
            self._back_to_ceiling()
        return None

    def _slow_down(self, ticket: Ticket, held: int, after_s: float | None, now: float) -> None:
        """Measure the rate anew, or find that it is a number."""
        self._decide()
        if self._in_a_row >= IN_A_ROW and not self._is_full(held):
            return self._stop(now, after_s=after_s)
        if rate := self._measure(ticket, 0):
            if self.mode == PACE:
                rate = max(rate, self._refused_at(ticket))
            self._try_below(rate, TRIAL if self.mode == PACE else TRIAL_UNSURE, now)
        self._pace.mark(ticket.sent_at, ticket.number)
        return None

    def _refused_at(self, ticket: Ticket) -> float:
        """Return the rate while requests were refused; no more than what was sent without a refusal before."""
        first, clean = self._chance.first, self._pace.clean
        if self._chance.stretch > NO_BURST:
            return clean
        taken = ticket.number - first.number - self._history.count(first.number, ticket.number)
        return min(clean, taken / max(1e-6, ticket.sent_at - first.sent_at))

    def _decide(self) -> None:
        """Begin a new burst; count the decisions in a row with nothing taken in between."""
        taken = self._history.taken
        self._in_a_row = self._in_a_row + 1 if taken - self._taken_at_cut < 2 else 1
        self._taken_at_cut = taken
        self._burst_end = self._history.sent

    def _weigh(self, held: int) -> None:
        """Move the score by a refusal; one with nothing in flight counts twice: no ceiling refuses that."""
        weight = WEIGHT if held else 2 * WEIGHT
        self._score += weight * (self._is_full(held) - self._score)

    def _is_full(self, held: int) -> bool:
        """Tell whether so many in flight are as many as the server has borne."""
        return held > 0 and held + 0.5 >= (1 - ALIKE) * self._borne

    def _measure(self, ticket: Ticket, least: int) -> float | None:
        return self._pace.measure(ticket.sent_at, ticket.number, self._history.count, least)

    def _try_below(self, rate: float, count: int, now: float) -> None:
        self.mode = TRIAL_MODE
        self._trial_share = 0.0
        self._chance.forgive(self._history.sent)
        self._pace.try_below(rate, now, self._history.sent, count)
        self._next_at = now + 1 / self._pace.per_s

    def _end_trial(self, now: float) -> None:
        """Tell chance from a rate by what was refused below the rate that was measured."""
        pace, chance, number = self._pace, self._chance, self._history.sent
        count, share, taken_per_s = pace.outcome(self._history.count)
        if self._trial_share and share >= self._trial_share / 2:
            chance.set(share)
            if self._score >= (IS_NUMBER + IS_RATE) / 2:
                self._back_to_ceiling()
            else:
                self._go_up(self._trial_rate, now)
        elif share <= chance.share + TRIAL_SLACK:
            chance.learn(share, count)
            self._score = min(self._score, SURE_RATE)
            self._go_up(pace.measured, now)
        elif pace.is_short:
            pace.prolong(now, number)
        else:
            rate_before = pace.measured
            self._decide()
            self._try_below(max(taken_per_s, rate_before / 2), TRIAL, now)
            self._trial_share, self._trial_rate = share, rate_before
            pace.mark(now, number)

    def _go_up(self, rate: float, now: float) -> None:
        self.mode = PACE
        self._chance.forgive(self._history.sent)
        self._pace.rise(rate, self._chance.share, now, self._history.sent)
        self._ceiling.widen(2 * self._borne, now)

    def _back_to_ceiling(self) -> None:
        self.mode = FREE if self._ceiling.most == math.inf else CEILING
        self._chance.forgive(self._history.sent)

    def _stop(self, now: float, is_away: bool = False, after_s: float | None = None) -> None:
        since, before = self._since
        taken = self._history.taken - before
        is_few = 0 < taken < FEW_A_MINUTE / 60 * max(60, now - since)
        is_again, self._stopped_at = now - self._stopped_at < FORGET_S, now
        pause_s = 1 / self._pace.per_s if self.mode in (TRIAL_MODE, PACE) else 0.0
        self._mode_before, self.mode = self.mode, STOPPED
        is_window = not is_away and (is_few or is_again)
        self._probing = Probing(now, self._history.sent, is_away, is_window, pause_s, after_s)

    def _resume(self, now: float) -> None:
        (since, before), taken = self._since, self._history.taken
        self.mode = self._mode_before
        self._in_a_row, self._taken_at_cut = 0, -2
        self._burst_end = self._borne_from = self._history.sent
        self._borne = 0.0
        if taken - before >= MEANT:
            self._start(now)
        if self._probing.is_window:
            self._try_below(max(1, taken - before) / (now - since), TRIAL, now)
        elif self.mode in (TRIAL_MODE, PACE):
            self._try_below(self._pace.measured, TRIAL_UNSURE, now)
        else:
            self.mode = CEILING
            self._ceiling.restart(self.in_flight, now)
