"""Which limit refused a request, and what to do about it.

Theory of operation: five modes, and what leads from one to another.

| from         | what happened                                                              | to              |
|--------------|----------------------------------------------------------------------------|-----------------|
| free         | so many refusals in a row, or so large a share, that it is no chance       | ceiling         |
| free,        | more refusals below the ceiling than chance explains, or again with fewer  |                 |
| ceiling      | in flight than the server has borne                                        | trial           |
| ceiling      | it was raised to all that may be in flight, which was borne for a while    | free            |
| trial        | nothing but chance was refused: it is a rate                               | pace            |
| trial        | more was refused, and hardly less than when requests were sent faster:     | where it was,   |
|              | chance                                                                     | or pace         |
| trial        | more was refused: that pace was too fast                                   | trial, slower   |
| pace         | more refusals than chance explains                                         | trial           |
| trial, pace  | refused again and again with as many in flight as the server has ever borne | ceiling        |
| any          | four refusals, each sent after the one before was heard, nothing taken     | stopped         |
|              | between; or several rows failed, or the server is out of reach             |                 |
| stopped      | a probe was taken                                                          | ceiling         |
| stopped      | … where a rate was known, or by a server that takes few requests a minute  | trial           |

In *free* nothing is bounded. In *ceiling* so many requests are in flight. In *trial* they are sent just below the
rate that was measured, so that all refusals are chance, unless it was measured wrong. In *pace* the rate is raised
until it is refused. In *stopped* one request is out.

A *burst* is what was sent before a refusal was heard: its refusals correct the last decision, and make no new one.
"""

import math
from typing import Any

from llmfilter.server.limit.blame import Blame
from llmfilter.server.limit.ceiling import Ceiling
from llmfilter.server.limit.chance import MOST as CHANCE_MOST
from llmfilter.server.limit.chance import Chance
from llmfilter.server.limit.history import History, Ticket
from llmfilter.server.limit.pace import FORGET_S, MEANT, Pace
from llmfilter.server.limit.probing import AWAY, FULL, WINDOW, Probing
from llmfilter.server.limit.silence import Silence
from llmfilter.server.limit.trial import TRIAL, TRIAL_UNSURE, UNKNOWN, Faster, Trial

FREE, CEILING, TRIAL_MODE, PACE, STOPPED = "free", "ceiling", "trial", "pace", "stopped"

SETTLE_LEAST_S, SETTLE_TIMES = 0.05, 1.5  # of what refusals take: what is not refused by then was taken
IN_A_ROW = 4  # refusals one after another with nothing taken between: the server takes nothing now
TRIAL_REFUSALS = 5  # so many at once, a larger share than chance can have, end a trial
NO_BURST = 0.4  # refused since the pace was raised a little: a bucket without burst, which halves what it takes
FEW_A_MINUTE = 100
LATE_S = 0.02  # what timers lose by firing late may be caught up, no more
AWAY_ROWS = 5  # failed with no answer in between


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
        self._silence = Silence()
        self._forget(now)

    def _forget(self, now: float) -> None:
        self.mode = self._mode_before = FREE
        self._ceiling, self._pace, self._chance, self._blame = Ceiling(), Pace(), Chance(), Blame()
        self._probing = Probing(now, 0)
        self._answered_at = now
        self._burst_end = 0  # the first number sent after the last decision
        self._in_a_row, self._taken_at_cut = 0, -2
        self._stopped_at = -math.inf
        self._trial = Trial(now, 0, 0, math.inf)
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
        return self.mode == STOPPED and self._probing.cause == AWAY

    def stuck_s(self, now: float) -> float:
        """Return for how long nothing has been answered, but for the time in which a request was under way."""
        return self._silence.so_far_s(now)

    # Sending

    def send(self, row: Any, now: float) -> Ticket:
        """Note that a request is sent."""
        history = self._history
        ticket = Ticket(row, history.sent, now, self.in_flight, history.refused)
        history.sent += 1
        if not self.in_flight:
            self._silence.pause(now)
        self.in_flight += 1
        self._sent_at = now
        if self._per_s_most < math.inf:
            self._most_at = max(self._most_at, now - LATE_S) + 1 / self._per_s_most
        if self.mode == STOPPED:
            self._probing.sent(now)
        elif self.mode in (TRIAL_MODE, PACE):
            self._trial.sent(now, ticket.number)
            self._next_at = max(self._next_at, now - LATE_S) + 1 / self._pace.per_s
        return ticket

    def ready_at(self, now: float) -> float:
        """Return when the next request may be sent: now, later, or infinity where only a verdict can tell."""
        if not self.in_flight and now - self._sent_at > FORGET_S and self.mode != STOPPED:
            self._forget(now)
        settle_s = self._settle_s()
        if self.mode == STOPPED and self._probing.survived_at(2 * settle_s) <= now:
            self._resume(now)
        if self.mode == TRIAL_MODE and self._trial.over_at(settle_s) <= now:
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
            return self._trial.over_at(settle_s)
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
        return max(now, min(self._next_at, self._trial.over_at(settle_s)) if self.mode == TRIAL_MODE else self._next_at)

    def _settle_s(self) -> float:
        return max(SETTLE_LEAST_S, SETTLE_TIMES * self._refusal_s)

    # Verdicts

    def answered(self, ticket: Ticket, now: float) -> None:
        """Note that the server took a request."""
        self._end(ticket, now)
        self._has_answered = True
        self._silence.end()
        self._failing.clear()
        if self.mode == FREE:
            return
        self._answered_at = now
        self._ceiling.pay()
        if self.mode == CEILING and self._ceiling.most >= self._jobs and self._ceiling.is_proven:
            self.mode, self._ceiling = FREE, Ceiling()
        self._blame.answered(ticket, self._ceiling.sure, self._settle_s(), self._history, now)
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
            self._silence.go_on(now)

    # The table

    def _judge(self, ticket: Ticket, after_s: float | None, now: float) -> None:
        """Decide what a refusal speaks of, if it is not chance, and act on it."""
        chance = self._chance
        held, run = self._history.held(ticket), self._history.run(ticket.number)
        is_series = not chance.explains_run(run)  # one refusal right after the other
        if self.mode == TRIAL_MODE:
            if run >= IN_A_ROW or self._is_lost(self._trial, ticket):
                self._slow_down(ticket, held, after_s, now)
        elif self.mode == PACE:
            self._blame.weigh(held)
            is_excess = not chance.explains(ticket)  # of refusals, over a longer time
            if self._blame.is_number:
                self._decide()
                self._lower_ceiling(held, now)
            elif is_series or is_excess:
                self._slow_down(ticket, held, after_s, now)
        elif held >= self._ceiling.sure or is_series:  # a probe, or a limit that is new
            self._cut(ticket, held, after_s, now)
        elif not chance.explains(ticket):
            if chance.stretch > CHANCE_MOST:
                self._cut(ticket, held, after_s, now)
            elif rate := self._measure(ticket, held):
                self._decide()
                # As many requests as had these refusals: if it is chance, as many of them will be refused.
                count = max(TRIAL_UNSURE, ticket.number - chance.first.number + 1)
                self._try_below(rate, count, now, Faster(chance.stretch, rate))
                self._pace.mark(ticket.sent_at, ticket.number)

    def _is_lost(self, trial: Trial, ticket: Ticket) -> bool:
        """Tell whether a larger share of a trial was refused up to this request than chance can have."""
        refusals, count = self._history.count(trial.first, ticket.number + 1), ticket.number + 1 - trial.first
        return refusals >= TRIAL_REFUSALS and refusals > CHANCE_MOST * count

    def _cut(self, ticket: Ticket, held: int, after_s: float | None, now: float) -> None:
        """Lower the ceiling, or find that it is a rate, or that nothing is taken at all."""
        self._decide()
        if self._is_nothing_taken(held):
            return self._stop(now, after_s=after_s)
        rate = self._measure(ticket, 0)
        if self._in_a_row == 1:
            self._blame.weigh(held)
            self._pace.mark(ticket.sent_at, ticket.number)
        if self.mode == CEILING and self._blame.is_rate and rate:
            return self._try_below(rate, TRIAL_UNSURE, now)
        return self._lower_ceiling(held, now)

    def _slow_down(self, ticket: Ticket, held: int, after_s: float | None, now: float) -> None:
        """Measure the rate anew, or find that nothing is taken at all."""
        self._decide()
        if self._is_nothing_taken(held):
            return self._stop(now, after_s=after_s)
        if rate := self._measure(ticket, 0):
            if self.mode == PACE:
                rate = max(rate, self._refused_at(ticket))
            self._try_below(rate, TRIAL if self.mode == PACE else TRIAL_UNSURE, now)
        return self._pace.mark(ticket.sent_at, ticket.number)

    def _lower_ceiling(self, held: int, now: float) -> None:
        self._ceiling.cut(held, self.in_flight, now)
        self._back_to_ceiling()

    def _is_nothing_taken(self, held: int) -> bool:
        """Tell whether nothing was taken between one decision and the next, again and again, below what was borne."""
        return self._in_a_row >= IN_A_ROW and not self._blame.is_full(held)

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

    def _measure(self, ticket: Ticket, least: int) -> float | None:
        return self._pace.measure(ticket.sent_at, ticket.number, self._history.count, least)

    def _try_below(self, rate: float, count: int, now: float, before: Faster = UNKNOWN) -> None:
        number = self._history.sent
        self.mode = TRIAL_MODE
        self._trial = Trial(now, number, count, rate, before)
        self._chance.forgive(number)
        self._pace.keep_below(rate)
        self._next_at = now + 1 / self._pace.per_s

    def _end_trial(self, now: float) -> None:
        """Tell chance from a rate by what was refused below the rate that was measured."""
        trial, chance, number = self._trial, self._chance, self._history.sent
        share = trial.share(self._history.count)
        if trial.shows_chance(share):
            chance.set(share)
            if self._blame.is_rather_number:
                self._back_to_ceiling()
            else:
                self._go_up(trial.before.rate, now)
        elif trial.shows_rate(share, chance.share):
            chance.learn(share, trial.count)
            self._blame.be_sure_of_rate()
            self._go_up(trial.rate, now)
        elif trial.is_short:
            trial.prolong(now, number)
        else:
            self._decide()
            self._try_below(max(trial.taken_per_s(share), trial.rate / 2), TRIAL, now, Faster(share, trial.rate))
            self._pace.mark(now, number)

    def _go_up(self, rate: float, now: float) -> None:
        self.mode = PACE
        self._chance.forgive(self._history.sent)
        self._pace.rise(rate, self._chance.share, now, self._history.sent)
        self._ceiling.widen(2 * self._blame.borne, now)

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
        cause = AWAY if is_away else WINDOW if is_few or is_again else FULL
        self._probing = Probing(now, self._history.sent, cause, pause_s, after_s)

    def _resume(self, now: float) -> None:
        (since, before), taken = self._since, self._history.taken
        self.mode = self._mode_before
        self._in_a_row, self._taken_at_cut = 0, -2
        self._burst_end = self._history.sent
        self._blame.restart(self._history.sent)
        if taken - before >= MEANT:
            self._start(now)
        if self._probing.cause == WINDOW:
            self._try_below(max(1, taken - before) / (now - since), TRIAL, now)
        elif self.mode in (TRIAL_MODE, PACE):
            self._try_below(self._trial.rate, TRIAL_UNSURE, now)
        else:
            self.mode = CEILING
            self._ceiling.restart(self.in_flight, now)
