"""One run, every stage in order: rows → prompt → cache → (chat → answer → cache) → output.

Theory of operation
- Rows are taken in blocks, in the order of their lines, up to the look-up in the cache: a call for
  each row and stage would cost more than the stages do. What the cache has is printed there.
- Each other request is one task, which awaits in this order a slot (`-j`), the answer, the disk, and
  for each of its rows room on the output. It prints then, and nothing of it lives on. The slot is
  free only when the answer is on the disk: SIGKILL costs no more than the slots.
- Memory is bounded by four things, and a block is taken only when none is used up: the slots, the
  requests queued for one, the bytes of the rows that wait without a slot, the bytes not yet written.
- Whatever makes room says so to `Output.changed`; it alone wakes who waits for room, and they look
  for themselves whether there is any.
- An early end is a `Stop`: nothing more is taken or sent, what is at the server is finished.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from llmfilter.answers.checks import Answer
from llmfilter.api.completion import Completion
from llmfilter.cache.replay import Replay
from llmfilter.cache.stored import pack
from llmfilter.errors import OUT_OF_MEMORY, Abandoned, RowError, RunError
from llmfilter.input.reader import Rows
from llmfilter.input.records import Parsed, Row, parse_records
from llmfilter.modes.budget import Budget
from llmfilter.modes.conversation import Conversation
from llmfilter.modes.hopeless import Breaker
from llmfilter.modes.under_way import QUEUED_MOST, InFlight, Request
from llmfilter.output.lines import BUFFER_BYTES, Output
from llmfilter.stats import Snapshot, Stats
from llmfilter.words import describe_bug, printable

if TYPE_CHECKING:
    from llmfilter.job import Job
    from llmfilter.server.client import Chat


_ROWS_MOST = 64  # taken together: more is no faster, and falls out of the processor's caches
_KEY_MOST = 100  # characters of a key that are shown
_BUG_S = 10.0  # what is in flight gets so long after a bug outside of its own path


class Stop(NamedTuple):
    """Why a run ends early: the exit status, and what to say (None where nobody would listen)."""

    status: int
    reason: str | None


class Pipeline:
    """Runs a job from a descriptor to two outputs.

    stopped: why it ended early, or None; resumes: whether the same command goes on from there.
    """

    def __init__(self, job: "Job", stdin: int, output: Output, stats: Stats) -> None:
        self._job = job
        self.stats = stats
        self._rows = Rows(stdin)
        self.output = output
        self._in_flight = InFlight(job.jobs, self._start, output.changed.notify)
        self._breaker = Breaker(stats)
        self._replay = Replay(job.checks, stats)
        self._chat: Chat | None = None
        self._conversation: Conversation | None = None
        self._tasks = asyncio.TaskGroup()
        self._number = 0  # of the line taken last
        self._rows_most = max(1, min(_ROWS_MOST, BUFFER_BYTES // job.prompt.fixed_bytes))
        self._patience: asyncio.Timeout = asyncio.timeout(None)
        self._has_said_replaced = False
        self.stopped: Stop | None = None
        self.resumes = job.preview is None and job.cache.folder is not None
        job.cache.on_failure = output.say
        output.on_failure = self._stop_writing

    async def run(self) -> None:
        """Return when every row has its line; after `stop()`, when all that was sent has."""
        with suppress(TimeoutError):  # of patience, after a bug
            async with self._patience:
                async with self._tasks:
                    await self._take_all()
                self.output.release()
                await self.output.changed.until(lambda: self.output.idle)
        if self._chat:
            self.stats.limit = self._chat.limit.found
            await self._chat.close()
        self._job.cache.close()

    def stop(self, stop: Stop) -> None:
        """Take nothing more and send nothing more, but wait for what is at the server: it is paid for."""
        if self.stopped is None:
            self.stopped = stop
            self.output.is_over = True
            self._rows.stop()
            self._in_flight.abandon_queue()
            if self._chat:
                self._chat.drain()
            self.output.changed.notify()

    def crash(self, context: Mapping[str, Any]) -> None:
        """Stop for a bug in a callback, as the event loop tells it; wait a little for what is in flight."""
        bug = context.get("exception")
        self._stop_for(bug if isinstance(bug, Exception) else RuntimeError(context["message"]))
        with suppress(RuntimeError):  # it has ended already
            self._patience.reschedule(asyncio.get_running_loop().time() + _BUG_S)

    def report(self) -> list[str]:
        """Return what there is to say at the end of a run that has done something else than asking."""
        preview = self._job.preview
        return preview.report(self.stats, is_whole=self.stopped is None) if preview else []

    def snapshot(self) -> Snapshot:
        """Return how far the run is."""
        lines = [self._in_flight.first_unfinished, self.output.first_unwritten]
        if not self._rows.ended or self._number < self._rows.lines_read:
            lines.append(self._number + 1)
        chat = self._chat
        return Snapshot(
            self._rows.bytes_until(self._number - self._in_flight.count),
            chat.at_server if chat else 0,
            self.output.size > 0,
            min([line for line in lines if line is not None], default=None),
            chat.limit.found if chat else None,
            chat.limit.stuck_s if chat else 0.0,
        )

    async def _take_all(self) -> None:
        first = 1
        try:
            async for lines in self._rows:
                for at in range(0, len(lines), self._rows_most):
                    if not await self._has_room():
                        return
                    first = self._number + 1
                    await self._take(lines[at : at + self._rows_most])
        except OSError as error:
            self._stop_early(f"stdin can't be read: {error.strerror}")
        except RunError as end:
            self._stop_early(end.message)
        except Exception as bug:
            self._stop_for(bug, first)

    async def _has_room(self) -> bool:
        """Return as soon as there is room for rows; False once the run is stopped."""
        await self.output.changed.until(self._may_go_on)
        return self.stopped is None

    def _may_go_on(self) -> bool:
        in_flight = self._in_flight
        return self.stopped is not None or (
            in_flight.queued < QUEUED_MOST
            and in_flight.waiting_bytes < BUFFER_BYTES
            and self.output.size < BUFFER_BYTES
        )

    async def _take(self, lines: list[bytes]) -> None:
        """Make requests of lines; what can't become one gets its error line."""
        raws = [line.strip() for line in lines]
        records = parse_records(raws)
        rows, bodies = self._sift(raws, records, self._job.prompt.bodies(records, raws))
        self.stats.rows += len(rows)
        keys = self._job.keys.of(bodies)
        while rows:
            count = self._look_up(rows, bodies, keys)
            del rows[:count], bodies[:count], keys[:count]
            if rows and not await self._has_room():
                self._in_flight.abandon_line(rows[0][0])
                return

    def _sift(
        self, raws: list[bytes], records: list[dict[str, Any] | RowError], bodies: list[bytes | RowError]
    ) -> tuple[list[Parsed], list[bytes]]:
        """Return the rows that can be sent, with their requests; print the error lines of the others."""
        first, last = self._number + 1, self._number + len(raws)
        rows: Iterable[Any] = zip(range(first, last + 1), raws, records, strict=True)
        if {*map(type, bodies)} == {bytes}:
            self._number = last
            return list(rows), cast(list[bytes], bodies)
        sound = []
        for row, body in zip(rows, bodies, strict=True):
            self._number, raw, record = row
            if isinstance(body, bytes):
                sound.append((row, body))
            elif not raw:
                self.output.skip(self._number)
            else:
                self._fail(self._number, raw, body, is_record=record is not body)
                if not sound:
                    self._breaker.reject_unsent(body)
        return [row for row, _ in sound], [body for _, body in sound]

    def _look_up(self, rows: list[Parsed], bodies: list[bytes], keys: list[bytes]) -> int:
        """Print what the cache has, and start requests for the other rows.

        Return how many rows that were: not all where the answers are too large to be held together.
        """
        job, in_flight = self._job, self._in_flight
        outcomes = self._replay.outcomes(rows, keys, job.cache.find(keys))
        if job.preview:
            outcomes = list(map(job.preview.line, keys, bodies, outcomes))
        printed = {row[0]: outcome for row, outcome in zip(rows, outcomes, strict=False) if type(outcome) is bytes}
        if len(printed) < len(outcomes):
            for parsed, body, key, outcome in zip(rows, bodies, keys, outcomes, strict=False):
                if not isinstance(outcome, bytes):
                    row = Row(*parsed)
                    if not in_flight.join(row, key):
                        in_flight.add(row, key, body, outcome)
        if printed:
            self.output.answers(printed)
            self._say_replaced()
        return len(outcomes)

    def _fail(self, number: int, raw: bytes, error: RowError, is_record: bool) -> None:
        self.stats.rows += 1
        self.stats.by_kind[error.kind] += 1
        self.output.error(number, error, 0, raw, is_record)

    def _start(self, request: Request) -> None:
        self._tasks.create_task(self._complete(request))

    async def _complete(self, request: Request) -> None:
        """Take a request from its queue to its rows' lines."""
        first = request.rows[0].number
        try:
            outcome = await self._outcome(request)
            while request.rows:
                await self.output.room_for(request.rows[0].number)
                self._print(request, outcome)
            return self._in_flight.remove(request)
        except Abandoned:
            pass
        except RunError as end:
            self._stop_early(end.message)
        except Exception as bug:
            self._stop_for(bug, first)
        return self._in_flight.abandon(request)

    async def _outcome(self, request: Request) -> tuple[Completion, Answer] | RowError:
        """Return an answer that is on the disk, or the error that is left of it; free the slot."""
        try:
            outcome = await self._talk().hold(request)
            is_stored = await self._job.cache.put(request.key, pack(request.key, *outcome))
            self.stats.unstored += not is_stored
            return outcome
        except RowError as error:
            error.__context__ = None
            return error.with_traceback(None)  # its frames would keep the request's bytes alive
        finally:
            self._in_flight.free_slot()

    def _talk(self) -> Conversation:
        if self._conversation is None:
            self._chat = self._job.connect()
            self._chat.on_wait = self.output.say
            tokens = self._job.budget
            budget = Budget(tokens, self.stats, self.output.changed, self._stop_early) if tokens else None
            self._conversation = Conversation(self._job, self._chat, self._in_flight, self._breaker, budget)
        return self._conversation

    def _print(self, request: Request, outcome: tuple[Completion, Answer] | RowError) -> None:
        is_shared = request.is_shared
        row = self._in_flight.take_row(request)
        if isinstance(outcome, RowError):
            self.stats.by_kind[outcome.kind] += 1
            self.output.error(row.number, outcome, request.attempts, row.raw, True)
            return
        completion, answer = outcome
        if is_shared:
            self.output.changed.notify()
            self.stats.count_replays(1, completion.prompt_tokens, completion.completion_tokens)
        else:
            self.stats.asked += 1
        self.output.answers({row.number: self._replay.join(*row, answer, completion.body)})
        self._say_replaced()

    def _say_replaced(self) -> None:
        """Say once that an answer has replaced a key of its record."""
        if self.stats.first_replaced and not self._has_said_replaced and not self._job.preview:
            self._has_said_replaced = True
            line, key = self.stats.first_replaced
            self.output.say(
                f"line {line}: the answer has replaced the record's {printable(key, _KEY_MOST)!r}: "
                "--as KEY keeps both, -f A,B takes only these keys of the answer; --stats counts such rows"
            )

    def _stop_writing(self, error: Exception) -> None:
        self.stop(failure_of(error))

    def _stop_early(self, reason: str) -> None:
        self.stop(Stop(3, reason))

    def _stop_for(self, bug: Exception, first: int | None = None) -> None:
        """Stop for a bug, or for want of memory; first: the lowest line that may have no outcome for it."""
        if first is not None:
            self._in_flight.abandon_line(first)
        self.stop(Stop(3, OUT_OF_MEMORY) if isinstance(bug, MemoryError) else Stop(70, describe_bug(bug)))


def failure_of(error: Exception) -> Stop:
    """Return what it means that an output could not be written."""
    if isinstance(error, BrokenPipeError):
        return Stop(141, None)  # 128 + SIGPIPE: its reader has seen enough
    return Stop(3, f"the output can't be written: {error.strerror if isinstance(error, OSError) else error}")
