"""One request to a chat server: sent when its limits allow it, and what came back classified.

Whatever a server says in an error passes `clean` before it is printed: secrets masked, fit for one
line. An answer is never altered, also where it is shown to the model again.
"""

import asyncio
from typing import Protocol, TypeVar

from llmfilter import faults
from llmfilter.completion import Completion, Faulty, parse_completion
from llmfilter.endpoint import Endpoint
from llmfilter.errors import Abandoned, Retryable, RowError, RunError, printable
from llmfilter.pace import Pace
from llmfilter.record import parse_json
from llmfilter.stats import Stats
from llmfilter.wire import Reply, Wire

Fault = TypeVar("Fault", bound=RowError | RunError)
MESSAGE_CHARS_MOST = 1000
LIMIT_S = 600.0  # so long without one success, or asked to wait for longer: the run is hopeless


class Counted(Protocol):
    """What counts the requests that were sent for it."""

    attempts: int


class Chat:
    """A client for one endpoint. To be made on a running loop; `close` it in the end.

    at_server: how many requests are under way; draining: set once nothing may be sent any more.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float, rate_most: float, stats: Stats) -> None:
        self._wire = Wire(endpoint, timeout_s)
        self._mask = endpoint.mask
        self._pace = Pace(rate_most, sleep=self._sleep)
        self._limited_since: float | None = None
        self.stats = stats
        self.at_server = 0
        self.draining = asyncio.Event()

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    def drain(self) -> None:
        """Send nothing more: what waits to be sent is abandoned, what is under way goes on."""
        self.draining.set()

    @property
    def is_limited(self) -> bool:
        """Whether sending is slowed down to what the server bears."""
        return self._pace.is_limited

    async def send(self, body: bytes, sender: Counted) -> Completion:
        """Send a request once, when its turn comes; return the completion.

        Raise Retryable where another attempt may help, RowError, RunError, or Abandoned while draining.
        """
        if self.draining.is_set():
            raise Abandoned
        sent_at = await self._pace.turn()
        self.stats.retries += bool(sender.attempts)
        self.stats.requests += 1
        sender.attempts += 1
        self.at_server += 1
        try:
            completion = self._completion(await self._wire.post(body))
        except (RowError, RunError) as fault:
            self._adapt(fault, sent_at)
            raise self.clean(fault) from None
        finally:
            self.at_server -= 1
        self._pace.accept(sent_at)
        self.stats.answer_s.add(asyncio.get_running_loop().time() - sent_at)
        self._limited_since = None
        self.stats.billed_prompt += completion.prompt_tokens
        self.stats.billed_completion += completion.completion_tokens
        return completion

    async def models(self) -> list[str]:
        """Return the names of the server's models; raise RowError or RunError."""
        try:
            document = parse_json(self._body(await self._wire.get_models()))
            return [model["id"] for model in document["data"]]
        except (RowError, RunError) as fault:
            raise self.clean(fault) from None
        except (ValueError, TypeError, LookupError):
            raise RowError("server", "it sent no list of models") from None

    async def _sleep(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self.draining.wait()
        except TimeoutError:
            return
        raise Abandoned

    def _adapt(self, fault: RowError | RunError, sent_at: float) -> None:
        if isinstance(fault, Faulty) and (end := faults.classify_hidden(fault.document)):
            raise self.clean(end)
        if isinstance(fault, Retryable):
            if fault.is_refusal:
                self._wait_out(fault, sent_at)
            elif (fault.after_s or 0) > LIMIT_S:
                fault.after_s = None  # a fault is not waited out for so long
        else:
            self._pace.accept(sent_at)

    def _wait_out(self, fault: Retryable, sent_at: float) -> None:
        self.stats.refusals += 1
        if fault.status == 429 or fault.after_s is not None:  # a model that loads says nothing about rates
            self._pace.reject(sent_at)
        now = asyncio.get_running_loop().time()
        if self._limited_since is None:
            self._limited_since = now
        message = self.clean(fault).message
        if (fault.after_s or 0) > LIMIT_S:
            raise RunError(
                f"the server asks to wait {fault.after_s:.0f} s ({message}): give the same command again after that"
            )
        if now - self._limited_since > LIMIT_S:
            raise RunError(
                f"the server has refused every request for {LIMIT_S / 60:.0f} minutes ({message}): "
                "give the same command again later"
            )

    def clean(self, fault: Fault) -> Fault:
        """Return an error without secrets, as short as a line of ours may be, and without what a terminal obeys."""
        fault.message = printable(self._mask.text(fault.message), MESSAGE_CHARS_MOST)
        if isinstance(fault, RowError) and fault.raw is not None:
            fault.raw = self._mask.text(fault.raw)
        return fault

    def _body(self, reply: Reply) -> bytes:
        """Return the body of an answer with status 200; raise what another status means."""
        if reply.status != 200:
            headers = {name.lower(): self._mask.text(value) for name, value in reply.headers.items()}
            raise faults.classify(reply.status, headers, self._mask(reply.body))
        return reply.body

    def _completion(self, reply: Reply) -> Completion:
        body = self._body(reply)
        try:
            return parse_completion(body)
        except Faulty:  # an error, which is masked before anything is cut off it
            return parse_completion(self._mask(body))
