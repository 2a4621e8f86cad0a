"""How fast requests are sent, against servers with a limit, on a clock that only moves when all wait."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llmfilter.faults import wait_s
from llmfilter.pace import Pace

BURST_S = 0.2  # how deep the server's bucket is
ROUND_TRIP_S = 0.002


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        really_select = self._selector.select  # type: ignore[attr-defined]

        def select(timeout: float | None) -> Any:
            self._now += timeout or 0.0
            return really_select(0)

        self._selector.select = select  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


class Server:
    """A token bucket; `log` holds the time and verdict of each request."""

    def __init__(self, rate: Callable[[float], float]) -> None:
        self._rate = rate
        self._tokens = rate(0) * BURST_S
        self._at = 0.0
        self.log: list[tuple[float, bool]] = []

    def admits(self) -> bool:
        now = asyncio.get_running_loop().time()
        rate = self._rate(now)
        self._tokens = min(rate * BURST_S, self._tokens + (now - self._at) * rate)
        self._at = now
        is_admitted = self._tokens >= 1
        self._tokens -= is_admitted
        self.log.append((now, is_admitted))
        return is_admitted


async def drive(server: Server, jobs: int, rows: int, latency_s: float, retry_after_s: float | None) -> None:
    """Sends rows as chat.py does: a rejected one waits what it was told, or backs off."""
    pace, rng, left = Pace(), random.Random(7), iter(range(rows))

    async def worker() -> None:
        for _ in left:
            rejections = 0
            while True:
                sent_at = await pace.turn()
                await asyncio.sleep(ROUND_TRIP_S)
                if server.admits():
                    break
                rejections += 1
                pace.reject(sent_at)
                await asyncio.sleep(wait_s(retry_after_s, rejections, rng.random()))
            await asyncio.sleep(latency_s)
            pace.accept(sent_at)

    await asyncio.gather(*[worker() for _ in range(jobs)])


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)


@pytest.mark.parametrize("retry_after_s", [None, 1.0], ids=["backoff", "retry-after"])
@pytest.mark.parametrize(("jobs", "latency_s"), [(128, 0.0), (800, 2.0)], ids=["at once", "after 2 s"])
def test_a_limit_is_used_up_to_95_percent_with_5_percent_rejected(
    jobs: int, latency_s: float, retry_after_s: float | None
) -> None:
    server = Server(lambda now: 200.0)
    run(drive(server, jobs, 6000, latency_s, retry_after_s))
    accepted = [now for now, is_admitted in server.log if is_admitted]
    later = [is_admitted for _, is_admitted in server.log[jobs:]]  # after the first burst
    assert len(accepted) == 6000
    assert 6000 / (accepted[-1] - accepted[0]) >= 0.95 * 200
    assert later.count(False) <= 0.05 * len(later)


@pytest.mark.parametrize("retry_after_s", [None, 1.0], ids=["backoff", "retry-after"])
@pytest.mark.parametrize("changed_at", [9.0, 10.5])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_limit_that_changes_is_found_again_within_5_s(
    factor: float, changed_at: float, retry_after_s: float | None
) -> None:
    server = Server(lambda now: 200.0 if now < changed_at else 200.0 * factor)
    run(drive(server, 128, 8000, 0.0, retry_after_s))
    end = server.log[-1][0] - 3  # the last rows may all be waiting
    since = [(now, is_admitted) for now, is_admitted in server.log if changed_at + 5 <= now <= end]
    verdicts = [is_admitted for _, is_admitted in since]
    assert verdicts.count(True) >= 0.95 * 200 * factor * (since[-1][0] - since[0][0])
    assert verdicts.count(False) <= 0.05 * len(verdicts)


def test_a_known_limit_is_kept_from_the_start() -> None:
    server = Server(lambda now: 60.0)

    async def main() -> None:
        pace = Pace(most=50.0)
        for _ in range(500):
            await pace.turn()
            assert server.admits()

    run(main())
    assert 500 / server.log[-1][0] == pytest.approx(50, rel=0.02)


def test_without_a_rejection_nothing_is_paced() -> None:
    async def main() -> None:
        pace = Pace()
        for _ in range(1000):
            pace.accept(await pace.turn())
        assert asyncio.get_running_loop().time() == 0
        assert not pace.is_limited

    run(main())


def test_many_rejections_of_one_round_trip_cut_once() -> None:
    async def main() -> None:
        pace = Pace(most=1000.0)
        sent_at = [await pace.turn() for _ in range(100)]
        for at in sent_at:
            pace.reject(at)
        now = asyncio.get_running_loop().time()
        assert pace.rate(now) == pytest.approx(500)

    run(main())
