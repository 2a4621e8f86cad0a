"""A request → an answer that passed its checks: sent, sent again, asked again."""

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

from llmfilter.answers.checks import Answer
from llmfilter.api.completion import Completion
from llmfilter.errors import Abandoned, Retryable, RowError
from llmfilter.modes.budget import Budget
from llmfilter.modes.hopeless import Hopeless
from llmfilter.modes.look_up import Plan
from llmfilter.modes.under_way import Request, Requests

if TYPE_CHECKING:
    from llmfilter.modes.ask import Asking
    from llmfilter.server.client import Client


BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 60.0
GIVE_UP_REFUSALS = 10  # even where one request in five is refused by chance, it is one row in ten million
GIVE_UP_S = 150.0  # by then a limit counted by the minute has begun anew twice
_REASKED = ("unparsable", "invalid")
REASK = (
    "Your answer can't be used: {fault}. "
    "Answer again, with all that was asked for, as one JSON object and nothing else."
)


class Conversation:
    """Holds the conversations of a run, each in its request's task and slot.

    budget: None where there is no limit.
    """

    def __init__(
        self,
        plan: Plan,
        asking: "Asking",
        client: "Client",
        requests: Requests,
        hopeless: Hopeless,
        budget: Budget | None,
    ) -> None:
        self._plan = plan
        self._asking = asking
        self._client = client
        self._requests = requests
        self._hopeless = hopeless
        self._budget = budget
        self._send = self._send_within if budget else client.send

    async def hold(self, request: Request) -> tuple[Completion, Answer]:
        """Return an answer; raise the RowError that is left of it, RunError, or Abandoned while stopping."""
        body, reasks_left, failures, patience = request.body, self._asking.reasks, 0, None
        if request.unusable and reasks_left:
            body, reasks_left = self._reask(request, request.unusable), reasks_left - 1
        while True:
            try:
                completion = await self._send(body, request)
                self._hopeless.succeed()
                return completion, self._parse(completion)
            except Retryable as fault:
                self._hopeless.hear(fault)
                if fault.is_refusal:
                    patience = patience or Patience()
                    is_over = patience.is_over(asyncio.get_running_loop().time(), self._client.answers)
                    wait_s = delay_s(fault.after_s, patience.refusals, random.random())
                else:
                    failures += not self._client.limit.away  # which is no fault of this row
                    is_over = failures > self._asking.retries
                    wait_s = delay_s(fault.after_s, max(1, failures), random.random())
                if is_over:
                    raise self._reject(fault) from None
            except RowError as fault:
                if not reasks_left or fault.kind not in _REASKED or self._client.ending.has_begun:
                    raise self._reject(fault) from None
                body, reasks_left, failures = self._reask(request, fault), reasks_left - 1, 0
                continue
            await self._back_off(request, wait_s)

    async def _send_within(self, body: bytes, request: Request) -> Completion:
        """Send a request as `Client.send` does, when the budget has room for it."""
        budget = self._budget
        assert budget is not None
        await budget.take(len(body))
        try:
            completion = await self._client.send(body, request)
            budget.count(completion.prompt_tokens + completion.completion_tokens)
        finally:
            budget.free()
        return completion

    def _reject(self, fault: RowError) -> RowError:
        self._hopeless.reject(self._client.clean(fault))
        return fault

    async def _back_off(self, request: Request, wait_s: float) -> None:
        """Wait before another attempt, and let others have the slot; raise Abandoned while draining."""
        self._requests.free_slot()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._client.ending.wait()
        await self._requests.return_slot(request)
        if self._client.ending.has_begun:
            raise Abandoned

    def _parse(self, completion: Completion) -> Answer:
        """Return the answer in a completion; one that was cut off is one if nothing of it is missing."""
        fault = completion.fault
        if fault is None:
            return self._plan.checks.parse(completion.content)
        if fault.kind == "truncated" and (answer := self._plan.checks.parse_whole(completion.content)):
            return answer
        raise fault

    def _reask(self, request: Request, fault: RowError) -> bytes:
        self._client.stats.reasked += 1
        turns = [("assistant", fault.raw or ""), ("user", REASK.format(fault=fault.message))]
        return self._plan.prompt.extend(request.body, turns)


class Patience:
    """When to give up one row that is refused again and again while others are answered.

    After ten refusals and 150 s, if as many others were answered in the meantime.
    """

    def __init__(self) -> None:
        self.refusals = 0
        self._since_s = 0.0
        self._answered = 0

    def is_over(self, now: float, answered: int) -> bool:
        """Count a refusal of this row; answered: how many requests of the run had been answered by now."""
        if not self.refusals:
            self._since_s, self._answered = now, answered
        self.refusals += 1
        return (
            self.refusals >= GIVE_UP_REFUSALS
            and now - self._since_s >= GIVE_UP_S
            and answered - self._answered >= GIVE_UP_REFUSALS
        )


def delay_s(after_s: float | None, failures: int, jitter: float) -> float:
    """Return how many seconds to wait before the same request is sent again.

    after_s: what the server asked for, or None; failures: how many there were, from 1 on; jitter: in
    [0, 1), spreads the requests, so that they do not all come back at once.
    """
    if after_s is not None:
        return after_s * (1 + jitter / 4)
    return min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16)) * (0.5 + jitter / 2)
