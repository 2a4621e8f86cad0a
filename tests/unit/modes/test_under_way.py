"""inflight: whatever happens in whatever order, slots and memory add up, and the first unfinished line is known."""

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

    Each request goes from `queued` to `slotted` (perhaps to `lent`, `asking`, and back) to `printing`.
    """

    def __init__(self) -> None:
        self.requests = Requests(JOBS, self.start, self.make_room)
        self.lines = 0
        self.unprinted: dict[int, bytes] = {}  # line → key
        self.queued: list[bytes] = []  # by their keys: it starts them when they have a slot
        self.slotted: list[Request] = []
        self.lent: list[Request] = []
        self.asking: list[tuple[Request, asyncio.Task[None]]] = []
        self.printing: list[Request] = []
        self.is_told_of_room = False

    def start(self, request: Request) -> None:
        assert request.key == self.queued.pop(0)
        self.slotted.append(request)

    def make_room(self) -> None:
        assert self.requests.queued == len(self.queued) < QUEUED_MOST
        self.is_told_of_room = True

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

    def free_slot(self) -> None:
        """It goes to who has lent one, else to the first in the queue, which then has room."""
        self.is_told_of_room = False
        self.requests.free_slot()
        assert self.is_told_of_room == (not self.asking)

    def lend(self, at: int) -> None:
        """A request backs off, and lets others have its slot."""
        if self.slotted:
            self.lent.append(self.slotted.pop(at % len(self.slotted)))
            self.free_slot()

    def ask(self, at: int) -> None:
        """It wants its slot back."""
        if self.lent:
            request = self.lent.pop(at % len(self.lent))
            self.asking.append((request, asyncio.create_task(self.requests.return_slot(request))))

    def answer(self, at: int) -> None:
        """A request has its outcome, and frees its slot."""
        if self.slotted:
            self.printing.append(self.slotted.pop(at % len(self.slotted)))
            self.free_slot()

    def print(self, at: int) -> None:
        """There is room for a line; behind its last one a request is forgotten."""
        if self.printing:
            request = self.printing[at % len(self.printing)]
            first = min(line for line, key in self.unprinted.items() if key == request.key)
            assert self.requests.take_row(request)[0] == first
            del self.unprinted[first]
            if not request.rows:
                self.printing.remove(request)
                self.requests.remove(request)

    async def step(self, what: str, at: int) -> None:
        getattr(self, what)(at)
        await asyncio.sleep(0)  # who gets a slot back …
        await asyncio.sleep(0)  # … notices
        while self.asking and self.asking[0][1].done():
            self.slotted.append(self.asking.pop(0)[0])
        self.check()

    def check(self) -> None:
        assert len(self.slotted) <= JOBS
        assert not self.queued or len(self.slotted) == JOBS
        assert not self.asking or (len(self.slotted) == JOBS and not any(task.done() for _, task in self.asking))
        assert self.requests.queued == len(self.queued)
        keys = set(self.unprinted.values())
        assert self.requests.count == len(keys)
        assert self.requests.first_unfinished == min(self.unprinted, default=None)
        printed = [request for request in self.printing if request.is_shared]
        is_row_waiting = len(self.unprinted) > len(keys) or bool(printed)
        assert (self.requests.waiting_bytes > 0) == bool(self.queued or self.asking or is_row_waiting)

    async def finish(self) -> None:
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
    st.tuples(st.sampled_from(["come", "come", "lend", "ask", "answer", "print"]), st.integers(0, 9)),
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


def test_of_a_full_queue_the_first_starts_and_room_is_told_of_once_there_is_some() -> None:
    started, queued_at_notice = list[bytes](), list[int]()
    requests = Requests(
        JOBS, lambda request: started.append(request.key), lambda: queued_at_notice.append(requests.queued)
    )
    keys = [b"%d" % number for number in range(JOBS + QUEUED_MOST + 2)]
    for number, key in enumerate(keys, start=1):
        requests.add((number, b"{}", {}), key, b"{}", None)
    assert (started, requests.queued) == (keys[:JOBS], QUEUED_MOST + 2)
    for count in range(1, len(keys) + 1):
        requests.free_slot()
        assert started == keys[: JOBS + count]
    assert queued_at_notice == [*range(QUEUED_MOST - 1, -1, -1), *[0] * JOBS]
