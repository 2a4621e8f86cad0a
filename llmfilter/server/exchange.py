"""One exchange with the server over a pooled aiohttp session: a request out, a bounded answer in.

Only this module and `direct` know aiohttp. Directly requests go the quick way, through a proxy the session's.
A connection that was kept may have been closed by the server meanwhile: if it breaks before a byte of the
answer came, the request is sent again at once, once, on a connection of its own.
"""

import asyncio
import contextlib
import os
import re
import ssl
import zlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from llmfilter.api import faults
from llmfilter.errors import Faulty, Retryable, RowError, RunError
from llmfilter.server import direct
from llmfilter.server.endpoint import Endpoint
from llmfilter.words import printable

BODY_BYTES_MAX = 16 << 20  # of an answer, also when unpacked
ERROR_BYTES_MAX = 64 << 10  # of an error: what comes behind is not read
CONNECT_S = 30.0
CLOSE_S = 1.0
# What OpenSSL finds in an answer that is no TLS, depending on its version.
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
# X509_V_ERR_*, from OpenSSL's x509_vfy.h.
_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}
_OTHER_NAME = {62, 64}


class Reply(NamedTuple):
    """What came back: status, headers (names in any case), body; of an error the beginning of its body."""

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
        self._session = _open_session()
        self._fresh: aiohttp.ClientSession | None = None  # each of its requests opens a connection of its own
        self._quick = self._make_quick() if not self._proxy else None

    def _make_quick(self) -> direct.Quick | None:
        if not direct.is_known():
            return None
        try:
            return direct.Quick(self._session, self._url, self._headers)
        except (TypeError, AttributeError):
            return None

    @property
    def is_quick(self) -> bool:
        """Return whether chat requests go the quick way."""
        return self._quick is not None

    async def close(self) -> None:
        """Close the connections; leave one whose other side reads nothing more to the system."""
        self._deadlines.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._session.close()
                if self._fresh:
                    await self._fresh.close()

    async def exchange(self, body: bytes | None) -> Reply:
        """Send a chat request and return the reply; without a body ask for the list of models.

        Raise Retryable (`network`, `timeout`, `server`), RowError (`server`: too large) or RunError.
        """
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in a task
        self._deadlines.start(task)
        try:
            response = await self._send(body)
            try:
                return Reply(response.status, response.headers, await _read_body(response))
            except BaseException:
                response.close()
                raise
        except asyncio.CancelledError:
            if not self._deadlines.is_over(task):
                raise
            task.uncancel()
            raise Retryable("timeout", f"no answer within {self._timeout_s:g} s (--timeout)") from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise _translate(error) from None
        finally:
            self._deadlines.end(task)

    async def _send(self, body: bytes | None) -> aiohttp.ClientResponse:
        try:
            if self._quick and body is not None:
                return await self._quick.post(body)
            return await self._request(self._session, body)
        except direct.Stale:
            self._fresh = self._fresh or _open_session(force_close=True)
            return await self._request(self._fresh, body)

    async def _request(self, session: aiohttp.ClientSession, body: bytes | None) -> aiohttp.ClientResponse:
        """Send a request the session's way; return once the response's head is there."""
        method, url = ("POST", self._url) if body is not None else ("GET", self._models_url)
        connection = SimpleNamespace(is_used=False)
        try:
            return await session.request(
                method,
                url,
                data=body,
                headers=self._headers,
                proxy=self._proxy,
                allow_redirects=False,
                trace_request_ctx=connection,
            )
        except (aiohttp.ClientError, OSError) as error:
            if connection.is_used and direct.is_unanswered(error):
                raise direct.Stale from None
            raise


def _open_session(force_close: bool = False) -> aiohttp.ClientSession:
    """Return a session; force_close: each request gets a connection of its own."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_use)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, force_close=force_close),
        cookie_jar=aiohttp.DummyCookieJar(),
        # One timer for all exchanges instead of one each: see Deadlines.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        auto_decompress=False,
        trace_configs=[trace],
    )


async def _note_use(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
    context.trace_request_ctx.is_used = True


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return an answer's body, of an error its first ERROR_BYTES_MAX; raise RowError if an answer is too large."""
    is_error = response.status != 200
    most = ERROR_BYTES_MAX if is_error else BODY_BYTES_MAX
    chunks, size = [], 0
    stream = response.content
    while size <= most and not stream.at_eof():
        chunk = await stream.readany()
        chunks.append(chunk)
        size += len(chunk)
    body = b"".join(chunks)
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if size <= most and encoding not in ("", "identity"):
        body = _unpack(body, encoding, most + 1, is_error)
    if len(body) <= most:
        return body
    response.close()
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
        raise Faulty(f"the answer is compressed ({printable(encoding)}), which was not asked for", b"") from None


def _translate(error: BaseException) -> Retryable | RunError:
    """Return an error of aiohttp or a socket as one of ours. It quotes nothing that the server sent."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return faults.classify_proxy(error.status, error.message)
    if isinstance(error, aiohttp.ClientConnectorError):
        return _classify_connect(error)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return _broken("the server closed the connection without an answer")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Retryable("network", "the connection broke within the answer")
    if isinstance(error, aiohttp.ClientResponseError):
        what = re.split("[:'\"\n]", error.message)[0]  # behind it aiohttp quotes the server
        return Retryable("network", f"the answer is not valid HTTP: {printable(what)}")
    if isinstance(error, TimeoutError):
        return Retryable("network", f"cannot connect within {CONNECT_S:g} s")
    return _broken(printable(f"the connection broke: {str(error) or type(error).__name__}"))


def _broken(message: str) -> Retryable:
    fault = Retryable("network", message)
    # What speaks the one often closes without a word on the other.
    fault.advice += ", and whether it begins with http:// or https://"
    return fault


def _classify_connect(error: aiohttp.ClientConnectorError) -> Retryable | RunError:
    fault = error.os_error
    is_proxy = isinstance(error, aiohttp.ClientProxyConnectionError)
    words = printable(f"cannot connect to {'the proxy ' if is_proxy else ''}{error.host}:{error.port}:") + " "
    if isinstance(fault, ssl.SSLCertVerificationError):
        untrusted = Retryable("network", f"{words}its certificate: {printable(fault.verify_message)}")
        untrusted.advice = _advice(fault) or untrusted.advice
        return untrusted
    if isinstance(fault, ssl.SSLError) and fault.reason in _NO_TLS:  # it will speak none the next time either
        return RunError(f"the server can't be reached: {words}it does not speak TLS: give http://, not https://")
    # The event loop's own words name the address again.
    why = os.strerror(fault.errno) if fault.errno and fault.errno > 0 else fault.strerror or str(fault)
    return Retryable("network", f"{words}{printable(why)}")


def _advice(fault: ssl.SSLCertVerificationError) -> str:
    if fault.verify_code in _OTHER_NAME:
        return "give -u with a name that the certificate is for"
    if fault.verify_code not in _UNKNOWN_AUTHORITY:
        return ""
    path = os.environ.get("SSL_CERT_FILE")  # OpenSSL reads it, and says nothing
    if path and not os.access(path, os.R_OK):
        return printable(f"$SSL_CERT_FILE names {path!r}, which cannot be read")
    return "if its authority is your own, name its certificate in $SSL_CERT_FILE"


class Deadlines:
    """Cancels tasks that take longer than `timeout_s`: one timer for all, since they share one timeout."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._due: dict[asyncio.Task[Any], float] = {}  # the oldest first
        self._over: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, task: asyncio.Task[Any]) -> None:
        """Start the task's time."""
        self._due[task] = self._loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._sweep)

    def end(self, task: asyncio.Task[Any]) -> None:
        """Forget the task: it was in time, or has noticed that it wasn't."""
        self._due.pop(task, None)
        self._over.discard(task)

    def is_over(self, task: asyncio.Task[Any]) -> bool:
        """Return whether the task was cancelled by its deadline."""
        return task in self._over

    def close(self) -> None:
        """Stop the timer."""
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
