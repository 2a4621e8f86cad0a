"""The ordinary run: each row that the cache can't answer is asked of the server.

Theory of operation
- A slot (`-j`) is a task. It takes one request after the other: sends it, awaits the answer, then the disk,
  and prints. SIGKILL costs no more than the slots.
- A request gets a slot only while the output has room, and no row waits for some. So a slot never waits to
  print, and with -k the row whose turn it is always gets one: nothing that waits can keep it out.
- Who waits for something else than the server has no slot: a request that backs off lends its own to
  another; rows that share a request are printed by a task of their own, each as there is room for it.

Memory is bounded, however long the input is, by
- the requests that wait for a slot for the first time: QUEUED_MOST and a block of lines;
- the bytes of all rows without a slot (queued, backing off, sharing a request): BUFFER_BYTES and a block;
- the answers: one for each slot, of BODY_BYTES_MAX at most. Those that wait for their turn (-k) or for a
  reader are lines in the output: BUFFER_BYTES, and what was under way when it was full.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmfilter.answers.checks import Answer
from llmfilter.api.completion import Completion
from llmfilter.errors import Abandoned, RowError, RunError
from llmfilter.modes.look_up import LookUp
from llmfilter.modes.plan import Asking, Plan
from llmfilter.modes.under_way import QUEUED_MOST, Request, Requests
from llmfilter.output.lines import BUFFER_BYTES
from llmfilter.pipeline import Run
from llmfilter.stats import UnderWay
from llmfilter.words import printable

if TYPE_CHECKING:
    from llmfilter.modes.conversation import Conversation
    from llmfilter.server.client import Client

_KEY_MOST = 100  # characters of a key that are shown


class Ask:
    """A mode of the pipeline: see there."""

    def __init__(self, plan: Plan, asking: Asking, run: Run) -> None:
        self._plan = plan
        self._asking = asking
        self._run = run
        self._look_up = LookUp(plan, run)
        self._requests = Requests(asking.jobs, self._start, run.output.is_free_for, run.output.changed.notify)
        self._client: Client | None = None
        self._conversation: Conversation | None = None
        self._has_said_replaced = False
        self.lines_most = self._look_up.lines_most
        self.resumes = plan.cache.folder is not None
        run.ending.tell(self._requests.abandon_queue)

    @property
    def taken(self) -> int:
        """As in Mode."""
        return self._look_up.taken

    @property
    def has_room(self) -> bool:
        """As in Mode."""
        return self._requests.queued < QUEUED_MOST and self._requests.waiting_bytes < BUFFER_BYTES

    def take(self, lines: list[bytes]) -> Iterator[int]:
        """As in Mode: print what the cache has, and start requests for the other rows."""
        for rows, bodies, keys, outcomes in self._look_up.take(lines):
            printed = {row[0]: line for row, line in zip(rows, outcomes, strict=True) if type(line) is bytes}
            if len(printed) < len(outcomes):
                for row, body, key, outcome in zip(rows, bodies, keys, outcomes, strict=True):
                    if not isinstance(outcome, bytes) and not self._requests.join(row, key):
                        self._requests.add(row, key, body, outcome)
            if printed:
                self._run.output.answers(printed)
                self._say_replaced()
            yield rows[-1][0] + 1

    def _start(self) -> None:
        self._run.tasks.create_task(self._serve())

    async def _serve(self) -> None:
        """Be a slot: take one request after the other, each once the output has room, until none waits."""
        requests, changed = self._requests, self._run.output.changed
        while requests.waiting:
            request = requests.take()
            if request is None:
                await changed.until(lambda: requests.may_take)
            elif request.slot is None:
                await self._complete(request)
            elif not request.slot.done():
                request.slot.set_result(None)
                return  # it is its own slot from here on
        requests.free_slot()

    async def _complete(self, request: Request) -> None:
        """Take a request from its sending to its line, once its answer is on the disk."""
        outcome: tuple[Completion, Answer] | RowError
        try:
            try:
                outcome = await self._talk().hold(request)
                is_stored = await self._plan.cache.put(request.key, *outcome)
                self._run.stats.unstored += not is_stored
            except RowError as error:
                error.__context__ = None
                outcome = error.with_traceback(None)  # its frames would keep the request's bytes alive
            self._print(request, outcome)
            if request.rows:
                self._run.tasks.create_task(self._print_shared(request, outcome))
            else:
                self._requests.remove(request)
        except Exception as error:
            self._abandon(request, error)

    async def _print_shared(self, request: Request, outcome: tuple[Completion, Answer] | RowError) -> None:
        """Print the rows that have shared a request."""
        try:
            while request.rows:
                await self._run.output.room_for(request.line)
                self._print(request, outcome)
            self._requests.remove(request)
        except Exception as error:
            self._abandon(request, error)

    def _abandon(self, request: Request, error: Exception) -> None:
        """Forget a request whose rows get no outcome; end the run, where it doesn't end already."""
        self._requests.abandon(request)
        if isinstance(error, RunError):
            self._run.stop_early(error.message)
        elif not isinstance(error, Abandoned):
            self._run.stop_for(error)

    def _talk(self) -> "Conversation":
        if self._conversation is None:  # what asks is loaded when the first row has to be asked
            from llmfilter.modes.budget import Budget
            from llmfilter.modes.conversation import Conversation

            self._client = self._asking.connect(self._run)
            most = self._asking.budget
            budget = Budget(most, self._run.stats, self._run.output.changed, self._run.ending) if most else None
            self._conversation = Conversation(
                self._plan, self._asking, self._client, self._requests, self._look_up.hopeless, budget
            )
        return self._conversation

    def _print(self, request: Request, outcome: tuple[Completion, Answer] | RowError) -> None:
        """Print the first row of a request."""
        output, stats = self._run.output, self._run.stats
        number, raw, record = request.rows[0]
        is_shared = request.is_shared
        if isinstance(outcome, RowError):
            stats.by_kind[outcome.kind] += 1
            output.error(number, outcome, request.attempts.sent if request.attempts else 0, raw, True)
        else:
            completion, answer = outcome
            if is_shared:
                stats.count_replays(1, completion.usage)
            else:
                stats.asked += 1
            output.answer(number, self._look_up.replay.join(number, raw, record, answer, completion.body))
            self._say_replaced()
        self._requests.drop_row(request)
        if is_shared:
            output.changed.notify()

    def _say_replaced(self) -> None:
        """Say once that a key of a record, or of an answer, was replaced."""
        if self._run.stats.first_replaced and not self._has_said_replaced:
            self._has_said_replaced = True
            line, whose, key = self._run.stats.first_replaced
            shown = printable(key, _KEY_MOST)
            if whose == "record":
                what = f"the answer has replaced the record's {shown!r}"
                way = "--as KEY with a new KEY keeps both, -f A,B takes only these keys of the answer"
            else:
                what, way = f"--response has replaced the answer's {shown!r}", "give it another KEY"
            self._run.output.say(f"line {line}: {what}: {way}; --stats counts such rows")

    def under_way(self) -> UnderWay:
        """As in Mode."""
        client, requests = self._client, self._requests
        if not client:
            return UnderWay(requests.count, requests.first_unfinished)
        limit = client.limit
        return UnderWay(requests.count, requests.first_unfinished, client.at_server, limit.found, limit.stuck_s)

    def report(self) -> list[str]:
        """As in Mode: the summary says it all."""
        return []

    async def close(self) -> None:
        """As in Mode."""
        if self._client:
            self._run.stats.limit = self._client.limit.found
            await self._client.close()
        self._plan.cache.close()
