"""The quick way through aiohttp: POSTs to one URL over connections that are kept here.

A session builds each request's URL, headers, cookies, body and timers anew, and each answer becomes an object with
a pool, a timer and traces of its own: more than half of the time that a small request takes. All requests of a run
are alike but for their body, and most answers too. So here head and body go out in one write; an *ordinary* answer,
a whole one whose head says nothing about its body but the length, is taken as it is; all else is read by aiohttp's
parser. The connection waits for the next request. What that needs to know of aiohttp's inside is in this module only;
with an aiohttp whose inside is another (`is_known`) requests go the session's way.
"""

import asyncio
import re
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import TimerNoop
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader
from multidict import CIMultiDict
from yarl import URL

Parsed = tuple[RawResponseMessage, StreamReader]  # an answer's head, and its body as far as it has come
Answer = bytes | Parsed  # the body of an ordinary one
IDLE_S = 15.0  # servers close what is idle for longer: uvicorn after 5 s, nginx after 75
LAST_LOOK_S = 0.1
_PARSER_PARAMS: dict[str, Any] = {
    "timer": TimerNoop(),
    "auto_decompress": False,
    "read_until_eof": True,
    "read_bufsize": 1 << 16,
    "max_line_size": 8190,  # of a response's head: aiohttp's own limits
    "max_field_size": 8190,
    "max_headers": 128,
}
# None that tells how the body is to be read: most differ from those in their first letter.
_FIELD = (
    rb"(?:[!-9;-BD-SV-bd-sv-~][!-9;-~]*+:[\t -~]*+"
    rb"|(?!(?i:content-|transfer-|connection:|trailer:|upgrade:))[!-9;-~]++:[\t -~]*+"
    rb"|(?i:content-type:)[\t -~]*+|(?i:connection: ?keep-alive))\r\n"
)
_ORDINARY = re.compile(
    rb"HTTP/1\.1 200 [\t -~]*+\r\n(?:%b)*+(?i:content-length): ?([0-9]{1,7})\r\n(?:%b)*+\r\n" % (_FIELD, _FIELD)
)


class Overdue(Exception):
    """The time for an exchange is over."""


def is_unanswered(error: BaseException) -> bool:
    """Return whether a connection broke before a byte of the answer came."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # else it is the part of the head that came
    return isinstance(error, OSError)


class Connection(ResponseHandler):
    """One connection, for one exchange after the other.

    is_used: it has had a request, so the server may close it at any time.
    free_since: when it was kept for another one, on the loop's clock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.is_used = False
        self.free_since = 0.0
        self._answer: asyncio.Future[Answer] | None = None
        self._body: StreamReader | None = None  # of an answer whose head was handed over
        self._is_parsed = False  # the parser has had a part of this answer
        self._due = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    def ask(self, request: bytes, due: float) -> "asyncio.Future[Answer]":
        """Send a request; return what will have its answer as soon as the head is there.

        What breaks before that is the future's exception, afterwards the body's: Overdue where the whole answer is
        not there at `due` (on the loop's clock), HttpProcessingError, and what aiohttp and sockets raise.
        """
        answer = self._answer = self._loop.create_future()
        self._body = None
        self._due = due
        self._is_parsed = False
        if self._alarm is None:  # one for many exchanges
            self._alarm = self._loop.call_at(due, self._look_last)
        if self.transport is None:
            self.set_exception(aiohttp.ServerDisconnectedError())
        else:
            self.transport.write(request)
        return answer

    @property
    def is_idle(self) -> bool:
        """Return whether nobody waits for anything from it."""
        return self._answer is None and (self._body is None or self._body.is_eof())

    @property
    def has_unsent(self) -> bool:
        """Return whether a part of a request waits to be sent, although its answer is there."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set up the parser, which reads all answers."""
        super().connection_made(transport)
        self.set_response_params(**_PARSER_PARAMS)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell who waits, and stop the timer."""
        if self._alarm:
            self._alarm.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take an ordinary answer; parse another; break off where nothing was asked for."""
        if self._answer is not None and not self._is_parsed:
            head = _ORDINARY.match(data)
            if head and len(data) >= (end := head.end() + int(head[1])):
                if data[end:].strip(b"\r\n"):
                    self.force_close()  # that came unasked
                self._hand_over(data[head.end() : end])
                return
            self._is_parsed = True
        elif data and self.is_idle:
            self.abort()  # it would be taken for the next answer
            return
        super().data_received(data)

    def feed_data(self, data: Parsed, size: int = 0) -> None:
        """Hand over an answer, as its head is parsed."""
        if 100 <= data[0].code < 200 and data[0].code != 101:
            return  # an interim one: the answer follows
        if self._answer is None:
            self.force_close()  # it came behind the answer, unasked
        else:
            self._body = data[1]
            self._hand_over(data)

    def _hand_over(self, answer: Answer) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_result(answer)
        self._answer = None

    def resume_reading(self, *args: Any, **kwargs: Any) -> None:
        """Go on reading where it was paused; aiohttp 3.14 asks for that behind each body, and parses once more."""
        if self._reading_paused:
            super().resume_reading(*args, **kwargs)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Tell who waits for an answer, or reads its body, that no more will come."""
        super().set_exception(exc, *cause)
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc)
        self._answer = None
        if self._body and not self._body.is_eof() and self._body.exception() is None:  # aiohttp tells only some
            self._body.set_exception(exc if isinstance(exc, Overdue) else aiohttp.ClientPayloadError(str(exc)))

    def _look_last(self) -> None:
        """Read once more, at the due time: after a halt of the whole process timers run before sockets are read."""
        self._alarm = None
        if self.is_idle:
            return
        if self._loop.time() < self._due:  # the timer was an earlier exchange's
            self._alarm = self._loop.call_at(self._due, self._look_last)
        else:
            self._alarm = self._loop.call_later(LAST_LOOK_S, self._end, self._due)

    def _end(self, due: float) -> None:
        self._alarm = None
        if self.is_idle or due != self._due:
            self._look_last()
            return
        self.set_exception(Overdue())
        self.abort()


class Direct:
    """POSTs to one URL, over connections that it keeps."""

    def __init__(self, session: aiohttp.ClientSession, url: URL, headers: CIMultiDict[str]) -> None:
        """Take a session over, for its connector."""
        assert isinstance(session.connector, aiohttp.TCPConnector)
        self._connector = session.connector
        self._loop = self._connector._loop
        self._connector._factory = partial(Connection, self._loop)  # type: ignore[assignment]
        self._session = session
        self._request = aiohttp.ClientRequest("POST", url, headers=headers, loop=self._loop, session=session)
        self._request.headers.popall("Content-Length", None)
        lines = [f"{name}: {value}\r\n" for name, value in self._request.headers.items()]
        self._head = f"POST {url.raw_path_qs} HTTP/1.1\r\n{''.join(lines)}Content-Length: ".encode()
        self._free: list[Connection] = []  # the one that was used last is taken first

    def encode(self, body: bytes) -> bytes:
        """Return a request as it is sent."""
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)

    def take(self) -> Connection | None:
        """Return a connection that was kept, if there is one."""
        while self._free:
            connection = self._free.pop()
            if connection.is_connected() and self._loop.time() - connection.free_since < IDLE_S:
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """Return a new connection."""
        connection = await self._connector._create_connection(self._request, [], self._session.timeout)
        assert isinstance(connection, Connection)
        return connection

    def keep(self, connection: Connection) -> None:
        """Keep a connection whose answer was read for another request, if it can take one."""
        if connection.should_close or not connection.is_idle or connection.has_unsent:
            connection.abort()
            return
        connection.is_used = True
        connection.free_since = self._loop.time()
        self._free.append(connection)

    async def close(self) -> None:
        """Close the connections that were kept."""
        for connection in self._free:
            connection.abort()
        await self._session.close()


class _Nowhere(asyncio.Transport):
    def write(self, data: object) -> None:
        """Drop it."""

    def is_closing(self) -> bool:
        """Stay open."""
        return False

    def abort(self) -> None:
        """Close nothing."""


def is_known() -> bool:
    """Try out whether aiohttp's inside is as `Connection` and `Direct` know it; needs a running loop."""
    loop = asyncio.get_running_loop()
    far = loop.time() + 1e6
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    try:
        connection = Connection(loop)
        connection.connection_made(_Nowhere())
        bodies = []
        for parts in ((ok,), (b"HTTP/1.1 100 Continue\r\n\r\n", ok), (ok[:-1], ok[-1:])):
            answer = connection.ask(b"", far)
            for part in parts:
                connection.data_received(part)
            got = answer.result()
            bodies.append(got if isinstance(got, bytes) else got[1].read_nowait())
        is_kept = connection.is_idle and connection.is_connected() and not connection.should_close
        broken = connection.ask(b"", far)
        connection.connection_lost(None)
        connection.abort()
        return (
            bodies == [b"{}"] * 3
            and is_kept
            and is_unanswered(broken.exception() or Overdue())
            and hasattr(aiohttp.TCPConnector, "_create_connection")
        )
    except (TypeError, AttributeError, asyncio.InvalidStateError):
        return False
