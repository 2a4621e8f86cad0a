"""A server's limit, found from its refusals alone, on a virtual clock."""

import asyncio
import itertools

import pytest
from simulated import Bucket, Case, Outcome, Slots, drive, log_normal, run

from llmfilter.errors import Abandoned
from llmfilter.server.limit.turns import Limit

SHORT = log_normal(0.3)


def outcome_of(case: Case) -> Outcome:
    found = run(drive(case, lambda case: Limit(case.jobs, case.per_s_most)))
    assert isinstance(found, Outcome)
    assert found.rows == case.rows  # none lost
    return found


@pytest.mark.parametrize("refusal_s", [0.005, 0.5])
@pytest.mark.parametrize(("most", "jobs"), [(1, 32), (8, 64), (100, 400)])
def test_slots_are_all_used_and_hardly_ever_overrun(most: int, jobs: int, refusal_s: float) -> None:
    case = Case("", lambda: [Slots(most)], jobs, max(300, 60 * most), SHORT, refusal_s)
    found = outcome_of(case)
    assert found.found == f"{most} at a time"
    assert found.refused_share <= 0.05
    assert found.seconds <= case.rows * 0.34 / most / 0.93  # 0.34 s: the mean answer


@pytest.mark.parametrize("rate", [50, 200])
def test_a_rate_is_found(rate: int) -> None:
    found = outcome_of(Case("", lambda: [Bucket(rate, rate / 5)], 2 * rate, 20 * rate, SHORT))
    assert found.seconds <= 20 / 0.85
    assert found.refused_share <= 0.08


def test_a_limit_halved_and_doubled_is_followed() -> None:
    case = Case("", lambda: [Slots(lambda now: 8 if 15 < now < 45 else 16)], 128, 2400, SHORT)
    assert outcome_of(case).seconds <= 66.5 / 0.9


def test_without_a_refusal_nothing_waits() -> None:
    async def main() -> None:
        limit = Limit(32)
        for _ in range(1000):
            limit.answered(await limit.turn())
        assert asyncio.get_running_loop().time() == 0
        assert limit.found is None

    run(main())


@pytest.mark.parametrize(("chance", "times"), [(0.05, 2), (0.2, 3)])
def test_refusals_by_chance_do_not_slow_a_run_to_a_crawl(chance: float, times: int) -> None:
    found = outcome_of(Case("", list, 64, 6000, SHORT, chance=chance))
    assert found.seconds <= times * 6000 * 0.34 / 64


@pytest.mark.parametrize("gate", [Slots(8), Slots(1), Bucket(3, 3), Bucket(4, 1)], ids=["8", "1", "3/s", "4/s"])
@pytest.mark.parametrize("chance", [0.0, 0.2])
def test_the_most_a_second_is_never_exceeded(gate: Slots | Bucket, chance: float) -> None:
    found = outcome_of(Case("", lambda: [gate], 64, 300, SHORT, per_s_most=5.0, chance=chance))
    sent = [at for at, _ in found.log]
    assert all(later - at >= 1 / 5 - 0.021 for at, later in itertools.pairwise(sent))
    assert all(later - at >= 10 - 0.021 for at, later in zip(sent, sent[50:], strict=False))


def test_an_outage_is_waited_out_with_single_probes() -> None:
    case = Case("", lambda: [Slots(8)], 64, 1500, SHORT, outage=(10.0, 30.0))
    found = outcome_of(case)
    assert found.seconds <= 84.1 / 0.93
    assert found.sent - found.rows - found.refused <= 8 + 20 / 0.5  # in flight when it began, then probes


def test_what_was_measured_before_an_idle_time_is_void() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        limit = Limit(64)
        tickets = [await limit.turn() for _ in range(64)]
        for ticket in tickets[8:]:
            limit.refused(ticket)
        for ticket in tickets[:8]:
            limit.answered(ticket)
        assert limit.found == "8 at a time"
        await asyncio.sleep(3600)
        idle_until = loop.time()
        await asyncio.gather(*[limit.turn() for _ in range(64)])
        assert loop.time() == idle_until

    run(main())


def test_one_refusal_after_a_slow_hour_costs_about_a_second() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        limit = Limit(64)
        for _ in range(360):
            limit.answered(await limit.turn())
            await asyncio.sleep(10)
        limit.refused(await limit.turn())
        start = loop.time()
        await asyncio.gather(*[limit.turn() for _ in range(64)])
        assert loop.time() - start < 1.5

    run(main())


def test_everything_refused_and_nothing_under_way_is_being_stuck() -> None:
    async def main() -> None:
        limit = Limit(4)
        under_way = await limit.turn()
        for _ in range(20):
            limit.refused(await limit.turn())
        assert limit.stuck_s == 0  # a long request is no reason to end
        limit.failed(under_way)
        while limit.stuck_s < 600:
            limit.refused(await limit.turn())
            await asyncio.sleep(1)
        limit.answered(await limit.turn())
        assert limit.stuck_s == 0

    run(main())


def test_a_queue_that_is_too_long_for_a_time_limit_loses_nothing_that_is_tried_twice() -> None:
    """The server works 4 at a time at 2 s and queues without limit; who has waited 10 s has waited for nothing."""

    async def ask_all(rows: int) -> tuple[int, int, float]:
        limit, slots, todo = Limit(64), asyncio.Semaphore(4), iter(range(rows))
        sent = lost = 0

        async def ask() -> bool:
            nonlocal sent
            ticket = await limit.turn(object())
            sent += 1
            try:
                async with asyncio.timeout(10), slots:
                    await asyncio.sleep(2)
            except TimeoutError:
                limit.overdue(ticket)
                return False
            limit.answered(ticket)
            return True

        async def work() -> None:
            nonlocal lost
            for _ in todo:
                if not await ask():
                    await asyncio.sleep(0.25)
                    lost += not await ask()

        await asyncio.gather(*[work() for _ in range(64)])
        return sent, lost, asyncio.get_running_loop().time()

    sent, lost, seconds = run(ask_all(400))
    assert lost == 0
    assert sent <= 1.35 * 400
    assert seconds <= 1.35 * 400 * 2 / 4


def test_draining_wakes_all_who_wait() -> None:
    async def main() -> None:
        limit = Limit(4, per_s_most=0.001)
        await limit.turn()
        waiting = [asyncio.create_task(limit.turn()) for _ in range(3)]
        await asyncio.sleep(0)
        limit.drain()
        assert [type(each) for each in await asyncio.gather(*waiting, return_exceptions=True)] == [Abandoned] * 3
        with pytest.raises(Abandoned):
            await limit.turn()

    run(main())


def test_a_turn_that_is_cancelled_takes_no_room() -> None:
    async def main() -> None:
        limit = Limit(4, per_s_most=1.0)
        first = await limit.turn()
        waiting = asyncio.create_task(limit.turn())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        limit.release(first)
        assert limit.in_flight == 0

    run(main())
