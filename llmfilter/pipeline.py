"""One run, every stage in order: rows → prompt → cache → (flights: chat → answer → cache) → output."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmfilter.answer import Answer, Checks
from llmfilter.cache import CacheError, Keys, Lookup, NoCache
from llmfilter.completion import unpack
from llmfilter.errors import RowError, RunError
from llmfilter.flights import Flights
from llmfilter.output import BUFFER_BYTES, Output, Write, error_line
from llmfilter.prompt import Prompt
from llmfilter.record import splice
from llmfilter.rows import Overlong, Row, Rows, parse_record
from llmfilter.stats import Stats

if TYPE_CHECKING:
    from llmfilter.chat import Chat


@dataclass(frozen=True)
class Job:
    """What is done with each row. connect makes the client when the first row needs it, since loading
    it takes longer than a run that the cache can answer."""

    prompt: Prompt
    keys: Keys
    checks: Checks
    reasks: int
    jobs: int
    cache: NoCache
    connect: "Callable[[], Chat]"
    is_dry: bool = False


@dataclass(frozen=True)
class Stop:
    """Why a run ends early: the exit status, and what to say (None where nobody would listen)."""

    status: int
    reason: str | None


class Pipeline:
    """Runs a job from a descriptor to two outputs.

    stopped: why it ended early, or None; asked_bytes: what a dry run would send.
    """

    def __init__(self, job: Job, stdin: int, stdout: Write, stderr: Write, keep_order: bool, stats: Stats) -> None:
        self._job = job
        self.stats = stats
        self.rows = Rows(stdin)
        self.output = Output(stdout, stderr, keep_order, self._wake)
        self.flights = Flights(
            job.connect, job.prompt, job.checks, job.reasks, job.cache, self.output, stats, self._wake, self._refuse
        )
        job.cache.on_failure = self.output.say
        self._number = 0  # of the line taken last
        self._changed = asyncio.Event()
        self._bug: BaseException | None = None
        self.asked_bytes = 0
        self.stopped: Stop | None = None

    async def run(self) -> None:
        """Until every row has its line; after `stop()`, until all that was sent has."""
        try:
            async for block in self.rows:
                lines = iter(block)
                while not self.stopped and not self._take(lines):
                    await self._until(lambda: self._has_room() or self.stopped is not None)
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

    def _take(self, lines: Iterator[bytes]) -> bool:
        """Takes rows while there is room: a cache hit is printed at once, a miss becomes a request.

        Returns whether all lines were taken.
        """
        with self._job.cache.snapshot() as look_up:
            for line in lines:
                self._number += 1
                raw = line.strip()
                if raw or isinstance(line, Overlong):
                    self.stats.rows += 1
                    self._take_row(line, raw, look_up)
                else:
                    self.output.skip(self._number)
                if not self._has_room():
                    return False
        return True

    def _take_row(self, line: bytes, raw: bytes, look_up: Lookup) -> None:
        job, number = self._job, self._number
        record = None
        try:
            record = parse_record(line)
            body = job.prompt.body(record, raw)
        except RowError as error:
            self.stats.by_kind[error.kind] += 1
            self.output.error(number, error_line(number, error, 0, raw, is_record=record is not None))
            return
        key = job.keys(body)
        try:
            stored = look_up(key)
        except CacheError as error:
            job.cache.fail(error)
            stored = None
        answer = self._replay(stored) if stored else None
        if job.is_dry:
            self.asked_bytes += 0 if answer else len(body)
            self.output.answer(number, body + b"\n")
        elif answer:
            self.output.answer(number, splice(raw, record, *answer))
        else:
            self.flights.start(Row(number, raw, record), key, body)

    def _replay(self, stored: memoryview) -> Answer | None:
        """A cached answer, or None if it does not pass today's checks."""
        try:
            completion = unpack(stored)
            if completion:
                answer = self._job.checks.read(completion[0])
                self.stats.count_replay(*completion[1:])
                return answer
        except RowError:
            pass
        return None

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


def failure_of(error: Exception) -> Stop:
    """What it means that an output could not be written."""
    if isinstance(error, BrokenPipeError):
        return Stop(141, None)  # 128 + SIGPIPE: its reader has seen enough
    return Stop(3, f"the output can't be written: {error.strerror if isinstance(error, OSError) else error}")
