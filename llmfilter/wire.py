"""One exchange with the server over a pooled aiohttp session: a request out, a bounded answer in.

Only this module knows aiohttp. A session builds each request's URL, headers, cookies, body and timers
anew and sends the body from a task of its own: more than half of the time that a small request
takes. All requests of a run are alike but for their body, so here the head is encoded once and goes
to a pooled connection of the session together with the body, in one write. What that needs to know
of aiohttp's inside is in `_Quick` only, and the reason why pyproject.toml names the versions of
aiohttp so narrowly. Through a proxy requests go the usual way.
"""

import asyncio
import contextlib
import ssl
import zlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import aiohttp
from aiohttp.connector import Connection
from aiohttp.helpers import TimerNoop
from multidict import CIMultiDict
from yarl import URL

from llmfilter import faults
from llmfilter.completion import Faulty
from llmfilter.deadlines import Deadlines
from llmfilter.endpoint import Endpoint
from llmfilter.errors import Retryable, printable

BODY_BYTES_MAX = 16 << 20  # of an answer, also when unpacked
CONNECT_S = 30.0
CLOSE_S = 1.0
_LINE_BYTES_MAX = 8190  # of a response's head: aiohttp's own limits
_HEADERS_MAX = 128
_BUFFER_BYTES = 1 << 16
_TIMER = TimerNoop()
# When the response object is made, nothing is left to be written; it only asks how much it was.
_WRITTEN: Any = SimpleNamespace(output_size=0)


class Reply(NamedTuple):
    """What came back: status, headers (names in any case), body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """Connections to one endpoint, to be made on a running loop. timeout_s: for one exchange, whole."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        # As typed: a signed query must not be quoted in another way.
        self._url = URL(endpoint.url, encoded=endpoint.url.isascii())
        self._models_url = URL(endpoint.models_url, encoded=endpoint.models_url.isascii())
        self._proxy = URL(endpoint.proxy) if endpoint.proxy else None
        # Not the session's: those would go to the proxy too, with the server's key among them.
        self._headers = CIMultiDict(endpoint.headers)
        self._timeout_s = timeout_s
        self._deadlines = Deadlines(timeout_s)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            # One timer for all exchanges instead of one each: see Deadlines.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=False,
        )
        self._quick = None if self._proxy else _Quick(self._session, self._url, self._headers)

    async def close(self) -> None:
        """Closes the connections; one whose other side reads nothing more is left to the system."""
        self._deadlines.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._session.close()

    async def post(self, body: bytes) -> Reply:
        """Sends a chat request; raises Retryable (`network`, `timeout`), Faulty (`server`),
        or what a proxy's refusal means."""
        return await self._exchange(body)

    async def get_models(self) -> Reply:
        """Asks for the list of models; raises as `post` does."""
        return await self._exchange(None)

    async def _exchange(self, body: bytes | None) -> Reply:
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in a task
        self._deadlines.start(task)
        try:
            response = await self._send(body)
            try:
                return Reply(response.status, response.headers, await _read_bounded(response))
            except BaseException:
                response.close()
                raise
        except asyncio.CancelledError:
            if not self._deadlines.is_over(task):
                raise
            task.uncancel()
            raise Retryable("timeout", f"no answer within {self._timeout_s:g} s (--timeout)") from None
        except aiohttp.ClientHttpProxyError as error:
            raise faults.read_error(error.status, {}, b"") from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Retryable("network", _describe(error)) from None
        finally:
            self._deadlines.end(task)

    async def _send(self, body: bytes | None) -> aiohttp.ClientResponse:
        if self._quick and body is not None:
            return await self._quick.post(body)
        method, url = ("POST", self._url) if body is not None else ("GET", self._models_url)
        return await self._session.request(
            method, url, data=body, headers=self._headers, proxy=self._proxy, allow_redirects=False
        )


class _Quick:
    """POSTs bytes to one URL over a session's connections."""

    def __init__(self, session: aiohttp.ClientSession, url: URL, headers: Mapping[str, str]) -> None:
        assert session.connector is not None  # the session is open
        self._session = session
        self._connector = session.connector
        self._loop = self._connector._loop
        self._request = aiohttp.ClientRequest(
            "POST",
            url,
            headers=CIMultiDict(headers),
            loop=self._loop,
            session=session,
            response_class=aiohttp.ClientResponse,
        )
        self._request.headers.popall("Content-Length", None)
        lines = [f"{name}: {value}\r\n" for name, value in self._request.headers.items()]
        self._head = f"POST {url.raw_path_qs} HTTP/1.1\r\n{''.join(lines)}Content-Length: ".encode()
        self._info = self._request.request_info

    async def post(self, body: bytes) -> aiohttp.ClientResponse:
        """Sends a body; returns once the response's head is there. Raises what aiohttp and sockets raise."""
        connection = await self._connect()
        try:
            response = self._send(connection, body)
            return await response.start(connection)
        except BaseException:
            if connection.protocol is not None:
                connection.protocol.abort()  # a close would first send what nobody takes
            connection.close()
            raise

    async def _connect(self) -> Connection:
        while True:
            connection = await self._connector.connect(self._request, traces=[], timeout=self._session.timeout)
            # What came while it was idle would be taken for the answer to the next request.
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()

    def _send(self, connection: Connection, body: bytes) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        assert protocol is not None and protocol.transport is not None  # it is connected
        protocol.set_response_params(
            timer=_TIMER,
            auto_decompress=False,
            read_until_eof=True,
            read_bufsize=_BUFFER_BYTES,
            max_line_size=_LINE_BYTES_MAX,
            max_field_size=_LINE_BYTES_MAX,
            max_headers=_HEADERS_MAX,
        )
        protocol.transport.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        return aiohttp.ClientResponse(
            "POST",
            self._request.url,
            writer=None,
            continue100=None,
            timer=_TIMER,
            request_info=self._info,
            traces=[],
            loop=self._loop,
            session=self._session,
            stream_writer=_WRITTEN,
        )


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
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    return body if encoding in ("", "identity") else _unpack(body, encoding)


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
        proxy = "the proxy " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
        words = f"cannot connect to {proxy}{error.host}:{error.port}: {error.os_error}"
        if isinstance(error.os_error, ssl.SSLCertVerificationError):
            words += "; if its authority is your own, name its certificate in $SSL_CERT_FILE"
        return printable(words)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection without an answer"
    if isinstance(error, aiohttp.ClientResponseError):
        return printable(f"the answer is not valid HTTP: {error.message}")
    if isinstance(error, asyncio.TimeoutError):
        return f"cannot connect within {CONNECT_S:g} s"
    return printable(f"the connection broke: {str(error) or type(error).__name__}")
