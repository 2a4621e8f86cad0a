"""batches: a thread gets, all at once, what has piled up while it was busy."""

import asyncio
import queue
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from server import PATIENCE_S

from llmfilter.worker import Batcher


class Script:
    """A batcher whose thread ends a batch only when it is told to, and how.

    batches: what `done` got, in order; meanwhile: what was under way each time that `meanwhile` was called;
    bugs: what the loop was told of.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], Exception | None]] = []
        self.meanwhile: list[list[int]] = []
        self.bugs: list[object] = []
        self._outcomes: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._is_bug = False
        self._done = asyncio.Event()
        self.batcher = Batcher(self._work, self._finish, lambda: self.meanwhile.append(self.batcher.under_way))
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.bugs.append(context["exception"]))

    def _work(self, batch: list[int]) -> None:
        if error := self._outcomes.get():
            raise error

    def _finish(self, batch: list[int], error: Exception | None) -> None:
        self.batches.append((batch, error))
        self._done.set()
        if self._is_bug:
            raise LookupError

    async def end(self, error: Exception | None = None, is_bug: bool = False) -> None:
        """End the batch under way with an error or without; is_bug: `done` raises."""
        self._is_bug = is_bug
        self._done.clear()
        self._outcomes.put(error)
        async with asyncio.timeout(PATIENCE_S):
            await self._done.wait()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_what_arrives_in_one_turn_of_the_loop_goes_out_together_and_the_rest_when_the_thread_is_free() -> None:
    async def main() -> None:
        script = Script()
        for item in (1, 2, 3):
            asyncio.get_running_loop().call_soon(script.batcher.add, [item])
        await asyncio.sleep(0)
        script.batcher.add([4])
        await asyncio.sleep(0)
        script.batcher.add([5])
        assert (script.meanwhile, script.batcher.pending) == ([[1, 2, 3, 4]], [5])
        await script.end()
        assert script.meanwhile == [[1, 2, 3, 4], [5]]
        await script.end()
        assert script.batcher.idle

    run(main)


FAULT = ValueError()
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3)),
        st.tuples(st.just("turn"), st.just(0)),
        st.tuples(st.just("end"), st.sampled_from([None, FAULT])),
        st.tuples(st.just("bug"), st.sampled_from([None, FAULT])),
    ),
    min_size=8,
    max_size=30,
)


@settings(deadline=None)
@given(steps)
@example([("add", 1), ("turn", 0), ("add", 1), ("bug", None)])  # `done` raises while more is queued
def test_each_item_is_done_once_in_order_with_its_own_error_whatever_done_raises(
    steps: Sequence[tuple[str, Any]],
) -> None:
    async def main() -> None:
        script, added, errors = Script(), 0, []
        batcher = script.batcher
        for step, value in [*steps, *[("end", None)] * 2]:
            if step == "add":
                batcher.add(range(added, added + value))
                added += value
            elif step == "turn":
                await asyncio.sleep(0)
            elif not batcher.idle:
                errors.append(value)
                await script.end(value, is_bug=step == "bug")
            done = [item for batch, _ in script.batches for item in batch]
            assert [*done, *batcher.under_way, *batcher.pending] == list(range(added))
        assert batcher.idle
        assert [error for _, error in script.batches] == errors
        bugs = sum(step == "bug" for step, _ in steps)
        assert all(isinstance(bug, LookupError) for bug in script.bugs) and len(script.bugs) <= bugs

    run(main)
