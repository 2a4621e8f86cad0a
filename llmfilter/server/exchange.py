"""One exchange with the server over a pooled aiohttp session: a request out, a bounded answer in.

Only this module, `direct` and `network` know aiohttp. Directly requests go the quick way, by a proxy the session's.
A connection that was kept may have been closed by the server meanwhile: if it breaks at once, before a byte of
the answer came, that is Stale, and the request may go again on a connection of its own. What breaks after the
server has had time to think is a failure.
"""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import aiohttp
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from llmfilter.api import faults
from llmfilter.api.stream import BYTES_MOST, Stream
from llmfilter.errors import Abandoned, Faulty, Retryable, RowError
from llmfilter.server import direct, network
from llmfilter.server.endpoint import Endpoint
from llmfilter.words import printable

BODY_BYTES_MAX = BYTES_MOST  # of an answer, also when unpacked
ERROR_BYTES_MAX = 64 << 10  # of an error: what comes behind is not read
MODELS_S = 30.0  # for the list of models: it is no model that thinks
ERROR_BODY_S = 10.0  # for an error's body, once its head is there
FINAL_BODY_S = 1.0  # where the status ends the run
END_S = 1.0  # for the end of an answer, once the stream in it has ended
STALE_S = 0.5  # a connection that breaks later was not closed before
CLOSE_S = 1.0
WATCH_S = 1.0  # between looks at whether a connection is still there


class Reply(NamedTuple):
    """What came back: status, headers (names in any case), body; of an error the beginning of its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Again(Exception):
    """The same request is to be sent again at once, in a turn of its own."""


class Stale(Again):
    """A connection that was kept broke at once, with nothing answered: the server had closed it meanwhile."""


class Wire:
    """Connections to one endpoint, to be made on a running loop.

    timeout_s: for one exchange, whole.
    at_server: how many requests are sent and not answered yet.
    is_streaming: whether streams are asked for.
    """

    is_streaming = False

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        # As typed: a signed query must not be quoted in another way.
        self._url = URL(endpoint.url, encoded=endpoint.url.isascii())
        self._models_url = URL(endpoint.models_url, encoded=endpoint.models_url.isascii())
        self._proxy = URL(endpoint.proxy) if endpoint.proxy else None
        # Not the session's: those would go to the proxy too, with the server's key among them.
        self._headers = CIMultiDict(endpoint.headers)
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self.mask = endpoint.mask
        self._session = _open_session()
        self._other: aiohttp.ClientSession | None = None  # each of its requests opens a connection of its own
        self._direct: direct.Direct | None = None
        if not self._proxy and direct.is_known():
            self._direct = direct.Direct(_open_session(), self._url, self._headers)
        self._unsent: set[asyncio.Timeout] = set()  # of exchanges that look a name up, or connect
        self._is_draining = False
        self.at_server = 0

    def drain(self) -> None:
        """Let what is not sent yet raise Abandoned."""
        self._is_draining = True
        for scope in self._unsent:
            scope.reschedule(self._loop.time())

    async def close(self) -> None:
        """Close the connections; leave one whose other side reads nothing more to the system."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                for each in (self._direct, self._session, self._other):
                    if each:
                        await each.close()

    async def post(self, body: bytes, is_again: bool = False) -> Reply:
        """Send a chat request and return the reply; is_again: after Stale, on a connection of its own.

        Raise Retryable (`network`, `timeout`, `server`), RowError (`server`: too large), RunError, Stale, or
        Abandoned where it was not sent yet.
        """
        if self._direct is None:
            return await self._request("POST", self._url, body, self._timeout_s, is_again)
        asked_at = self._loop.time()
        due = asked_at + self._timeout_s
        connection = None if is_again else self._direct.take()
        came = None
        try:
            if connection is None:
                async with self._until(due):
                    connection = await self._direct.connect()
            self.at_server += 1
            try:
                answer = await connection.ask(self._direct.encode(body), due)
                if isinstance(answer, bytes):
                    reply = Reply(200, {}, answer)
                else:
                    head, stream = answer
                    came = _stream_in(head.code, head.headers)
                    content = await _read(stream, head.code, due, came)
                    reply = Reply(head.code, head.headers, _check(head.code, head.headers, content))
            finally:
                self.at_server -= 1
        except BaseException as error:
            is_used = connection is not None and connection.is_used
            if connection:
                connection.abort()  # a close would first send what nobody takes
            raise self._translate(error, asked_at, self._timeout_s, is_used, came) from None
        self._direct.keep(connection)
        return reply

    async def models(self) -> Reply:
        """Ask for the list of models; raise as `post` does."""
        return await self._request("GET", self._models_url, None, min(MODELS_S, self._timeout_s))

    async def _request(
        self, method: str, url: URL, body: bytes | None, timeout_s: float, is_again: bool = False
    ) -> Reply:
        """Send a request the session's way, and return the reply."""
        asked_at = self._loop.time()
        due = asked_at + timeout_s
        sending = SimpleNamespace(is_used=False, is_sent=False)
        came = None
        try:
            async with self._until(due) as scope:
                sending.note_sent = partial(self._note_sent, sending, scope)
                response = await self._session_for(is_again).request(
                    method,
                    url,
                    data=body,
                    headers=self._headers,
                    proxy=self._proxy,
                    allow_redirects=False,
                    trace_request_ctx=sending,
                )
                try:
                    came = _stream_in(response.status, response.headers)
                    with self._watched(response):
                        content = await _read(response.content, response.status, due, came)
                finally:
                    response.close()
        except BaseException as error:
            raise self._translate(error, asked_at, timeout_s, sending.is_used, came) from None
        finally:
            self.at_server -= sending.is_sent
        return Reply(response.status, response.headers, _check(response.status, response.headers, content))

    @contextlib.asynccontextmanager
    async def _until(self, due: float) -> AsyncIterator[asyncio.Timeout]:
        """Bound the time of an exchange: raise Overdue, or Abandoned when draining before it was sent."""
        is_unsent = True
        try:
            async with asyncio.timeout(None) as scope:
                timer = self._loop.call_at(due, lambda: scope.reschedule(self._loop.time() + direct.LAST_LOOK_S))
                self._unsent.add(scope)
                try:
                    yield scope
                finally:
                    is_unsent = scope in self._unsent
                    self._unsent.discard(scope)
                    timer.cancel()
        except TimeoutError:
            if not scope.expired():
                raise
            raise Abandoned if self._is_draining and is_unsent else direct.Overdue from None

    @contextlib.contextmanager
    def _watched(self, response: aiohttp.ClientResponse) -> Iterator[None]:
        """Tell who reads a body when its connection is gone: aiohttp doesn't, where bytes of it were not valid."""
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            content, connection = response.content, response.connection
            if connection and connection.closed and not content.is_eof() and content.exception() is None:
                content.set_exception(aiohttp.ClientPayloadError())
            else:
                timer = self._loop.call_later(WATCH_S, look)

        timer = self._loop.call_later(WATCH_S, look)
        try:
            yield
        finally:
            timer.cancel()

    def _session_for(self, is_again: bool) -> aiohttp.ClientSession:
        if not is_again:
            return self._session
        self._other = self._other or _open_session(force_close=True)
        return self._other

    def _note_sent(self, sending: SimpleNamespace, scope: asyncio.Timeout) -> None:
        self._unsent.discard(scope)
        self.at_server += not sending.is_sent
        sending.is_sent = True

    def _translate(
        self, error: BaseException, asked_at: float, timeout_s: float, is_used: bool, came: Stream | None
    ) -> BaseException:
        """Return what has gone wrong in an exchange as one of our errors.

        is_used: the connection was kept before; came: what had come of a stream.
        """
        fault: BaseException
        if isinstance(error, direct.Overdue):
            of = " (--timeout)" if timeout_s == self._timeout_s else ""
            fault = Retryable("timeout", f"no answer within {timeout_s:g} s{of}")
        elif not isinstance(error, TimeoutError | aiohttp.ClientError | HttpProcessingError | OSError):
            return error
        elif is_used and direct.is_unanswered(error) and self._loop.time() - asked_at < STALE_S:
            return Stale()
        else:
            fault = network.classify(error)
        return fault.but(raw=came.text) if came and isinstance(fault, RowError) else fault


def _open_session(force_close: bool = False) -> aiohttp.ClientSession:
    """Return a session; force_close: each request gets a connection of its own."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_use)
    trace.on_request_headers_sent.append(_note_sent)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,
            ttl_dns_cache=60,
            force_close=force_close,
            resolver=network.Resolver(),
            socket_factory=network.open_socket,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=network.CONNECT_S),
        auto_decompress=False,
        trace_configs=[trace],
    )


async def _note_use(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
    context.trace_request_ctx.is_used = True


async def _note_sent(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
    context.trace_request_ctx.note_sent()


def _stream_in(status: int, headers: Mapping[str, str]) -> Stream | None:
    """Return what puts an answer together, if it is a stream of events that can be read as it comes."""
    is_stream = headers.get("Content-Type", "").lower().startswith("text/event-stream")
    return Stream() if is_stream and status == 200 and "Content-Encoding" not in headers else None


async def _read(stream: aiohttp.StreamReader, status: int, due: float, came: Stream | None) -> bytes:
    """Return the body of an answer, up to a little more than is allowed; of an error what comes in time.

    came: puts the answer together; the completion is what is returned then.
    """
    chunks: list[bytes] = []
    if came:
        start = b""
        while not start and not stream.at_eof():
            start = (await stream.readany()).lstrip()
        if start[:1] not in (b"{", b"<"):  # else it is none, whatever the head says
            return await _put_together(stream, came, start)
        chunks.append(start)
    if status == 200:
        await _collect(stream, BODY_BYTES_MAX, chunks)
    else:
        patience_s = FINAL_BODY_S if status in faults.FINAL else ERROR_BODY_S
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):  # the status says enough
            async with asyncio.timeout_at(min(due, asyncio.get_running_loop().time() + patience_s)):
                await _collect(stream, ERROR_BYTES_MAX, chunks)
    return b"".join(chunks)


async def _put_together(stream: aiohttp.StreamReader, came: Stream, start: bytes) -> bytes:
    """Return the completion that a stream adds up to; once it is whole, nothing can break it any more."""
    try:
        came.feed(start)
        while not came.is_over and not stream.at_eof():
            came.feed(await stream.readany())
    except (aiohttp.ClientError, OSError, direct.Overdue):
        if not came.is_whole:
            raise
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError, direct.Overdue):
        async with asyncio.timeout(END_S):  # so that the connection can take another request
            while not stream.at_eof():
                await stream.readany()
    return came.end()


async def _collect(stream: aiohttp.StreamReader, most: int, chunks: list[bytes]) -> None:
    size = 0
    while size <= most and not stream.at_eof():
        chunks.append(await stream.readany())
        size += len(chunks[-1])


def _check(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a body unpacked, of an error its first ERROR_BYTES_MAX; raise RowError if an answer is too large."""
    is_error = status != 200
    most = ERROR_BYTES_MAX if is_error else BODY_BYTES_MAX
    encoding = headers.get("Content-Encoding")
    if encoding and (is_error or len(body) <= most) and (encoding := encoding.strip().lower()) not in ("", "identity"):
        body = _unpack(body, encoding, most + 1, is_error)
    if len(body) <= most:
        return body
    if not is_error:
        raise RowError("server", f"the answer is larger than {BODY_BYTES_MAX >> 20} MiB")
    return body[:most]


def _unpack(body: bytes, encoding: str, most: int, is_error: bool) -> bytes:
    """Undo a compression that was not asked for, up to `most` bytes; raise Faulty if it is none, in an answer."""
    try:
        return zlib.decompressobj(wbits=47).decompress(body, most)  # zlib or gzip, whichever its header says
    except zlib.error:
        if is_error:
            return b""
        what = f"compressed ({printable(encoding)}), which was not asked for"
        raise Faulty(
            f"the answer is {what}", b"", shape=(what, "let it, or the proxy before it, send them as they are")
        ) from None
