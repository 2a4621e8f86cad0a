"""budget: on a virtual clock, what is under way is expected to cost what the mean has been."""

import asyncio
import math

from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated import run

from llmfilter.ending import Ending
from llmfilter.modes.budget import Budget
from llmfilter.stats import Stats, Usage
from llmfilter.worker import Change

sends = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 8), sends)
@example(100, 10, 8, [(1, True), (1, False)])
def test_at_equal_costs_it_is_just_used_up_beyond_a_first_burst(
    tokens: int, cost: int, jobs: int, sends: list[tuple[int, bool]]
) -> None:
    """What fails holds nothing back, and nobody waits for ever; sends: their seconds, and whether they fail."""

    async def main() -> None:
        stats, ending = Stats(), Ending()
        budget = Budget(tokens, stats, Change(), ending)
        numbers = iter(range(1000 * len(sends)))

        async def work() -> None:
            while True:
                await budget.take(0)
                seconds, fails = sends[next(numbers) % len(sends)]
                try:
                    if ending.has_begun:
                        return
                    await asyncio.sleep(seconds)
                    if not fails:
                        stats.billed = stats.billed.plus(Usage(cost))
                        budget.count(Usage(cost))
                finally:
                    budget.free()

        async with asyncio.timeout(1e6):  # of the virtual clock
            await asyncio.gather(*[work() for _ in range(jobs)])
        assert ending.stop and "--budget are used up" in (ending.stop.reason or "")
        assert tokens <= stats.billed.prompt <= cost * max(jobs, math.ceil(tokens / cost))

    if not all(fails for _, fails in sends):
        run(main())


def test_who_waits_for_room_goes_on_once_the_run_is_over() -> None:
    async def main() -> None:
        stats, changed, ending = Stats(), Change(), Ending()
        budget = Budget(10, stats, changed, ending)
        await budget.take(8)
        stats.billed = Usage(0, 6)
        budget.count(stats.billed)
        waiting = asyncio.create_task(budget.take(8))  # 6 and twice 6 would be too many
        await asyncio.sleep(1)
        assert not waiting.done()
        ending.begin(3, None)
        changed.notify()
        await asyncio.sleep(0)
        assert waiting.done()

    run(main())


def test_before_the_first_completion_a_request_is_expected_to_cost_what_its_bytes_do() -> None:
    async def main() -> None:
        budget = Budget(100, Stats(), Change(), Ending())
        waiting = [asyncio.create_task(budget.take(160)) for _ in range(8)]
        await asyncio.sleep(1)
        assert sum(task.done() for task in waiting) == 3  # 40 tokens each: with two there is still room for one

        for task in waiting:
            task.cancel()

    run(main())
