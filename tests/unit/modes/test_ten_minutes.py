"""conversation: what becomes of rows when the server answers nothing for ten minutes, on a clock that jumps."""

import asyncio
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from server import completion
from simulated import run

from llmfilter import ending
from llmfilter.answers.checks import Checks
from llmfilter.ending import Ending
from llmfilter.errors import Abandoned, Retryable, RowError
from llmfilter.modes.conversation import Conversation
from llmfilter.modes.hopeless import Hopeless
from llmfilter.modes.under_way import Request, Requests
from llmfilter.server.client import LIMIT_S, Client
from llmfilter.server.exchange import Reply
from llmfilter.server.limit.turns import Limit
from llmfilter.server.mask import Mask
from llmfilter.stats import Stats

ANSWER = Reply(200, {}, completion({"a": 1}).body)
TOO_LARGE = Reply(429, {}, b'{"error":{"message":"Request too large","code":"rate_limit_exceeded"}}')
SLOW_S = 310.0


class Wire:
    """A server that does what a request says."""

    is_streaming = False
    at_server = 0
    mask = Mask([])

    def drain(self) -> None: ...

    async def post(self, body: bytes, is_again: bool = False) -> Reply:
        if body == b"hangs":
            await asyncio.sleep(SLOW_S)
            raise Retryable("timeout", f"no answer within {SLOW_S:g} s")
        await asyncio.sleep(0.1)
        return TOO_LARGE if body == b"refused" else ANSWER


class End(NamedTuple):
    """What a row came to (a KIND, `answered` or `abandoned`), and when."""

    outcome: str
    seconds: float


def hold(rows: list[bytes], jobs: int = 4) -> tuple[list[End], ending.Stop | None]:
    """Ask for rows; return how each ends, and why the run ends early."""

    async def main() -> tuple[list[End], ending.Stop | None]:
        loop, end = asyncio.get_running_loop(), Ending()
        client: Any = Client(Wire(), Limit(jobs), Stats(), end, lambda message: None)  # type: ignore[arg-type]
        plan: Any = SimpleNamespace(checks=Checks())
        asking: Any = SimpleNamespace(retries=5, reasks=0)
        ends: dict[int, End] = {}

        async def serve() -> None:
            while requests.waiting:
                request = requests.take()
                assert request
                if request.slot:
                    request.slot.set_result(None)
                    return
                ends[request.line] = End(await outcome_of(request), loop.time())
            requests.free_slot()

        async def outcome_of(request: Request) -> str:
            try:
                await conversation.hold(request)
                return "answered"
            except RowError as error:
                return error.kind
            except Abandoned:
                return "abandoned"

        async with asyncio.timeout(3600), asyncio.TaskGroup() as slots:
            requests = Requests(jobs, lambda: slots.create_task(serve()), lambda line: True, lambda: None)
            end.tell(requests.abandon_queue)
            conversation = Conversation(plan, asking, client, requests, Hopeless(client.stats), None)
            for line, body in enumerate(rows):
                requests.add((line, b"", {}), b"%d" % line, body, None)
        return [ends.get(line, End("abandoned", loop.time())) for line in range(len(rows))], end.stop

    ended: tuple[list[End], ending.Stop | None] = run(main())
    return ended


@pytest.mark.parametrize("count", [1, 3])
def test_where_nothing_is_answered_for_ten_minutes_each_refused_row_ends_as_its_line(count: int) -> None:
    """So the status is 1 if that was the whole input, and 3 if it was not."""
    ends, stop = hold([b"refused"] * count)
    for end in ends:
        assert end.outcome == "http"
        assert LIMIT_S <= end.seconds <= LIMIT_S + 60
    assert stop and "has answered nothing for 10 minutes" in (stop.reason or "")
    assert (stop.whole_status, stop.status) == (ending.SOME_FAILED, ending.STOPPED_EARLY)


def test_rows_that_were_not_sent_in_these_ten_minutes_are_for_the_next_run() -> None:
    ends, stop = hold([b"refused"] * 500)
    assert stop
    assert {end.outcome for end in ends} == {"http", "abandoned"}
    assert ends[0].outcome == "http"
    assert ends[-1].outcome == "abandoned"


@pytest.mark.parametrize("answered", [1, 20])
def test_a_row_that_alone_is_refused_has_its_line_sooner_and_ends_nothing(answered: int) -> None:
    ((outcome, seconds), *others), stop = hold([b"refused", *[b"good"] * answered], jobs=1)
    assert {end.outcome for end in others} == {"answered"}
    assert outcome == "http" and seconds < 60
    assert stop is None


def test_a_lone_row_that_hangs_has_its_line_and_ends_nothing() -> None:
    """The time in which a request is under way is none in which the server has answered nothing."""
    ((outcome, seconds),), stop = hold([b"hangs"])
    assert outcome == "timeout"
    assert 2 * SLOW_S <= seconds <= 2 * SLOW_S + 60
    assert stop is None
