"""Requests to a chat server over one pooled aiohttp session, retried and paced.

aiohttp's errors are turned into ours here, and nowhere else.
"""

import asyncio
import random
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import aiohttp
from yarl import URL

from llmfilter import faults
from llmfilter.completion import Faulty
from llmfilter.endpoint import Endpoint
from llmfilter.errors import Abandoned, Retryable, RowError, RunError, printable
from llmfilter.pace import Pace
from llmfilter.record import parse_json
from llmfilter.stats import Stats
from llmfilter.wire import Wire

T = TypeVar("T")

BODY_BYTES_MAX = 16 << 20  # of an answer, also when unpacked
CONNECT_S = 30.0
LIMIT_S = 600.0  # so long without one success, or asked to wait for longer: the run is hopeless
REFUSED_MOST = 32  # distinct rows refused before any success: the server refuses every row
_MASK = b"[masked]"


class Counted(Protocol):
    """What counts the requests that were sent for it."""

    attempts: int


class Chat:
    """A client for one endpoint. To be made on a running loop; `close` it in the end."""

    def __init__(self, endpoint: Endpoint, timeout_s: float, retries: int, pace: Pace, stats: Stats) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._retries = retries
        self._pace = pace
        self._stats = stats
        self._url = URL(endpoint.url)
        self._deadlines = Deadlines(timeout_s)
        self._waiting: set[asyncio.Task[Any]] = set()
        self._refused = 0
        self._succeeded = False
        self._limited_since: float | None = None
        self.draining = False
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **endpoint.headers}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            # One timer for all requests instead of one each: see Deadlines.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=False,
        )
        self._wire = None if endpoint.proxy else Wire(self._session, self._url, headers)

    async def close(self) -> None:
        """Closes the connections."""
        self._deadlines.close()
        await self._session.close()

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
                answer = read(await self._fetch("POST", self._url, body))
            except Retryable as fault:
                if isinstance(fault, Faulty) and (end := faults.read_hidden_error(fault.document)):
                    raise end from None
                if fault.is_limit:
                    waits += 1
                    self._wait_out(fault, sent_at)
                else:
                    failures += 1
                    if failures > self._retries:
                        self._check_refused(fault)
                        raise
                wait_s = faults.wait_s(fault.after_s, failures or waits, random.random())
                await self._interruptible(asyncio.sleep, wait_s)
            except RowError as fault:
                self._pace.accept(sent_at)
                self._succeeded |= fault.status is None
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
            document = parse_json(await self._fetch("GET", self._endpoint.models_url, None))
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
        if fault.status in faults.REFUSALS:
            self._refused += 1
            if self._refused >= REFUSED_MOST:
                raise RunError(f"the server refused the first {REFUSED_MOST} rows, the last with {fault.message}")

    async def _fetch(self, method: str, url: URL | str, body: bytes | None) -> bytes:
        """One attempt; the body of an answer with status 200. Raises RowError, Retryable or RunError."""
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in a task
        self._deadlines.start(task)
        try:
            if self._wire and body is not None:
                response = await self._wire.post(body)
            else:
                response = await self._session.request(
                    method, url, data=body, allow_redirects=False, proxy=self._endpoint.proxy
                )
            try:
                content = await _read_bounded(response)
            except BaseException:
                response.close()
                raise
        except asyncio.CancelledError:
            if not self._deadlines.is_over(task):
                raise
            task.uncancel()
            raise Retryable("timeout", f"no answer within {self._timeout_s:g} s (--timeout)") from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Retryable("network", self._mask(_describe(error).encode()).decode()) from None
        finally:
            self._deadlines.end(task)
        content = self._mask(content)
        if response.status != 200:
            raise faults.read_error(response.status, response.headers, content)
        return content

    def _mask(self, text: bytes) -> bytes:
        for secret in self._endpoint.secrets:
            if secret in text:
                text = text.replace(secret, _MASK)
        return text


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    stream = response.content
    while not stream.at_eof():
        chunk = await stream.readany()
        chunks.append(chunk)
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise Faulty(f"the answer is larger than {BODY_BYTES_MAX >> 20} MiB", chunks[0])
    body = b"".join(chunks)
    encoding = response.headers.get("Content-Encoding", "identity")
    return body if encoding == "identity" else _unpack(body, encoding)


def _unpack(body: bytes, encoding: str) -> bytes:
    """Undoes a compression that was not asked for, but not beyond BODY_BYTES_MAX."""
    unpacker = zlib.decompressobj(wbits=47)  # zlib or gzip, whichever its header says
    try:
        text = unpacker.decompress(body, BODY_BYTES_MAX)
    except zlib.error:
        raise Faulty(f"the answer is compressed ({printable(encoding)}), which was not asked for", b"") from None
    if unpacker.unconsumed_tail:
        raise Faulty(f"the answer is larger than {BODY_BYTES_MAX >> 20} MiB when unpacked", b"")
    return text


def _describe(error: BaseException) -> str:
    """An aiohttp error in words for the user."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return printable(f"cannot connect to {error.host}:{error.port}: {error.os_error}")
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection without an answer"
    if isinstance(error, aiohttp.ClientResponseError):
        return printable(f"the answer is not valid HTTP: {error.message}")
    if isinstance(error, asyncio.TimeoutError):
        return f"cannot connect within {CONNECT_S:g} s"
    return printable(f"the connection broke: {str(error) or type(error).__name__}")


class Deadlines:
    """Cancels tasks that take longer than `timeout_s`: one timer for all, since they share one timeout."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._due: dict[asyncio.Task[Any], float] = {}  # the oldest first
        self._over: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, task: asyncio.Task[Any]) -> None:
        """From now on the task's time runs."""
        self._due[task] = self._loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._sweep)

    def end(self, task: asyncio.Task[Any]) -> None:
        """The task was in time, or has noticed that it wasn't."""
        self._due.pop(task, None)
        self._over.discard(task)

    def is_over(self, task: asyncio.Task[Any]) -> bool:
        """Whether the task was cancelled by its deadline."""
        return task in self._over

    def close(self) -> None:
        """Stops the timer."""
        if self._timer:
            self._timer.cancel()

    def _sweep(self) -> None:
        now = self._loop.time()
        for task, due in list(self._due.items()):
            if due > now:
                self._timer = self._loop.call_at(due, self._sweep)
                return
            del self._due[task]
            self._over.add(task)
            task.cancel()
        self._timer = None
