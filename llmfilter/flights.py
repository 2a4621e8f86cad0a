"""Requests in flight: from the first sending of a row until its outcome is durable and printed."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from llmfilter.answer import Answer, Checks
from llmfilter.cache import NoCache
from llmfilter.completion import Completion, pack, read_completion
from llmfilter.errors import Abandoned, RowError, RunError
from llmfilter.output import Output, error_line
from llmfilter.prompt import Prompt
from llmfilter.record import splice
from llmfilter.rows import Row
from llmfilter.stats import Stats

if TYPE_CHECKING:
    from llmfilter.chat import Chat

_ROW_BYTES = 1000  # of memory, beyond a row's own bytes
_REASKED = ("unparsable", "invalid")
REASK = (
    "Your answer can't be used: {fault}. "
    "Answer again, with all that was asked for, as one JSON object and nothing else."
)


@dataclass(slots=True, eq=False)
class Flight:
    """One request and the rows that wait for its outcome; the first of them sent it.

    attempts: requests sent for it so far, re-asking and waiting out a limit included.
    """

    key: bytes
    body: bytes
    rows: deque[Row]
    attempts: int = 0
    is_shared: bool = False  # the row that sent it is printed; the others follow


Outcome = tuple[bytes, Completion, Answer]  # a response's body, what it holds, and what that means


class Flights:
    """Asks for rows and prints their outcomes; identical requests in flight are sent once.

    on_landed is called when a flight has landed; on_end when the server refuses the whole run (with a
    RunError) or a bug shows (with the exception). waiting_bytes: memory of the rows that share
    another row's request.
    """

    def __init__(
        self,
        connect: "Callable[[], Chat]",
        prompt: Prompt,
        checks: Checks,
        reasks: int,
        cache: NoCache,
        output: Output,
        stats: Stats,
        on_landed: Callable[[], None],
        on_end: Callable[[BaseException], None],
    ) -> None:
        self._connect = connect
        self._prompt = prompt
        self._checks = checks
        self._reasks = reasks
        self._cache = cache
        self._output = output
        self._stats = stats
        self._on_landed = on_landed
        self._on_end = on_end
        self._flights: dict[bytes, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unprinted: deque[Callable[[], bool]] = deque()  # each returns whether it printed any
        self._is_resuming = False
        self._chat: Chat | None = None
        self._draining = False
        self.waiting_bytes = 0
        self._given_up: int | None = None

    @property
    def first_unfinished(self) -> int | None:
        """The lowest line that is still in flight, or was given up without an outcome."""
        lines = [row.number for flight in self._flights.values() for row in flight.rows]
        return min(lines if self._given_up is None else [*lines, self._given_up], default=None)

    @property
    def count(self) -> int:
        """Requests in flight."""
        return len(self._flights)

    def start(self, row: Row, key: bytes, body: bytes) -> None:
        """Asks for a row, or lets it wait for the same request in flight."""
        flight = self._flights.get(key)
        if flight:
            flight.rows.append(row)
            self.waiting_bytes += len(row.raw) + _ROW_BYTES
            return
        flight = self._flights[key] = Flight(key, body, deque([row]))
        task = asyncio.create_task(self._fly(flight))
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def drain(self) -> None:
        """Send nothing more; what is at the server is waited for, since it is paid for."""
        self._draining = True
        if self._chat:
            self._chat.drain()

    def resume(self) -> None:
        """There may be room again for rows that could not be printed."""
        if self._is_resuming or not self._unprinted:  # a flight that lands here comes by again
            return
        self._is_resuming = True
        has_printed = True
        while has_printed:  # with -k one flight's row may make room for another's
            has_printed = False
            for _ in range(len(self._unprinted)):
                has_printed |= self._unprinted.popleft()()
        self._is_resuming = False

    async def close(self) -> None:
        """To be called once none is in flight."""
        if self._chat:
            await self._chat.close()

    @property
    def waiting(self) -> int:
        """How many are not at the server but wait to be sent, or sent again."""
        return self._chat.waiting if self._chat else 0

    @property
    def is_limited(self) -> bool:
        """Whether sending is slowed down to what the server bears."""
        return self._chat is not None and self._chat.is_limited

    async def _fly(self, flight: Flight) -> None:
        try:
            outcome = await self._converse(flight)
        except RowError as error:
            self._land(flight, error)
        except (Abandoned, RunError) as end:
            self._give_up(flight)
            if isinstance(end, RunError):
                self._on_end(end)
        else:
            body, completion, answer = outcome
            # The slot is free, and the row printed, only when the answer can't be lost any more.
            self._cache.put(flight.key, pack(body, completion), lambda: self._land(flight, answer, completion))

    async def _converse(self, flight: Flight) -> Outcome:
        """Asks, and asks again about an unusable answer as often as allowed."""
        if self._draining:
            raise Abandoned
        self._chat = chat = self._chat or self._connect()
        body = flight.body
        for left in range(self._reasks, -1, -1):
            try:
                return await chat.ask(body, self._read, flight)
            except RowError as error:
                if not left or error.kind not in _REASKED or self._draining:
                    raise
                self._stats.reasked += 1
                turns = [("assistant", error.raw or ""), ("user", REASK.format(fault=error.message))]
                body = self._prompt.extend(flight.body, turns)
        raise AssertionError  # the last round returns or raises

    def _read(self, body: bytes) -> Outcome:
        completion = read_completion(body)
        self._stats.billed_prompt += completion.prompt_tokens
        self._stats.billed_completion += completion.completion_tokens
        if completion.fault:
            raise completion.fault
        return body, completion, self._checks.parse(completion.content)

    def _land(self, flight: Flight, outcome: Answer | RowError, completion: Completion | None = None) -> bool:
        """Prints the outcome for each row of a flight; where there is no room, goes on when there is.

        Returns whether any was printed.
        """
        waiting = len(flight.rows)
        while flight.rows:
            if flight.is_shared and not self._output.has_room_for(flight.rows[0].number):
                self._unprinted.append(partial(self._land, flight, outcome, completion))
                return len(flight.rows) < waiting
            self._print(flight, flight.rows.popleft(), outcome, completion)
            flight.is_shared = True
        self._end(flight)
        return True

    def _print(self, flight: Flight, row: Row, outcome: Answer | RowError, completion: Completion | None) -> None:
        if flight.is_shared:
            self.waiting_bytes -= len(row.raw) + _ROW_BYTES
        if isinstance(outcome, RowError):
            self._stats.by_kind[outcome.kind] += 1
            line = error_line(row.number, outcome, flight.attempts, row.raw, is_record=True)
            self._output.error(row.number, line)
            return
        if flight.is_shared and completion:
            self._stats.count_replay(completion.prompt_tokens, completion.completion_tokens)
        else:
            self._stats.asked += 1
        self._output.answers({row.number: splice(row.raw, row.record, *outcome)})

    def _give_up(self, flight: Flight) -> None:
        lines = [row.number for row in flight.rows]
        self._given_up = min(lines if self._given_up is None else [*lines, self._given_up])
        self._end(flight)

    def _end(self, flight: Flight) -> None:
        del self._flights[flight.key]
        self.resume()
        self._on_landed()

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()):
            self._on_end(bug)
