"""Servers with limits and a client like the real one, on a clock that only moves when all wait."""

import asyncio
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

ROUND_TRIP_S = 0.002
DAY_S = 86400.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        really_select = self._selector.select  # type: ignore[attr-defined]

        def select(timeout: float | None) -> Any:
            self._now += timeout or 0.0
            events = really_select(0)
            assert events or timeout is not None, "all wait, and no timer will ever wake one"
            return events

        self._selector.select = select  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        failures: list[BaseException] = []
        task: asyncio.Future[Any] | None = None

        def fail(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            failures.append(context.get("exception") or RuntimeError(context["message"]))
            if task is not None:
                task.cancel()

        async def watched() -> Any:
            nonlocal task
            asyncio.get_running_loop().set_exception_handler(fail)
            task = asyncio.ensure_future(main)
            return await task

        try:
            return runner.run(watched())
        except asyncio.CancelledError:
            raise failures[0] from None


class Gate(Protocol):
    """One limit of a server: `admits` and `leaves` are told the time; `start_s` is the oracle's."""

    def admits(self, now: float) -> bool: ...
    def took(self, now: float) -> None: ...
    def leaves(self) -> None: ...
    def free_at(self, now: float, count: int) -> float: ...


class Slots:
    """So many at a time (a queue included)."""

    def __init__(self, most: int | Callable[[float], int]) -> None:
        self.most = most if callable(most) else lambda now: most
        self.busy = 0

    def admits(self, now: float) -> bool:
        return self.busy < self.most(now)

    def took(self, now: float) -> None:
        self.busy += 1

    def leaves(self) -> None:
        self.busy -= 1

    def free_at(self, now: float, count: int) -> float:
        return now


class Bucket:
    """A token bucket, `burst` deep."""

    def __init__(self, rate: float | Callable[[float], float], burst: float) -> None:
        self.rate = rate if callable(rate) else lambda now: rate
        self.burst = self._tokens = max(1.0, burst)
        self._at = 0.0

    def admits(self, now: float) -> bool:
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate(now))
        self._at = now
        return self._tokens >= 1 - 1e-9

    def took(self, now: float) -> None:
        self._tokens -= 1

    def leaves(self) -> None:
        pass

    def free_at(self, now: float, count: int) -> float:
        while not self.admits(now):
            now += max(1e-6, (1 - self._tokens) / self.rate(now))
        return now


class Fixed:
    """So many in each fixed window of so many seconds."""

    def __init__(self, most: int, window_s: float, offset_s: float = 0.0) -> None:
        self.most, self.window_s, self.offset_s = most, window_s, offset_s
        self._window, self._taken = -1, 0

    def admits(self, now: float) -> bool:
        window = int((now + self.offset_s) // self.window_s)
        if window != self._window:
            self._window, self._taken = window, 0
        return self._taken < self.most

    def took(self, now: float) -> None:
        self._taken += 1

    def leaves(self) -> None:
        pass

    def free_at(self, now: float, count: int) -> float:
        if self.admits(now):
            return now
        return (self._window + 1) * self.window_s - self.offset_s + 1e-6


class Sliding:
    """So many in the last so many seconds; counts_refused: HAProxy counts those too."""

    def __init__(self, most: int, window_s: float, counts_refused: bool = False) -> None:
        self.most, self.window_s, self.counts_refused = most, window_s, counts_refused
        self._taken: deque[float] = deque()

    def admits(self, now: float) -> bool:
        while self._taken and self._taken[0] <= now - self.window_s:
            self._taken.popleft()
        is_room = len(self._taken) < self.most
        if self.counts_refused and not is_room:
            self._taken.append(now)
        return is_room

    def took(self, now: float) -> None:
        self._taken.append(now)

    def leaves(self) -> None:
        pass

    def free_at(self, now: float, count: int) -> float:
        while self._taken and self._taken[0] <= now - self.window_s:
            self._taken.popleft()
        return now if len(self._taken) < self.most else self._taken[0] + self.window_s + 1e-6


def log_normal(median_s: float, sigma: float = 0.5) -> Callable[[random.Random], float]:
    return lambda rng: rng.lognormvariate(math.log(median_s), sigma)


def uniform(least_s: float, most_s: float) -> Callable[[random.Random], float]:
    return lambda rng: rng.uniform(least_s, most_s)


@dataclass
class Case:
    """A server, a client's -j, and a job."""

    name: str
    gates: Callable[[], list[Any]]
    jobs: int
    rows: int
    answer_s: Callable[[random.Random], float]
    refusal_s: float = 0.005
    chance: float = 0.0
    outage: tuple[float, float] = (math.inf, math.inf)
    is_reset: bool = True  # what an outage looks like: a failure, or a refusal
    after_s: float | None = None
    queue: int = 0  # behind the slots: taken, but waits
    per_s_most: float = math.inf
    is_free_tier: bool = False


@dataclass
class Outcome:
    """What came of it."""

    rows: int = 0
    seconds: float = 0.0
    sent: int = 0
    refused: int = 0
    refused_later: int = 0  # but for the first burst
    log: list[tuple[float, bool]] = field(default_factory=list)
    found: str | None = None

    @property
    def refused_share(self) -> float:
        return self.refused_later / max(1, self.rows + self.refused_later)


class Server:
    """Verdicts: 'answered', 'refused', 'failed'."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.gates = case.gates()
        self.rng = random.Random(7)
        self.lengths = random.Random(8)
        self.outcome = Outcome()
        self._workers = asyncio.Semaphore(10**9)
        if case.queue:
            self._workers = asyncio.Semaphore(self.gates[0].most(0) - case.queue)

    async def post(self) -> str:
        loop, case, out = asyncio.get_running_loop(), self.case, self.outcome
        await asyncio.sleep(ROUND_TRIP_S / 2)
        now = loop.time()
        out.sent += 1
        if case.outage[0] <= now < case.outage[1] and case.is_reset:
            return "failed"
        is_out = case.outage[0] <= now < case.outage[1]
        verdicts = [gate.admits(now) for gate in self.gates]
        if is_out or not all(verdicts) or self.rng.random() < case.chance:
            out.log.append((now, False))
            out.refused += 1
            out.refused_later += now > 2 * ROUND_TRIP_S
            await asyncio.sleep(case.refusal_s)
            return "refused"
        out.log.append((now, True))
        for gate in self.gates:
            gate.took(now)
        async with self._workers:
            await asyncio.sleep(case.answer_s(self.lengths))
        for gate in self.gates:
            gate.leaves()
        out.rows += 1
        out.seconds = loop.time()
        return "answered"


class Client(Protocol):
    """The part of a limit that `drive` uses."""

    async def turn(self, row: Any) -> Any: ...
    def answered(self, ticket: Any) -> None: ...
    def refused(self, ticket: Any, after_s: float | None) -> None: ...
    def failed(self, ticket: Any) -> None: ...


async def drive(case: Case, make: Callable[[Case], Client]) -> Outcome:
    """Send a job's rows as the program does: a row that was refused gives back its slot, and comes again."""
    server, limit, rng = Server(case), make(case), random.Random(9)
    ready, left, done, over = deque(range(case.rows)), case.rows, asyncio.Event(), asyncio.Event()
    slots, refusals = asyncio.Semaphore(case.jobs), dict.fromkeys(range(case.rows), 0)
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    def again(row: int) -> None:
        ready.appendleft(row)
        done.set()

    async def send(row: int) -> None:
        nonlocal left
        ticket = await limit.turn(row)
        verdict = await server.post()
        slots.release()
        if verdict == "answered":
            limit.answered(ticket)
            left -= 1
            if not left:
                over.set()
                done.set()
            return
        refusals[row] += 1
        wait_s = min(60.0, 0.5 * 2.0 ** min(refusals[row] - 1, 16)) * (0.5 + rng.random() / 2)
        if verdict == "refused":
            limit.refused(ticket, case.after_s)
            wait_s = case.after_s * (1 + rng.random() / 4) if case.after_s is not None else wait_s
        else:
            limit.failed(ticket)
        if getattr(limit, "paces_rows", True):
            wait_s = min(wait_s, 2.0) if case.after_s is None else wait_s
        loop.call_later(wait_s, again, row)

    def end(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            loop.call_exception_handler({"message": str(error), "exception": error})

    while not over.is_set():
        if loop.time() > DAY_S:
            break
        await slots.acquire()
        while not ready and left:
            done.clear()
            await done.wait()
        if not left:
            break
        task = loop.create_task(send(ready.popleft()))
        tasks.add(task)
        task.add_done_callback(end)
    server.outcome.found = getattr(limit, "found", None)
    return server.outcome


def oracle_s(case: Case) -> float:
    """The time of a client that knows the limit: each row starts as soon as there is room."""
    gates, lengths = case.gates(), random.Random(8)
    workers = gates[0].most(0) - case.queue if case.queue else 10**9
    running: list[float] = []
    now = 0.0
    for count in itertools.count():
        if count == case.rows:
            return max(running)
        if case.outage[0] <= now < case.outage[1]:
            now = case.outage[1]
        while True:
            while running and running[0] <= now:
                heapq.heappop(running)
            slots = min([case.jobs, workers, *(g.most(now) for g in gates if isinstance(g, Slots))])
            if len(running) >= max(1, slots):
                now = running[0]
                continue
            later = max([now, *(g.free_at(now, count) for g in gates)])
            if later <= now:
                break
            now = later
        for gate in gates:
            if not isinstance(gate, Slots):
                gate.admits(now)
                gate.took(now)
        heapq.heappush(running, now + case.answer_s(lengths) + ROUND_TRIP_S / 2)
    raise AssertionError
