"""What a server takes, found from its refusals alone: so many requests at a time, or so many a second.

Theory of operation. Until something is refused there is no limit, and nothing here costs anything. Then each
refusal is a measurement, and an exact one:

- If the server takes C *at a time*, C were under way when it refused. So C is what was in flight when the refused
  request was sent, less those of them that were refused too: right for a first burst of any size, and for refusals
  that take long. This is the *ceiling*; keeping to it costs no slot and no refusal, however long answers take.
- If it takes a *rate*, its bucket was empty at this refusal and at the one before (or its window ended there), so the
  rate is what it took in between, over the time in between. This is the *pace*; requests go out evenly.

A refusal is blamed on the number in flight as long as that was not much lower than what was taken before. Refused with
few in flight, several times with nothing taken in between, or far more often than probing explains, it must be a rate;
when a rate is refused with the same number in flight each time, it was a number after all. The other bound stays in
force at twice what was seen, so a server may have both.

Upwards: a probe is *one* more request (or 2 % more a second). If it isn't refused in the time that refusals take,
twice as much is added, and so on: a limit that grew, or was guessed too low, is found in a second or two, and a true
one costs one refusal a probe. A probe is earned by 50 answers, which keeps refusals at 2 %.

When a pace is refused again and again, only a single request is out, after pauses that double (a window that is used
up, a server that loads). Such single probes also wait for a server that is away: connections refused, 5xx to all.

Some refusals are chance: one bad replica, a busy gateway. If they go on although the pace was cut, the load is halved
for some dozen requests; if refusals stay, the limit isn't ours, and that share is tolerated from then on.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable

from llmfilter.errors import Abandoned

EARNED_BY = 50  # answers that earn one probe, so that probing has at most 2 % refused
UNEARNED_S = 120.0  # a probe after so long anyway: what is in flight may hang
SETTLE_LEAST_S = 0.05  # more than a refusal's jitter: sooner, silence is no consent
FEW = 0.5  # of what was taken before: a refusal with fewer in flight isn't about their number
IN_A_ROW = 4  # refusals with nothing taken in between: not about the number in flight either
ALIKE, ALIKE_TIMES = 0.05, 3  # so often in a row the same number in flight (below 20: exactly) is no rate's doing
PACE_STEP_S = 0.5  # a pace is tried for so long at least before it is raised; a rate is measured over as long
TRIED_BY = 4  # and by so many requests
PACE_STEP, PACE_STEP_MOST = 0.02, 0.25  # doubled within two seconds, with little overshoot
PACE_MARGIN = 0.98  # of the measured rate, so that a bucket refills and jitter goes unpunished
MEANT = 10  # requests that make a measurement
CAREFUL = 0.9  # no deeper cut after a measurement by fewer
PAUSE_MOST_S = 15.0  # a quarter of the usual window: it is found again late by so much at most
WINDOW_S = 1.0  # after a pause as long as this it was a window, measured whole: no need to probe at once
AWAY_MOST_S = 3.0  # a refused connection costs nobody anything
AWAY_FAILURES, AWAY_AFTER_S = 5, 0.25  # in a row, for so long, none answered: no row's own fault, and no chance
AWAY_FAILURES_AT_ONCE = 20  # sooner, one in five of thousands a second would now and then look like it
LATE_S = 0.02  # what timers lose by firing late may be caught up, no more
FORGET_S = 60.0  # the longest window in use: what was measured before an idle time of this length is void
TROUBLE = 3.0  # cuts among the last 50 verdicts, where probing alone makes one
TRIAL_MOST_S = 10.0  # at half the load
TRIAL_LEAST = 24  # verdicts: with 20 % refused by chance, 40 % of them are hardly ever
TRIAL_FIRST_S, TRIAL_RARELY_S = 3.0, 60.0  # between trials that found a limit: twice as long each time
CLEAR_BY = 40  # answers for each refusal clear a trial: the limit is real
CHANCE_REFUSALS = 3  # at half the load: it is chance
CHANCE_MOST = 0.4  # a larger share is no chance
CAUTION = 2  # refusals more than were counted, lest chance be taken for a limit again
EXCESS = 8.0  # refusals beyond what chance explains: a limit


class Ticket:
    """A request that may be sent: hand it back with the server's verdict."""

    __slots__ = ("ahead", "refused", "sent_at")

    def __init__(self, sent_at: float, ahead: int, refused: int) -> None:
        self.sent_at = sent_at
        self.ahead = ahead  # requests in flight before it
        self.refused = refused  # how many had been refused before it


class Limit:
    """Turns for sending requests, in the order they were asked for.

    jobs: most requests in flight, kept by the caller; per_s_most: requests a second that are never exceeded
    (`--rpm`), or infinity; clock: seconds, monotonic, the running loop's by default.
    """

    def __init__(self, jobs: int, per_s_most: float = math.inf, clock: Callable[[], float] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock or self._loop.time
        self._jobs = jobs
        self._most = per_s_most
        self._waiting: deque[asyncio.Future[Ticket]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False
        self.in_flight = 0
        self._sent = self._refused = 0
        self._next_at = self._sent_at = self._most_at = -math.inf  # by the pace; the last; by the most
        self._refusal_s = 0.0  # how long a refusal takes
        self._stuck_at: float | None = None
        self._failures = 0  # since the last answer
        self._silent_since = 0.0  # the first of them
        self.has_answered = False
        self._chance = 0.0  # the share of refusals that are no limit
        self._trial_from, self._trial_wait_s = -math.inf, TRIAL_FIRST_S
        self._forget()

    def _forget(self) -> None:
        now = self._clock()
        self._free = self._most == math.inf and not self._draining  # nothing to keep to: the fast path
        self._ceiling = self._pace = math.inf
        self._peak = 0.0  # in flight and taken, lately
        self._alike = 0
        self._is_peak_new = False
        self._held = 0  # in flight at the last refusal of a pace
        self._cut_at = -math.inf
        self._cut_taken = -2  # by then
        self._base = 0  # the ceiling without its probes
        self._in_a_row = 0
        self._credit = 1.0
        self._step, self._pace_step, self._grown_at = 1.0, PACE_STEP, -math.inf
        self._ramp_to = 0.0
        self._cycle_at, self._cycle_taken, self._cycle_refused = now, self._sent - self._refused, self._refused
        self._earlier = self._cycle_at, self._cycle_taken
        self._tried = 0.0  # the pace before it was raised last
        self._paused: float | None = None  # the length of the pause between single requests
        self._single: Ticket | None = None
        self.away = False
        self._is_pace = False
        self._trouble = self._excess = 0.0
        self._trial: Trial | None = None

    @property
    def found(self) -> str | None:
        """The limit that was found, for people; None while nothing was refused."""
        if self._is_pace and self._pace < math.inf:
            return f"{self._pace:.3g}/s" if self._pace >= 1 else f"{self._pace * 60:.3g}/min"
        return f"{self._ceiling:.0f} at a time" if self._ceiling < self._jobs else None

    @property
    def stuck_s(self) -> float:
        """For how long everything has been refused or failed, with nothing under way now."""
        return 0.0 if self._stuck_at is None or self.in_flight else self._clock() - self._stuck_at

    async def turn(self) -> Ticket:
        """Return when the next request may be sent; raise Abandoned once drained."""
        if self._free:
            return self._send(self._clock())
        if self._draining:
            raise Abandoned
        turn: asyncio.Future[Ticket] = self._loop.create_future()
        self._waiting.append(turn)
        self._pump()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release(turn.result())
            raise

    def drain(self) -> None:
        """Let nothing more be sent: all who wait raise Abandoned."""
        self._draining, self._free = True, False
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(Abandoned())

    def answered(self, ticket: Ticket) -> None:
        """Note that the server took the request."""
        self.has_answered = True
        self._failures, self._stuck_at = 0, None
        self.in_flight -= 1
        if self._free:
            return
        self._credit = min(1.0, self._credit + 1 / EARNED_BY)
        self._peak -= max(0.0, self._peak - self._ceiling) / EARNED_BY
        self._trouble *= 1 - 1 / EARNED_BY
        if self._chance:
            self._excess = max(0.0, self._excess - 2.5 * self._chance)
            self._chance -= self._chance / 200
        if self._trial and ticket.sent_at > self._trial.at:
            self._trial.taken += 1
            self._judge_trial()
        if self._paused is not None and ticket.sent_at > self._cut_at:
            self._resume()
        self._pump()

    def refused(self, ticket: Ticket, after_s: float | None = None) -> None:
        """Note that the server had no room; after_s: how long it asks to wait, or None."""
        now = self._clock()
        held = max(0, ticket.ahead - (self._refused - ticket.refused))
        self._refused += 1
        self._verdict_s(now - ticket.sent_at)
        self._stuck(now)
        self._free = False
        self.in_flight -= 1
        if ticket is self._single:
            self._cut(now, held, after_s)
        elif self._trial and ticket.sent_at > self._trial.at:
            self._trial.refused += 1
            self._judge_trial()
        elif self._chance and self._excess < EXCESS:
            self._excess += 1
            self._chance = min(CHANCE_MOST, self._chance + (1 - self._chance) / 200)
        elif ticket.sent_at <= self._cut_at:
            self._lower(max(1, held, self.in_flight))  # of the same burst
        else:
            self._excess, self._chance = EXCESS / 2, 0.8 * self._chance
            self._cut(now, held, after_s)
        self._pump()

    def failed(self, ticket: Ticket) -> None:
        """Note that the request came to nothing, without a word about room: a timeout, a reset, a 5xx."""
        now = self._clock()
        self.in_flight -= 1
        if not self._failures:
            self._silent_since = now
        self._failures += 1
        self._stuck(now)
        if self._paused is not None:
            if ticket is self._single:
                self._pause(now, 2 * self._paused)
        elif self.has_answered and self._is_silent(now):
            self.away, self._free, self._trial = True, False, None
            self._cut_at = now
            self._pause(now, PACE_STEP_S)
        self._pump()

    def _is_silent(self, now: float) -> bool:
        is_long = now - self._silent_since >= AWAY_AFTER_S
        return self._failures >= (AWAY_FAILURES if is_long else AWAY_FAILURES_AT_ONCE)

    def release(self, ticket: Ticket) -> None:
        """Note that the request was given up before there was a verdict: nothing is learned from it."""
        self.in_flight -= 1
        self._sent -= 1
        if ticket is self._single:
            self._single = None
        self._pump()

    # Downwards

    def _cut(self, now: float, held: int, after_s: float | None) -> None:
        self._credit = 0.0
        self._step, self._pace_step, self._ramp_to = 1.0, PACE_STEP, 0.0
        self._grown_at = now
        taken = self._sent - self._refused
        if taken - self._cut_taken < 2:  # chance would have taken some
            self._in_a_row += 1
        else:
            self._in_a_row = 1
            self._trouble += min(1.0, (now - self._cut_at) / SETTLE_LEAST_S)
        self._cut_taken = taken
        self._cut_at = now
        if self._pace == math.inf and now - self._cycle_at > FORGET_S:
            self._restart_cycle(now)
        if self._paused is not None:
            self._pause(now, 2 * self._paused, after_s)
        elif self._pace < math.inf and self._trouble > TROUBLE and now >= self._trial_from:
            self._begin_trial(now)
        elif self._pace < math.inf:
            self._cut_pace(now, held, after_s)
        elif self._ceiling == math.inf or (
            held >= max(1.0, FEW * self._peak)
            and self._in_a_row < max(IN_A_ROW, FEW * self._peak)
            and self._trouble <= TROUBLE
        ):
            if now - self._cycle_at >= PACE_STEP_S and self._in_a_row == 1:
                self._restart_cycle(now)
            if self._ceiling == math.inf or abs(held - self._base) > ALIKE * self._base:
                self._credit = 1.0  # it is not settled yet
            self._ceiling = self._base = max(1, held)
            self._is_peak_new = held > self._peak
            self._peak = max(self._peak, held)
        else:
            self._pause(now, SETTLE_LEAST_S, after_s)

    def _lower(self, held: int) -> None:
        if not self._is_pace and held < self._ceiling:
            self._ceiling = self._base = held
            if self._is_peak_new:
                self._peak = held

    def _cut_pace(self, now: float, held: int, after_s: float | None) -> None:
        taken = self._sent - self._refused - self._cycle_taken
        is_alike = held > 1 and abs(held - self._held) <= ALIKE * held
        self._alike = self._alike + 1 if is_alike else 0
        self._held = held
        if self._alike >= ALIKE_TIMES:
            self._pace, self._ceiling, self._peak, self._is_pace = math.inf, held, held, False
            self._alike = 0
        elif self._refused - self._cycle_refused > taken + 1:
            self._pause(now, max(SETTLE_LEAST_S, 1 / self._pace), after_s)
        elif now - self._cycle_at >= PACE_STEP_S:
            self._measure(now)

    def _measure(self, now: float) -> None:
        """Set the pace to what was taken between refusals."""
        taken, seconds = self._taken(now)
        is_first = self._pace == math.inf
        if taken > 1:
            measured = PACE_MARGIN * taken / max(seconds, PACE_STEP_S)
            if taken < MEANT and self._in_a_row <= 1 and not is_first:
                measured = max(measured, CAREFUL * self._pace)
            self._pace = max(self._tried, measured)
            self._ceiling = max(self._ceiling, 2 * self._peak)
            self._is_pace = True
        elif is_first:  # it took nothing at all: that says nothing about rates
            self._ceiling, self._ramp_to = 1, self._jobs
        else:
            self._pace *= PACE_MARGIN
        if is_first:
            self._trouble = 0.0
            self._credit = float((self._paused or 0.0) < WINDOW_S)
        self._tried = 0.0
        self._restart_cycle(now)

    def _taken(self, now: float) -> tuple[int, float]:
        """Return how many requests were taken in how many seconds: since the last refusal, or the one before."""
        taken = self._sent - self._refused
        if self._paused is None and taken - self._cycle_taken >= MEANT:
            return taken - self._cycle_taken, now - self._cycle_at
        at, before = self._earlier
        return taken - before, now - at

    def _restart_cycle(self, now: float) -> None:
        is_recent = now - self._cycle_at <= FORGET_S
        self._earlier = (self._cycle_at, self._cycle_taken) if is_recent else (now, self._sent - self._refused)
        self._cycle_at, self._cycle_taken, self._cycle_refused = now, self._sent - self._refused, self._refused

    def _pause(self, now: float, pause_s: float, after_s: float | None = None) -> None:
        most_s = AWAY_MOST_S if self.away else PAUSE_MOST_S
        self._paused = min(most_s, max(pause_s, self._settle_s()))
        self._next_at = now + max(self._paused, (after_s or 0.0) if self._in_a_row > 1 else 0.0)
        self._single = None

    def _resume(self) -> None:
        now = self._clock()
        self._in_a_row = 0
        self._grown_at = now
        if self.away:
            self.away, self._ramp_to, self._ceiling = False, min(self._ceiling, self._jobs), 1
            self._restart_cycle(now)
        else:
            self._tried = 0.0
            self._measure(now)
        self._paused = self._single = None
        self._next_at = now + 1 / self._pace

    # Sending

    def _settle_s(self) -> float:
        return max(SETTLE_LEAST_S, 1.5 * self._refusal_s)

    def _verdict_s(self, taken_s: float) -> None:
        self._refusal_s = max(taken_s, 0.9 * self._refusal_s)

    def _stuck(self, now: float) -> None:
        if self._stuck_at is None:
            self._stuck_at = now

    def _send(self, now: float) -> Ticket:
        ticket = Ticket(now, self.in_flight, self._refused)
        self.in_flight += 1
        self._sent += 1
        self._sent_at = now
        return ticket

    def _pump(self) -> None:
        """Send what may be sent, and come again when more may."""
        now = self._clock()
        if not self.in_flight and now - self._sent_at > FORGET_S and self._paused is None:
            self._forget()
        while self._waiting:
            if self._waiting[0].done():
                self._waiting.popleft()
                continue
            wake_at = self._blocked_until(now)
            if wake_at > now:
                if wake_at < math.inf:
                    self._wake(wake_at)
                return
            ticket = self._send(now)
            self._most_at = max(self._most_at, now - LATE_S) + 1 / self._most
            if self._paused is not None:
                self._single = ticket
            else:
                self._next_at = max(self._next_at, now - LATE_S) + 1 / self._bounds()[1]
            self._waiting.popleft().set_result(ticket)

    def _bounds(self) -> tuple[float, float]:
        if self._trial:
            return self._trial.ceiling, self._trial.pace
        return self._ceiling, self._pace

    def _blocked_until(self, now: float) -> float:
        """When to look again whether the next may be sent: now if it may."""
        ready_at = max(self._next_at, self._most_at)
        if self._paused is not None:
            if self._single is None:
                return ready_at
            if self.away:
                return math.inf
            if (survived_at := self._single.sent_at + self._settle_s()) > now:
                return survived_at
            self._resume()
            ready_at = max(self._next_at, self._most_at)
        ceiling, pace = self._bounds()
        if self.in_flight < ceiling and ready_at <= now:
            return now
        if self._trial:
            return ready_at if self.in_flight < ceiling else math.inf
        is_full = self.in_flight >= ceiling
        if (grow_at := self._grow_at(is_full)) <= now:
            self._grow(now, is_full)
            return self._blocked_until(now)
        return grow_at if is_full else min(ready_at, grow_at) if pace < self._most else ready_at

    def _grow_at(self, is_full: bool) -> float:
        if is_full and self._ceiling < self._ramp_to:
            return self._grown_at + self._settle_s()
        is_first = self._step == 1 if is_full else self._pace_step == PACE_STEP
        if (is_first and self._credit < 1) or (not is_full and self._pace >= self._most):
            return self._grown_at + UNEARNED_S if is_full else math.inf
        if is_full:
            return max(self._grown_at + self._settle_s(), self._sent_at + self._quiet_s())
        return self._grown_at + max(self._settle_s(), PACE_STEP_S, TRIED_BY / self._pace)

    def _quiet_s(self) -> float:
        """Half of what lies between two requests: a probe on another's heels would be refused for that."""
        return FEW * (self._clock() - self._cycle_at) / max(1, self._sent - self._refused - self._cycle_taken)

    def _grow(self, now: float, is_full: bool) -> None:
        self._grown_at = now
        if is_full and self._ceiling < self._ramp_to:
            self._ceiling = min(self._ramp_to, 2 * self._ceiling)
        elif is_full:
            self._ceiling += self._step
            self._step *= 2
        else:
            self._next_at += 1 / (self._pace * (1 + self._pace_step)) - 1 / self._pace
            self._tried = self._pace if self._pace * PACE_STEP_S >= 4 else 0.0
            self._pace *= 1 + self._pace_step
            self._pace_step = min(PACE_STEP_MOST, 2 * self._pace_step)

    def _wake(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, at - self._clock()), self._pump)

    # Chance

    def _begin_trial(self, now: float) -> None:
        taken, seconds = self._taken(now)
        pace = FEW * max(1, taken) / max(PACE_STEP_S, seconds)
        ceiling = max(1.0, FEW * min(self._ceiling, self._jobs, self.in_flight + 1))
        self._trial = Trial(now, ceiling, min(pace, self._pace * FEW), self._trouble / EARNED_BY)

    def _judge_trial(self) -> None:
        trial = self._trial
        assert trial is not None
        verdicts = trial.refused + trial.taken
        share = trial.refused / verdicts
        is_clear = trial.refused >= CHANCE_REFUSALS or trial.taken >= CLEAR_BY * (1 + trial.refused)
        if not (is_clear and verdicts >= TRIAL_LEAST) and self._clock() - trial.at < TRIAL_MOST_S:
            return
        self._trial = None
        self._trouble = 0.0
        self._restart_cycle(self._clock())
        if verdicts >= TRIAL_LEAST and trial.refused >= CHANCE_REFUSALS and FEW * trial.share <= share <= CHANCE_MOST:
            self._chance = min((trial.refused + CAUTION) / verdicts, CHANCE_MOST)
            self._ceiling = self._pace = math.inf
            self._is_pace = False
        else:
            self._trial_from = self._clock() + self._trial_wait_s
            self._trial_wait_s = min(TRIAL_RARELY_S, 2 * self._trial_wait_s)


class Trial:
    """Sending at half the load, to see whether that changes the share of refusals."""

    def __init__(self, at: float, ceiling: float, pace: float, share: float) -> None:
        self.at = at
        self.ceiling = ceiling
        self.pace = pace
        self.share = share  # refused before it
        self.taken = self.refused = 0
