"""The quick way through aiohttp for the one request that a run sends over and over.

A session builds each request's URL, headers, cookies, body and timers anew and sends the body from a
task of its own: more than half of the time that a small request takes. All requests of a run are
alike but for their body, so here the head is encoded once and goes to a pooled connection of the
session together with the body, in one write. What this needs to know of aiohttp's inside is in this
module only, and the reason why pyproject.toml names the versions of aiohttp so narrowly. Through a
proxy requests go the usual way.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from aiohttp import ClientRequest, ClientResponse, ClientSession
from aiohttp.connector import Connection
from aiohttp.helpers import TimerNoop
from multidict import CIMultiDict
from yarl import URL

_LINE_BYTES_MAX = 8190  # of a response's head: aiohttp's own limits
_HEADERS_MAX = 128
_BUFFER_BYTES = 1 << 16
_TIMER = TimerNoop()
# When the response object is made, nothing is left to be written; it only asks how much it was.
_WRITTEN: Any = SimpleNamespace(output_size=0)


class Wire:
    """POSTs bytes to one URL over a session's connections."""

    def __init__(self, session: ClientSession, url: URL, headers: Mapping[str, str]) -> None:
        assert session.connector is not None  # the session is open
        self._session = session
        self._connector = session.connector
        self._loop = self._connector._loop
        self._request = ClientRequest(
            "POST", url, headers=CIMultiDict(headers), loop=self._loop, session=session, response_class=ClientResponse
        )
        self._request.headers.popall("Content-Length", None)
        lines = [f"{name}: {value}\r\n" for name, value in self._request.headers.items()]
        self._head = f"POST {url.raw_path_qs} HTTP/1.1\r\n{''.join(lines)}Content-Length: ".encode()
        self._info = self._request.request_info

    async def post(self, body: bytes) -> ClientResponse:
        """Sends a body; returns once the response's head is there. Raises what aiohttp and sockets raise."""
        connection = await self._connector.connect(self._request, traces=[], timeout=self._session.timeout)
        try:
            response = self._send(connection, body)
            return await response.start(connection)
        except BaseException:
            connection.close()
            raise

    def _send(self, connection: Connection, body: bytes) -> ClientResponse:
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
        return ClientResponse(
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
