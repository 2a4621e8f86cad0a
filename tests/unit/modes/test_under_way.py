"""under_way: whatever happens in whatever order, slots and memory add up, and the first unfinished line is known."""

import asyncio
from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmfilter.jsontext import Row
from llmfilter.modes.under_way import QUEUED_MOST, Request, Requests

JOBS = 2
KEYS = 4


class Model:
    """Does to Requests what a run does, and checks it after each step.

    Each request goes from `queued` to `slotted` (perhaps to `lent`, `asking`, and back) to `printing`. While the
    output is full, only the lowest line has room.
    """

    def __init__(self) -> None:
        self.requests = Requests(JOBS, self.start, self.has_room_for, self.make_room)
        self.lines = 0
        self.is_full = False
        self.unprinted: dict[int, bytes] = {}  # line → key
        self.queued: list[bytes] = []  # by their keys: it starts them when they have a slot
        self.slotted: list[Request] = []
        self.lent: list[Request] = []
        self.asking: list[tuple[Request, asyncio.Task[None]]] = []
        self.printing: list[Request] = []
        self.idle = 0  # slots that look for a request

    def start(self) -> None:
        self.idle += 1

    def work(self) -> None:
        """What the slots do that have no request."""
        while self.idle:
            if not self.requests.waiting:
                self.idle -= 1
                self.requests.free_slot()
                continue
            request = self.requests.take()
            if not request:
                return
            self.idle -= 1
            assert self.has_room_for(request.line)
            if request.slot:
                request.slot.set_result(None)
            else:
                assert request.key == self.queued.pop(0)
                self.slotted.append(request)

    def has_room_for(self, line: int) -> bool:
        return not self.is_full or line == min(self.unprinted)

    def make_room(self) -> None:
        assert self.requests.queued < QUEUED_MOST

    def come(self, at: int) -> None:
        """A row comes, and joins an equal one, or is started or queued."""
        self.lines += 1
        key = b"%d" % (at % KEYS)
        row: Row = (self.lines, b"x" * at, {})
        is_joined = self.requests.join(row, key)
        assert is_joined == (key in self.unprinted.values())
        self.unprinted[self.lines] = key
        if not is_joined:
            self.queued.append(key)
            self.requests.add(row, key, b"body" * at, None)

    def stall(self, at: int) -> None:
        """The output is full, or has room again."""
        self.is_full = at % 2 > 0

    def lend(self, at: int) -> None:
        """A request backs off, and lets others have its slot."""
        if self.slotted:
            request = self.slotted.pop(at % len(self.slotted))
            self.lent.append(request)
            self.requests.lend_slot(request)

    def ask(self, at: int) -> None:
        """It wants its slot back."""
        if self.lent:
            request = self.lent.pop(at % len(self.lent))
            self.asking.append((request, asyncio.create_task(self.requests.return_slot(request))))

    def answer(self, at: int) -> None:
        """A request has its outcome, and its slot takes the next one."""
        if self.slotted:
            self.printing.append(self.slotted.pop(at % len(self.slotted)))
            self.idle += 1

    def print(self, at: int) -> None:
        """There is room for a line; behind its last one a request is forgotten."""
        if self.printing:
            request = self.printing[at % len(self.printing)]
            first = min(line for line, key in self.unprinted.items() if key == request.key)
            assert request.line == first
            self.requests.drop_row(request)
            del self.unprinted[first]
            if not request.rows:
                self.printing.remove(request)
                self.requests.remove(request)

    async def step(self, what: str, at: int) -> None:
        getattr(self, what)(at)
        for _ in range(3):
            self.work()
            await asyncio.sleep(0)  # who asks for a slot, or gets one back, notices
        self.slotted += [request for request, task in self.asking if task.done()]
        self.asking = [(request, task) for request, task in self.asking if not task.done()]
        self.check()

    def check(self) -> None:
        assert len(self.slotted) + self.idle <= JOBS
        waiting = [request.line for request, _ in self.asking]
        waiting += [line for line, key in self.unprinted.items() if key in self.queued]
        assert not any(map(self.has_room_for, waiting)) or len(self.slotted) == JOBS
        assert self.requests.queued == len(self.queued)
        keys = set(self.unprinted.values())
        assert self.requests.count == len(keys)
        assert self.requests.first_unfinished == min(self.unprinted, default=None)
        printed = [request for request in self.printing if request.is_shared]
        is_row_waiting = len(self.unprinted) > len(keys) or bool(printed)
        assert (self.requests.waiting_bytes > 0) == bool(self.queued or self.lent or self.asking or is_row_waiting)

    async def finish(self) -> None:
        self.stall(0)
        while self.unprinted:
            for what in ("ask", "answer", "print"):
                await self.step(what, 0)

    def stop(self) -> None:
        """All that is under way gets no outcome."""
        self.requests.abandon_queue()
        for request in [*self.slotted, *self.lent, *self.printing, *[request for request, _ in self.asking]]:
            self.requests.abandon(request)
        for _, task in self.asking:
            task.cancel()


steps = st.lists(
    st.tuples(st.sampled_from(["come", "come", "lend", "ask", "answer", "print", "stall"]), st.integers(0, 9)),
    min_size=30,  # fewer hardly ever leave a request without its slot
    max_size=60,
)


TWO_ASK_FOR_THEIR_SLOTS = [
    *[("come", 0), ("come", 1), ("lend", 0), ("lend", 0)],
    *[("come", 2), ("come", 3), ("ask", 0), ("ask", 0), ("answer", 0), ("answer", 0)],
]


@settings(deadline=None)
@given(steps)
@example(TWO_ASK_FOR_THEIR_SLOTS)
def test_in_whatever_order_all_get_slots_and_nothing_is_left(steps: Sequence[tuple[str, int]]) -> None:
    async def main() -> None:
        model = Model()
        for what, at in steps:
            await model.step(what, at)
        await model.finish()
        assert (model.requests.waiting_bytes, model.requests.count) == (0, 0)
        for at in range(JOBS + 1):  # no slot was lost or won
            await model.step("come", at)
        assert (len(model.slotted), len(model.queued)) == (JOBS, 1)

    asyncio.run(main())


@settings(deadline=None)
@given(steps, st.none() | st.integers(1, 60))
def test_whenever_it_stops_the_first_line_without_an_outcome_is_known(
    steps: Sequence[tuple[str, int]], not_taken: int | None
) -> None:
    async def main() -> None:
        model = Model()
        for what, at in steps:
            await model.step(what, at)
        without = [*model.unprinted]
        if not_taken is not None:
            model.requests.abandon_line(not_taken)
            without.append(not_taken)
        model.stop()
        assert model.requests.first_unfinished == min(without, default=None)
        assert (model.requests.count, model.requests.queued) == (0, 0)

    asyncio.run(main())


def test_a_request_that_was_lower_in_line_gets_its_slot_back_first() -> None:
    async def main() -> None:
        model = Model()
        for at in range(JOBS):
            await model.step("come", at)
        first, second = model.slotted
        await model.step("lend", 0)
        await model.step("lend", 0)
        model.is_full = True
        await model.step("ask", 1)  # the second wants its slot before the first does
        await model.step("ask", 0)
        assert model.slotted == [first]
        await model.step("answer", 0)
        await model.step("print", 0)
        assert model.slotted == [second]

    asyncio.run(main())


def test_of_a_full_queue_the_first_starts_and_room_is_told_of_once_there_is_some() -> None:
    started, queued_at_notice = list[bytes](), list[int]()
    requests = Requests(
        JOBS,
        lambda: started.append(taken().key),
        lambda line: True,
        lambda: queued_at_notice.append(requests.queued),
    )

    def taken() -> Request:
        request = requests.take()
        assert request is not None
        return request

    keys = [b"%d" % number for number in range(JOBS + QUEUED_MOST + 2)]
    for number, key in enumerate(keys, start=1):
        requests.add((number, b"{}", {}), key, b"{}", None)
    assert (started, requests.queued) == (keys[:JOBS], QUEUED_MOST + 2)
    queued_at_notice.clear()
    while requests.waiting:
        started.append(taken().key)
    assert started == keys
    assert queued_at_notice == [*range(QUEUED_MOST - 1, -1, -1)]
