"""deadlines: one timer, and still each task is cancelled at its own time."""

import asyncio
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import run

from llmfilter.server.exchange import Deadlines

TIMEOUT_S = 10


class Exchange(NamedTuple):
    """What a task does: pause, then something that takes so long; never just the timeout."""

    pause_s: int
    seconds: int


exchanges = st.builds(Exchange, st.integers(0, 30), st.sampled_from([0, 1, 9, 11, 30]))


async def hold(deadlines: Deadlines, seconds: float) -> str:
    """Do something with a deadline; say how it ended."""
    task = asyncio.current_task()
    assert task
    deadlines.start(task)
    try:
        await asyncio.sleep(seconds)
        assert not deadlines.is_over(task)
        return "in time"
    except asyncio.CancelledError:
        task.uncancel()
        return "over" if deadlines.is_over(task) else "cancelled"
    finally:
        deadlines.end(task)
        assert not deadlines.is_over(task)


@settings(deadline=None)
@given(st.lists(st.lists(exchanges, max_size=4), max_size=6))
def test_each_is_cancelled_at_its_own_deadline_and_only_if_it_takes_longer(tasks: list[list[Exchange]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(TIMEOUT_S)

        async def work(exchanges: list[Exchange]) -> None:
            for pause_s, seconds in exchanges:
                await asyncio.sleep(pause_s)
                start = loop.time()
                ended = await hold(deadlines, seconds)
                assert (ended, loop.time() - start) == (
                    ("in time", seconds) if seconds < TIMEOUT_S else ("over", TIMEOUT_S)
                )

        await asyncio.gather(*map(work, tasks))

    run(main())


def test_who_was_in_time_may_go_on_for_ever() -> None:
    async def main() -> None:
        deadlines = Deadlines(TIMEOUT_S)

        async def go_on() -> None:
            assert await hold(deadlines, 1) == "in time"
            await asyncio.sleep(1000)

        await asyncio.gather(go_on(), hold(deadlines, 50))

    run(main())


def test_a_task_that_others_cancel_is_not_over() -> None:
    async def main() -> None:
        task = asyncio.create_task(hold(Deadlines(TIMEOUT_S), 5))
        await asyncio.sleep(1)
        task.cancel()
        assert await task == "cancelled"

    run(main())


def test_once_closed_it_cancels_nobody() -> None:
    async def main() -> None:
        deadlines = Deadlines(TIMEOUT_S)
        task = asyncio.create_task(hold(deadlines, 50))
        await asyncio.sleep(1)
        deadlines.close()
        assert await task == "in time"

    run(main())
