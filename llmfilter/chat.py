"""Requests to a chat server: sent at its pace, and sent again where that helps."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from llmfilter import faults
from llmfilter.completion import Faulty
from llmfilter.endpoint import Endpoint
from llmfilter.errors import Abandoned, Retryable, RowError, RunError
from llmfilter.pace import Pace
from llmfilter.record import parse_json
from llmfilter.stats import Stats
from llmfilter.wire import Reply, Wire

T = TypeVar("T")

LIMIT_S = 600.0  # so long without one success, or asked to wait for longer: the run is hopeless
REFUSED_MOST = 32  # distinct rows refused before any success: the server refuses every row


class Counted(Protocol):
    """What counts the requests that were sent for it."""

    attempts: int


class Chat:
    """A client for one endpoint. To be made on a running loop; `close` it in the end."""

    def __init__(self, endpoint: Endpoint, timeout_s: float, retries: int, pace: Pace, stats: Stats) -> None:
        self._wire = Wire(endpoint, timeout_s)
        self._mask = endpoint.mask
        self._retries = retries
        self._pace = pace
        self._stats = stats
        self._waiting: set[asyncio.Task[Any]] = set()
        self._refused = 0
        self._succeeded = False
        self._limited_since: float | None = None
        self.draining = False

    async def close(self) -> None:
        """Closes the connections."""
        await self._wire.close()

    @property
    def waiting(self) -> int:
        """Requests that wait to be sent, or sent again."""
        return len(self._waiting)

    @property
    def is_limited(self) -> bool:
        """Whether sending is slowed down to what the server bears."""
        return self._pace.is_limited

    def drain(self) -> None:
        """Send nothing more: what waits to be sent is abandoned, what is under way goes on."""
        self.draining = True
        for task in self._waiting:
            task.cancel()

    async def ask(self, body: bytes, read: Callable[[bytes], T], asker: Counted) -> T:
        """Sends a request until `read` takes an answer's body, or the attempts are used up.

        Raises RowError (also what `read` raises), RunError, or Abandoned while draining.
        """
        failures = waits = 0
        while True:
            sent_at = await self._turn()
            asker.attempts += 1
            self._stats.requests += 1
            self._stats.retries += bool(failures or waits)
            try:
                answer = read(self._check(await self._wire.post(body)))
            except Retryable as fault:
                fault.message = self._mask.text(fault.message)  # aiohttp quotes what it can't read
                if isinstance(fault, Faulty) and (end := faults.classify_hidden(fault.document)):
                    raise end from None
                if fault.is_refusal:
                    waits += 1
                    self._wait_out(fault, sent_at)
                else:
                    failures += 1
                    if (fault.after_s or 0) > LIMIT_S:
                        fault.after_s = None  # a fault is not waited out for so long
                    if failures > self._retries:
                        self._check_refused(fault)
                        raise
                wait_s = faults.wait_s(fault.after_s, failures or waits, random.random())
                await self._interruptible(asyncio.sleep, wait_s)
            except RowError as fault:
                self._pace.accept(sent_at)
                if fault.status is None:  # an answer, if not a usable one
                    self._succeeded, self._limited_since = True, None
                self._check_refused(fault)
                raise
            else:
                self._pace.accept(sent_at)
                self._succeeded = True
                self._limited_since = None
                return answer

    async def models(self) -> list[str]:
        """The names of the server's models; raises RowError or RunError."""
        try:
            document = parse_json(self._check(await self._wire.get_models()))
            return [model["id"] for model in document["data"]]
        except (ValueError, TypeError, LookupError):
            raise RowError("server", "it sent no list of models") from None

    async def _turn(self) -> float:
        if self._pace.is_limited or self.draining:
            return await self._interruptible(self._pace.turn)
        return await self._pace.turn()

    async def _interruptible(self, wait: Callable[..., Awaitable[T]], *args: float) -> T:
        """Waits, unless the run drains: a row that is not at the server costs nothing to give back."""
        if self.draining:
            raise Abandoned
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in a task
        self._waiting.add(task)
        try:
            return await wait(*args)
        except asyncio.CancelledError:
            if not self.draining:
                raise
            task.uncancel()
            raise Abandoned from None
        finally:
            self._waiting.discard(task)

    def _wait_out(self, fault: Retryable, sent_at: float) -> None:
        if fault.status == 429 or fault.after_s is not None:  # a model that loads says nothing about rates
            self._pace.reject(sent_at)
        now = asyncio.get_running_loop().time()
        if self._limited_since is None:
            self._limited_since = now
        if (fault.after_s or 0) > LIMIT_S:
            raise RunError(
                f"the server asks to wait {fault.after_s:.0f} s ({fault.message}): "
                "give the same command again after that"
            )
        if now - self._limited_since > LIMIT_S:
            raise RunError(
                f"the server has refused every request for {LIMIT_S / 60:.0f} minutes ({fault.message}): "
                "give the same command again later"
            )

    def _check_refused(self, fault: RowError) -> None:
        """Raises RunError if, before any success, a fault shows that the server refuses every row."""
        if self._succeeded or self._stats.answered:
            return
        if fault.kind == "network":
            raise RunError(f"the server can't be reached: {fault.message}: check -u (or $OPENAI_BASE_URL)")
        if isinstance(fault, faults.ModelMissing):
            raise RunError(f"the server has no such model ({fault.message}): check -m and -u")
        if fault.status in faults.REJECTIONS:
            self._refused += 1
            if self._refused >= REFUSED_MOST:
                raise RunError(f"the server refused the first {REFUSED_MOST} rows, the last with {fault.message}")

    def _check(self, reply: Reply) -> bytes:
        """The body of an answer with status 200; raises RowError, Retryable or RunError for others."""
        body = self._mask(reply.body)
        if reply.status != 200:
            headers = {name.lower(): self._mask.text(value) for name, value in reply.headers.items()}
            raise faults.classify(reply.status, headers, body)
        return body
