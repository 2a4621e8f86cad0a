"""output: lines come out once, in order where that is asked for, and what is not written is counted."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server import PATIENCE_S

from llmfilter.errors import RowError
from llmfilter.output.lines import BUFFER_BYTES, Order, Output
from llmfilter.output.writer import Line, Writer, size_of, write_now
from llmfilter.worker import Change


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await main()

    asyncio.run(bounded())


class Stream:
    """Takes what is written, once it is open, but for the write number `fails_at`."""

    def __init__(self, fails_at: int | None = None, is_open: bool = True) -> None:
        self.data = b""
        self.writes = 0
        self._fails_at = fails_at
        self._open = threading.Event()
        if is_open:
            self.open()

    def open(self) -> None:
        self._open.set()

    def write(self, data: bytes) -> None:
        self._open.wait(PATIENCE_S)
        self.writes += 1
        if self.writes == self._fails_at:
            raise BrokenPipeError
        self.data += data

    @property
    def numbers(self) -> list[int]:
        return list(map(int, self.data.split()))

    def describe(self, number: int, error: RowError, attempts: int, raw: bytes, is_record: bool) -> bytes:
        assert (error, attempts, raw, is_record) == (FAULT, number + 1, b"raw %d" % number, number % 2 == 0)
        return line_of(number)

    def plain(self, message: str) -> bytes:
        raise AssertionError(message)


def line_of(number: int) -> bytes:
    return b"%d\n" % number


FAULT = RowError("invalid", "no label")


def no_failure(error: Exception) -> None:
    raise AssertionError(error)


def fail(output: Output, number: int) -> None:
    output.error(number, FAULT, number + 1, b"raw %d" % number, number % 2 == 0)


# Lines of any order by number; an empty one says nothing.
shuffled = st.integers(0, 12).flatmap(lambda count: st.permutations(range(1, count + 1)))
whats = st.lists(st.sampled_from(["answer", "error", "skip"]), min_size=12, max_size=12)


@given(shuffled, st.lists(st.integers(1, 4), min_size=12, max_size=12), st.sets(st.integers(1, 12)))
def test_order_lets_out_just_what_all_before_have_come(numbers: list[int], sizes: list[int], mute: set[int]) -> None:
    out: list[Line] = []
    order, come = Order(out.append), set[int]()
    for size in sizes:
        lines = {number: b"" if number in mute else line_of(number) for number in numbers[:size]}
        del numbers[:size]
        turn = order.next
        come |= lines.keys()
        assert order.put(lines) == (order.next > turn)
        assert order.next == min(set(range(1, 14)) - come)
        assert [number for number, _ in out] == list(range(1, order.next))
        kept = [(number, b"" if number in mute else line_of(number)) for number in come if number > order.next]
        assert sorted(order.held()) == [line for line in sorted(kept) if line[1]]
        assert order.size == size_of(kept)


@given(st.sets(st.integers(1, 12)))
def test_a_release_lets_all_out_in_order_across_the_gaps(numbers: set[int]) -> None:
    out: list[Line] = []
    order = Order(out.append)
    order.put({number: line_of(number) for number in numbers})
    order.release()
    assert [number for number, _ in out] == sorted(numbers)
    assert (order.size, order.held()) == (0, [])


@settings(deadline=None)
@given(shuffled, whats, st.booleans(), st.sets(st.integers(0, 11)))
def test_all_lines_come_out_and_nothing_is_left(
    numbers: list[int], whats: list[str], keep_order: bool, turns: set[int]
) -> None:
    async def main() -> None:
        stdout, stderr, failures = Stream(), Stream(), list[Exception]()
        output = Output(stdout.write, stderr, keep_order, failures.append)
        wanted: dict[str, list[int]] = {"answer": [], "error": [], "skip": []}
        for at, (number, what) in enumerate(zip(numbers, whats, strict=False)):
            wanted[what].append(number)
            if what == "answer":
                output.answers({number: line_of(number)})
            elif what == "error":
                fail(output, number)
            else:
                output.skip(number)
            if at in turns:
                await asyncio.sleep(0)
        await output.changed.until(lambda: output.idle)
        assert stdout.numbers == (sorted(wanted["answer"]) if keep_order else wanted["answer"])
        assert stderr.numbers == wanted["error"]
        assert (output.size, output.first_unwritten, output.failure, failures) == (0, None, None, [])

    run(main)


@settings(deadline=None)
@given(
    shuffled,
    st.booleans(),
    st.sets(st.integers(0, 11)),
    st.lists(st.one_of(st.none(), st.integers(0, 8)), max_size=12),
    st.booleans(),
)
def test_what_can_be_written_without_waiting_comes_out_in_the_same_order(
    numbers: list[int], keep_order: bool, turns: set[int], taken: list[int | None], is_patient: bool
) -> None:
    """taken: how many bytes each attempt takes; None: from then on nothing is tried."""

    async def main() -> None:
        stdout, failures, attempts = Stream(), list[Exception](), list[int | None]()

        def write_now(lines: list[bytes]) -> int | None:
            attempts.append(taken[len(attempts)] if len(attempts) < len(taken) else 100)
            stdout.data += b"".join(lines)[: attempts[-1] or 0]
            return attempts[-1] and min(attempts[-1], sum(map(len, lines)))

        output = Output(stdout.write, Stream(), keep_order, failures.append, write_now)
        for at, number in enumerate(numbers):
            output.answers({number: line_of(number)})
            if at in turns and is_patient:
                await output.changed.until(lambda: output.idle)
            elif at in turns:
                await asyncio.sleep(0)
        await output.changed.until(lambda: output.idle)
        assert stdout.numbers == (sorted(numbers) if keep_order else numbers)
        assert None not in attempts[:-1]
        assert (output.size, output.first_unwritten, output.failure, failures) == (0, None, None, [])

    run(main)


def test_a_full_pipe_takes_nothing_now_and_a_closed_one_is_left_to_the_thread() -> None:
    reader, writer = os.pipe()
    taken = write_now(writer, [b"x" * 1000] * 1000)
    if taken is None:
        pytest.skip("this system makes no promise for pipes")
    assert 0 < taken < 1_000_000
    assert write_now(writer, [b"x"]) == 0
    assert len(os.read(reader, 1 << 20)) == taken
    os.close(reader)
    assert write_now(writer, [b"x"]) == 0
    os.close(writer)


@settings(deadline=None)
@given(shuffled, whats, st.booleans(), st.sets(st.integers(0, 11)), st.integers(1, 4), st.integers(1, 4))
def test_after_a_failed_write_nothing_is_written_and_the_lowest_line_that_is_lost_is_known(
    numbers: list[int], whats: list[str], keep_order: bool, turns: set[int], stdout_fails: int, stderr_fails: int
) -> None:
    async def main() -> None:
        stdout, stderr, failures = Stream(stdout_fails), Stream(stderr_fails), list[Exception]()
        output = Output(stdout.write, stderr, keep_order, failures.append)
        said = [(number, what) for number, what in zip(numbers, whats, strict=False) if what != "skip"]
        for at, (number, what) in enumerate(said):
            if what == "answer":
                output.answers({number: line_of(number)})
            else:
                fail(output, number)
            if at in turns:
                await output.changed.until(lambda: output.idle)
        output.release()
        await output.changed.until(lambda: output.idle)
        lost = {number for number, _ in said} - {*stdout.numbers, *stderr.numbers}
        assert output.first_unwritten == min(lost, default=None)
        assert (output.size, output.failure is not None) == (0, bool(lost))
        assert set(map(type, failures)) == ({BrokenPipeError} if lost else set())
        assert stdout.writes <= stdout_fails and stderr.writes <= stderr_fails

    run(main)


@pytest.mark.parametrize("awaited", [1, 3])
def test_a_buffer_full_of_lines_that_wait_has_room_for_the_awaited_one_only(awaited: int) -> None:
    async def main() -> None:
        stdout = Stream()
        output = Output(stdout.write, Stream(), True, no_failure)
        output.answers(dict.fromkeys(range(1, awaited), b""))
        output.answers({awaited + 2: b"x" * BUFFER_BYTES})
        behind = asyncio.create_task(output.room_for(awaited + 1))
        await asyncio.sleep(0)
        await output.room_for(awaited)
        assert not behind.done()
        output.skip(awaited)  # now it is the turn of the one behind
        await behind
        output.skip(awaited + 1)
        await output.changed.until(lambda: output.idle)
        assert (len(stdout.data), output.size) == (BUFFER_BYTES, 0)

    run(main)


@pytest.mark.parametrize("keep_order", [False, True])
def test_while_nobody_reads_there_is_room_for_no_line_not_even_the_awaited_one(keep_order: bool) -> None:
    async def main() -> None:
        stdout = Stream(is_open=False)
        output = Output(stdout.write, Stream(), keep_order, no_failure)
        output.answers({1: b"x" * BUFFER_BYTES})
        waiting = asyncio.create_task(output.room_for(2))
        await asyncio.sleep(0)
        output.changed.notify()  # as others do who have made room elsewhere
        await asyncio.sleep(0)
        assert not waiting.done() and output.first_unwritten == 1
        stdout.open()
        await waiting
        assert output.size == 0

    run(main)


@given(st.lists(st.integers(0, 5), max_size=8), st.permutations(range(6)))
def test_who_waits_for_a_change_goes_on_at_the_first_notice_at_which_it_holds(
    goals: list[int], values: list[int]
) -> None:
    async def main() -> None:
        change, seen = Change(), list[int]()

        async def wait(goal: int) -> None:
            await change.until(lambda: seen[-1:] == [goal])

        waiting = [asyncio.create_task(wait(goal)) for goal in goals]
        for value in values:
            seen.append(value)
            change.notify()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert [task.done() for task in waiting] == [goal in seen for goal in goals]

    run(main)


def test_large_lines_are_not_copied_to_be_written_together() -> None:
    lines = [(1, b"a\n"), (2, b"x" * (1 << 20) + b"\n"), (3, b"b\n")]
    taken: list[bytes] = []

    async def write() -> None:
        changed = Change()
        writer = Writer(taken.append, lambda size: changed.notify())
        for line in lines:
            writer.put(line)
        await changed.until(lambda: len(taken) == len(lines))

    run(write)
    assert all(piece is line for piece, (_, line) in zip(taken, lines, strict=True))
