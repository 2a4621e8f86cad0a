"""One run, every stage in order: rows → prompt → cache → (flights: chat → answer → cache) → output.

Up to the cache a few dozen rows take each stage together: a call for each row and stage would cost
more than the stages do.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmfilter.errors import RowError, RunError
from llmfilter.flights import Flights
from llmfilter.output import BUFFER_BYTES, Output, Write, error_line
from llmfilter.replay import Replay
from llmfilter.rows import Overlong, Row, Rows, parse_records
from llmfilter.stats import Stats

if TYPE_CHECKING:
    from llmfilter.job import Job

_ROWS_MOST = 64  # taken together: more is no faster, and falls out of the processor's caches


class Stop(NamedTuple):
    """Why a run ends early: the exit status, and what to say (None where nobody would listen)."""

    status: int
    reason: str | None


class Pipeline:
    """Runs a job from a descriptor to two outputs.

    stopped: why it ended early, or None; asked_bytes: what a dry run would send.
    """

    def __init__(self, job: "Job", stdin: int, stdout: Write, stderr: Write, keep_order: bool, stats: Stats) -> None:
        self._job = job
        self.stats = stats
        self._changed = asyncio.Event()
        self.rows = Rows(stdin)
        self.output = Output(stdout, stderr, keep_order, self._wake)
        self.flights = Flights(
            job.connect,
            job.prompt,
            job.checks,
            job.reasks,
            job.cache,
            self.output,
            stats,
            self._changed.set,
            self._refuse,
        )
        job.cache.on_failure = self.output.say
        self._replay = Replay(job.checks, stats)
        self._number = 0  # of the line taken last
        self._singly_until = 0  # up to this line they are taken one by one: one of them is at fault
        self._rows_most = max(1, min(_ROWS_MOST, BUFFER_BYTES // job.prompt.fixed_bytes))
        self._spare = 0  # how many rows may be taken beyond the free slots, since they are probably in the cache
        self._bug: BaseException | None = None
        self.asked_bytes = 0
        self.stopped: Stop | None = None

    async def run(self) -> None:
        """Until every row has its line; after `stop()`, until all that was sent has."""
        try:
            async for lines in self.rows:
                before = self._number
                while (at := self._number - before) < len(lines) and (room := await self._room()):
                    self._take(lines[at : at + room])
        except OSError as error:
            self.stop(Stop(3, f"stdin can't be read: {error.strerror}"))
        await self._until(lambda: not self.flights.count)
        await self.flights.close()
        self.output.release()
        await self._until(lambda: self.output.idle)
        self._job.cache.close()

    def stop(self, stop: Stop) -> None:
        """Take nothing more and send nothing more, but wait for what is at the server: it is paid for."""
        if self.stopped is None:
            self.stopped = stop
            self.rows.stop()
            self.flights.drain()
            self._wake()

    @property
    def bytes_done(self) -> float:
        """About how many bytes of the input have their lines."""
        return self.rows.bytes_until(self._number - self.flights.count)

    @property
    def first_unfinished(self) -> int | None:
        """The lowest line that has neither an answer nor an error line, or None if all have."""
        lines = [self.flights.first_unfinished, self.output.first_unwritten]
        if not self.rows.ended or self._number < self.rows.lines_read:
            lines.append(self._number + 1)
        return min([line for line in lines if line is not None], default=None)

    def _take(self, lines: list[bytes]) -> None:
        """Takes rows from the next lines; those of white space yield nothing.

        It may take none, if there is a fault in one of several: then they come singly.
        """
        self._spare = min(2 * self._spare + 1, self._rows_most)
        raws = list(map(bytes.strip, lines))
        numbers = list(range(self._number + 1, self._number + 1 + len(lines)))
        blanks: set[int] = set()
        if b"" in raws:
            blanks = {number for number, line in zip(numbers, lines, strict=True) if is_blank(line)}
            numbers = [number for number in numbers if number not in blanks]
            lines = [line for line in lines if not is_blank(line)]
            raws = list(map(bytes.strip, lines))
        records: list[dict[str, Any]] = []
        try:
            records = parse_records(lines)
            bodies = list(map(self._job.prompt.body, records, raws))
        except RowError as error:
            if len(lines) > 1:
                self._singly_until = numbers[-1]
                return
            self._fail(numbers[0], raws[0], error, is_record=bool(records))
            last = numbers[0]
        else:
            last = self._ask(numbers, raws, records, bodies) if lines else max(blanks)
        for blank in blanks:
            if blank <= last:
                self.output.skip(blank)
        self._number = last

    def _ask(self, numbers: list[int], raws: list[bytes], records: list[dict[str, Any]], bodies: list[bytes]) -> int:
        """What the cache has is printed at once, the others become requests.

        Returns the last of the numbers that it got to: not beyond where all slots are taken, or where
        the answers are too large to be held together.
        """
        job, replay = self._job, self._replay.line
        keys = list(map(job.keys.of, bodies))
        found = job.cache.find(keys)
        printed: dict[int, bytes] = {}
        is_dry = job.is_dry
        number = 0
        for number, raw, record, body, key, stored in zip(numbers, raws, records, bodies, keys, found, strict=False):
            line = replay(stored, raw, record) if stored else None
            if is_dry:
                self.asked_bytes += 0 if line else len(body)
                printed[number] = body + b"\n"
            elif line:
                printed[number] = line
            else:
                self._spare = 0
                self.flights.start(Row(number, raw, record), key, body)
                if self.flights.count == job.jobs:
                    break
        self.stats.rows += numbers.index(number) + 1
        if printed:
            self.output.answers(printed)
        return number

    def _fail(self, number: int, raw: bytes, error: RowError, is_record: bool) -> None:
        self.stats.rows += 1
        self.stats.by_kind[error.kind] += 1
        self.output.error(number, error_line(number, error, 0, raw, is_record))

    async def _room(self) -> int:
        """How many rows may be taken, as soon as there is room; 0 once the run is stopped."""
        await self._until(lambda: self._has_room() or self.stopped is not None)
        if self.stopped:
            return 0
        if self._number < self._singly_until:
            return 1
        # A row that becomes a request and finds no slot was read in vain.
        return min(self._job.jobs - self.flights.count + self._spare, self._rows_most)

    def _has_room(self) -> bool:
        return (
            self.output.size < BUFFER_BYTES
            and self.flights.count < self._job.jobs
            and self.flights.waiting_bytes < BUFFER_BYTES
        )

    async def _until(self, is_reached: Callable[[], bool]) -> None:
        while not is_reached():
            if self._bug:
                raise self._bug
            self._changed.clear()
            await self._changed.wait()

    def _wake(self) -> None:
        """Some output is written, or can't be."""
        failure = self.output.failure
        if failure and not self.stopped:
            self.stop(failure_of(failure))
        self.flights.resume()
        self._changed.set()

    def crash(self, context: Mapping[str, Any]) -> None:
        """A bug showed in a callback, as the event loop tells it: `run` raises it."""
        self._refuse(context.get("exception") or RuntimeError(context["message"]))

    def _refuse(self, end: BaseException) -> None:
        if isinstance(end, RunError):
            self.stop(Stop(3, str(end)))
        else:
            self._bug = end
            self._changed.set()


def is_blank(line: bytes) -> bool:
    """Whether a line is nothing but white space, as far as it was kept."""
    return not line.strip() and not isinstance(line, Overlong)


def failure_of(error: Exception) -> Stop:
    """What it means that an output could not be written."""
    if isinstance(error, BrokenPipeError):
        return Stop(141, None)  # 128 + SIGPIPE: its reader has seen enough
    return Stop(3, f"the output can't be written: {error.strerror if isinstance(error, OSError) else error}")
