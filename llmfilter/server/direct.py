"""The quick way through aiohttp: POSTs to one URL, with a head that is encoded once.

A session builds each request's URL, headers, cookies, body and timers anew and sends the body from a
task of its own: more than half of the time that a small request takes. All requests of a run are alike
but for their body, so here head and body go to a pooled connection of the session in one write, and
aiohttp reads the response. What that needs to know of aiohttp's inside is in this module only; with an
aiohttp whose inside is not known (`is_known`) requests go the session's way.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import TimerNoop
from multidict import CIMultiDict
from yarl import URL

_TIMER = TimerNoop()
# The minor versions whose inside was read, and what their ClientResponse wants beside the rest: when
# it is made, nothing is left to be written; it only asks how much it was.
_KNOWN: dict[str, dict[str, Any]] = {"3.13": {}, "3.14": {"stream_writer": SimpleNamespace(output_size=0)}}
_MINOR = ".".join(aiohttp.__version__.split(".")[:2])
_RESPONSE_PARAMS = _KNOWN.get(_MINOR, {})
_PARSER_PARAMS: dict[str, Any] = {
    "timer": _TIMER,
    "auto_decompress": False,
    "read_until_eof": True,
    "read_bufsize": 1 << 16,
    "max_line_size": 8190,  # of a response's head: aiohttp's own limits
    "max_field_size": 8190,
    "max_headers": 128,
}


class Stale(Exception):
    """A kept connection broke before a byte of the answer came: most likely it was closed meanwhile."""


def is_unanswered(error: BaseException) -> bool:
    """Return whether a connection broke before a byte of the answer came."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # else it is the part of the head that came
    return isinstance(error, OSError)


def _is_used(protocol: ResponseHandler | None) -> bool:
    """Return whether a connection has had a request: only then is there a parser for its response."""
    return protocol is not None and protocol._parser is not None


def is_known() -> bool:
    """Return whether aiohttp's inside is as `Quick` knows it, as far as that can be seen without a server."""
    return _MINOR in _KNOWN


class Quick:
    """POSTs bytes to one URL over a session's connections.

    Raise TypeError or AttributeError where aiohttp's inside is another than it knows.
    """

    def __init__(self, session: aiohttp.ClientSession, url: URL, headers: CIMultiDict[str]) -> None:
        assert session.connector is not None  # the session is open
        self._session = session
        self._connector = session.connector
        self._loop = self._connector._loop
        self._request = aiohttp.ClientRequest(
            "POST",
            url,
            headers=headers,
            loop=self._loop,
            session=session,
            response_class=aiohttp.ClientResponse,
        )
        self._request.headers.popall("Content-Length", None)
        lines = [f"{name}: {value}\r\n" for name, value in self._request.headers.items()]
        self._head = f"POST {url.raw_path_qs} HTTP/1.1\r\n{''.join(lines)}Content-Length: ".encode()
        self._info = self._request.request_info
        self._make_response = partial(
            aiohttp.ClientResponse,
            "POST",
            self._request.url,
            writer=None,
            continue100=None,
            timer=_TIMER,
            request_info=self._info,
            traces=[],
            loop=self._loop,
            session=session,
            **_RESPONSE_PARAMS,
        )
        self._try_out()

    def _try_out(self) -> None:
        protocol = ResponseHandler(self._loop)
        was_used = _is_used(protocol)
        protocol.set_response_params(**_PARSER_PARAMS)
        if was_used or not _is_used(protocol):
            raise TypeError("a used connection does not look like one")
        _ = protocol.should_close, protocol.transport, protocol.abort
        self._make_response()

    async def post(self, body: bytes) -> aiohttp.ClientResponse:
        """Send a body; return once the response's head is there. Raise Stale, and what aiohttp and sockets raise."""
        connection = await self._connect()
        is_used = _is_used(connection.protocol)
        try:
            response = self._send(connection, body)
            return await response.start(connection)
        except BaseException as error:
            if connection.protocol is not None:
                connection.protocol.abort()  # a close would first send what nobody takes
            connection.close()
            if is_used and is_unanswered(error):
                raise Stale from None
            raise

    async def _connect(self) -> Connection:
        while True:
            connection = await self._connector.connect(self._request, traces=[], timeout=self._session.timeout)
            protocol = connection.protocol
            # What came while it was idle would be taken for the answer to the next request.
            if protocol is None or not protocol.should_close or not _is_used(protocol):
                return connection
            connection.close()

    def _send(self, connection: Connection, body: bytes) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        if protocol is None or protocol.transport is None:
            raise aiohttp.ServerDisconnectedError
        protocol.set_response_params(**_PARSER_PARAMS)
        protocol.transport.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        return self._make_response()
