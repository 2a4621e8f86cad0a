"""The frame of every run: blocks of lines in, as long as there is room; the end, early or not; how far it is.

Theory of operation
- Lines are taken in blocks, in their order. What is done with them is a *mode* (modes/): its `take`
  hands out a line number whenever it wants room for that line and those behind it.
- Memory is bounded: a block is taken only when the mode has room for more rows, and the output for more
  lines. Whatever makes room says so to `output.changed`; it alone wakes who waits for room, and they look
  for themselves whether there is any.
- An early end is one event, `Ending`: nothing more is taken or sent, what is at the server is finished.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from llmfilter import ending
from llmfilter.ending import Ending
from llmfilter.errors import OUT_OF_MEMORY, RowError, RunError, UsageError
from llmfilter.input.reader import Reader
from llmfilter.output.lines import BUFFER_BYTES, Output
from llmfilter.stats import Snapshot, Stats, UnderWay
from llmfilter.words import describe_bug

_BUG_S = 10.0  # what is in flight gets so long after a bug outside of its own path


class Run(NamedTuple):
    """What a mode shares with the frame that runs it: where lines go, what is counted, what ends it, its tasks."""

    output: Output
    stats: Stats
    ending: Ending
    tasks: asyncio.TaskGroup

    def fail(self, number: int, raw: bytes, error: RowError, is_record: bool) -> None:
        """Print the error line of a row for which nothing was sent; raw: its own bytes."""
        self.stats.by_kind[error.kind] += 1
        self.output.error(number, error, 0, raw, is_record)

    def stop_early(self, reason: str) -> None:
        """End the run, with what is to be said about it."""
        self.ending.begin(ending.STOPPED_EARLY, reason)

    def stop_for(self, bug: Exception) -> None:
        """End the run for a bug, or for want of memory."""
        if isinstance(bug, MemoryError):
            self.ending.begin(ending.STOPPED_EARLY, OUT_OF_MEMORY)
        else:
            self.ending.begin(ending.BUG, describe_bug(bug))


class Mode(Protocol):
    """What is done with lines: asked, printed, stored.

    lines_most: how many are taken together.
    resumes: whether the same command goes on where a run has ended early.
    """

    lines_most: int
    resumes: bool

    @property
    def taken(self) -> int:
        """Return the number of the line that was taken last."""

    def take(self, lines: list[bytes]) -> Iterator[int]:
        """Take lines; yield the first line that is not done with wherever there has to be room for it."""

    @property
    def has_room(self) -> bool:
        """Return whether there is room for more rows."""

    async def close(self) -> None:
        """Give back what it holds."""

    def under_way(self) -> UnderWay:
        """Return what was taken and has no line yet."""

    def report(self) -> list[str]:
        """Return what there is to say at the end, beside the summary."""


class Pipeline:
    """Runs a mode from a descriptor to two outputs."""

    def __init__(self, mode: Mode, stdin: int, run: Run) -> None:
        self._mode = mode
        self._run = run
        self._reader = Reader(stdin)
        self._first_left: int | None = None  # where taking has ended early
        self._patience: asyncio.Timeout = asyncio.timeout(None)
        run.ending.tell(self._reader.stop)
        run.ending.tell(run.output.finish)

    async def run(self) -> None:
        """Return when every row has its line; after an early end, when all that was sent has."""
        output = self._run.output
        with suppress(TimeoutError):  # of patience, after a bug
            async with self._patience:
                async with self._run.tasks:
                    await self._take_all()
                output.release()
                await output.changed.until(lambda: output.idle)
        await self._mode.close()

    async def _take_all(self) -> None:
        mode = self._mode
        try:
            async for lines in self._reader:
                for at in range(0, len(lines), mode.lines_most):
                    self._first_left = mode.taken + 1
                    if not await self._has_room():
                        return
                    for line in mode.take(lines[at : at + mode.lines_most]):
                        self._first_left = line
                        if not await self._has_room():
                            return
                    self._first_left = None
        except OSError as error:
            self._run.stop_early(f"stdin can't be read: {error.strerror}")
        except RunError as end:
            self._first_left = None
            self._run.stop_early(end.message)
        except UsageError as error:  # what only the first record can tell
            self._run.ending.begin(ending.WRONG_USAGE, str(error))
        except Exception as bug:
            self._run.stop_for(bug)

    async def _has_room(self) -> bool:
        """Return as soon as there is room for more rows; False once the run ends early."""
        await self._run.output.changed.until(self._may_go_on)
        return not self._run.ending.has_begun

    def _may_go_on(self) -> bool:
        return self._run.ending.has_begun or (self._mode.has_room and self._run.output.size < BUFFER_BYTES)

    def crash(self, context: Mapping[str, Any]) -> None:
        """Stop for a bug in a callback, as the event loop tells it; wait a little for what is in flight."""
        bug = context.get("exception")
        self._run.stop_for(bug if isinstance(bug, Exception) else RuntimeError(context["message"]))
        with suppress(RuntimeError):  # it has ended already
            self._patience.reschedule(asyncio.get_running_loop().time() + _BUG_S)

    def snapshot(self) -> Snapshot:
        """Return how far the run is."""
        mode, output, reader = self._mode, self._run.output, self._reader
        now = mode.under_way()
        lines = [now.first_unfinished, output.first_unwritten, self._first_left]
        if not reader.ended or mode.taken < reader.lines_read:
            lines.append(mode.taken + 1)
        return Snapshot(
            reader.bytes_until(mode.taken - now.requests),
            output.size > 0,
            self._run.ending.has_begun,
            min([line for line in lines if line is not None], default=None),
            now,
        )
