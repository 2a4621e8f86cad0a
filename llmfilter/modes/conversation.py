"""A request → an answer that passed its checks: sent, sent again, asked again."""

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

from llmfilter.answers.checks import Answer
from llmfilter.api.completion import Completion
from llmfilter.errors import Abandoned, Incomplete, Retryable, RowError
from llmfilter.modes.attempts import Attempts
from llmfilter.modes.budget import Budget
from llmfilter.modes.hopeless import Hopeless
from llmfilter.modes.plan import Asking, Plan
from llmfilter.modes.under_way import Request, Requests

if TYPE_CHECKING:
    from llmfilter.server.client import Client

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
        asking: Asking,
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
        attempts = request.attempts = Attempts(self._asking.retries)
        body, reasks_left = request.body, self._asking.reasks
        unusable = request.unusable if reasks_left else None
        if unusable:
            body, reasks_left = self._reask(request, unusable), reasks_left - 1
        while True:
            try:
                completion = await self._send(body, attempts)
                self._hopeless.hear_answer()
                answer = self._plan.checks.judge(completion.content, completion.fault)
                self._hopeless.succeed()
                return completion, answer
            except Abandoned:
                raise self._abandon(attempts) from None
            except Retryable as fault:
                is_foreign = self._hopeless.is_foreign(fault)
                self._hopeless.hear(fault)
                limit, answers = self._client.limit, self._client.answers
                wait_s = attempts.after(fault, limit.is_stopped, limit.is_idle, limit.stuck_s, answers, random.random())
                if wait_s is None or is_foreign:
                    raise self._reject(unusable or fault) from None
            except RowError as fault:
                if isinstance(fault, Incomplete) and not isinstance(unusable, Incomplete):
                    await self._plan.cache.put(request.key, completion)
                self._hopeless.hear_unusable(fault)
                if not reasks_left or fault.kind not in _REASKED or self._client.ending.has_begun:
                    # What the model had answered is worth more than why it could not be asked again.
                    raise self._reject(unusable if unusable and fault.kind not in _REASKED else fault) from None
                unusable = fault
                body, reasks_left = self._reask(request, fault), reasks_left - 1
                attempts.forget_failures()
                continue
            await self._back_off(request, wait_s)

    async def _send_within(self, body: bytes, attempts: Attempts) -> Completion:
        """Send a request as `Client.send` does, when the budget has room for it."""
        budget = self._budget
        assert budget is not None
        await budget.take(len(body))
        try:
            completion = await self._client.send(body, attempts)
            budget.count(completion.usage)
        finally:
            budget.free()
        return completion

    def _abandon(self, attempts: Attempts) -> Exception:
        """Return what becomes of a row for which nothing more is sent: where the run was hopeless it has failed."""
        if self._client.is_hopeless and attempts.refusal:
            return self._reject(attempts.refusal)
        return Abandoned()

    def _reject(self, fault: RowError) -> RowError:
        return self._hopeless.reject(self._client.clean(fault))

    async def _back_off(self, request: Request, wait_s: float) -> None:
        """Wait before another attempt, or until the run ends and nothing is sent; let others have the slot."""
        self._requests.lend_slot(request)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._client.ending.wait()
        await self._requests.return_slot(request)

    def _reask(self, request: Request, fault: RowError) -> bytes:
        self._client.stats.reasked += 1
        turns = [("user", REASK.format(fault=fault.message))]
        if fault.raw:  # many servers refuse an empty turn
            turns.insert(0, ("assistant", fault.raw))
        return self._plan.prompt.extend(request.body, turns)
