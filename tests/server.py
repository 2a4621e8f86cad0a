"""A scripted HTTP server on a free port of this machine: a test says what each request gets.

server.answer = lambda request: completion({"label": "spam"})     # what is answered
server.hold()                                                     # from now on answers wait …
server.wait_for(3)                                                # … until 3 requests are here …
server.release()                                                  # … and then all go out
"""

import asyncio
import inspect
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

PATIENCE_S = 30.0  # guards against a hang; nothing is expected to take that long


@dataclass(frozen=True, eq=False)
class Request:
    """One request as it came; names of headers in lower case, values of one name with commas between."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def prompt(self) -> Any:
        """The content of the last message."""
        return self.json["messages"][-1]["content"]


@dataclass(frozen=True)
class Response:
    """A well-formed answer; see Reply for others."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})

    def encode(self) -> bytes:
        head = [f"HTTP/1.1 {self.status} Said", f"Content-Length: {len(self.body)}"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*head, "", ""]).encode() + self.body


# Bytes go out as they are, and the connection is closed behind them; so do the pieces of an iterator.
# None resets the connection.
Reply = Response | bytes | AsyncIterator[bytes] | None
Answer = Callable[[Request], Reply | Awaitable[Reply]]


def completion(content: Any, finish_reason: str | None = "stop", usage: Any = None, **message: Any) -> Response:
    """A chat completion; content that is not text is sent as JSON text."""
    text = content if content is None or isinstance(content, str) else json.dumps(content, separators=(",", ":"))
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    usage = usage or {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return Response(json.dumps({"id": "chat-1", "choices": [choice], "usage": usage}).encode())


def error(status: int, message: str, headers: Mapping[str, str] | None = None, **fields: Any) -> Response:
    """An error in OpenAI's shape; `fields` are `type`, `code` and the like."""
    body = json.dumps({"error": {"message": message, **fields}}).encode()
    return Response(body, status, {"Content-Type": "application/json", **(headers or {})})


def echo(request: Request) -> Response:
    """The answer unless a test gives another one: `{"echo": PROMPT}`; one model is listed, `tiny`."""
    if request.path.partition("?")[0].endswith("/models"):
        return Response(b'{"object":"list","data":[{"id":"tiny","object":"model"}]}')
    return completion({"echo": request.prompt})


class Server:
    """The server: runs in a thread while it is entered.

    answer: what a request gets (may be async); requests: all that came, in order; answered: how
    many answers were sent; bugs: exceptions of `answer`, raised when the server is left.
    """

    def __init__(self) -> None:
        self.answer: Answer = echo
        self.requests: list[Request] = []
        self.answered = 0
        self.bugs: list[Exception] = []
        self.port = 0
        self.thread_id = 0
        self._holds: Callable[[Request], bool] = lambda request: False
        self._held: dict[Request, asyncio.Event] = {}
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        self._wait(lambda: self.port > 0, "the server to start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        if self.bugs:
            raise self.bugs[0]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def prompts(self) -> list[Any]:
        """What was asked, in order."""
        return [request.prompt for request in self.requests]

    def hold(self, which: Callable[[Request], bool] = lambda request: True) -> None:
        """From now on the answers to these requests wait for `release`."""
        self._holds = which

    def release(self, *requests: Request) -> None:
        """Sends the answers to these requests; to all if none is named, and nothing is held any more."""

        def release() -> None:
            if not requests:
                self._holds = lambda request: False
            for request in requests or list(self._held):
                self._held.pop(request).set()

        self._loop.call_soon_threadsafe(release)

    def has(self, count: int) -> bool:
        """Whether so many requests have come in all."""
        return len(self.requests) >= count

    def wait_for(self, count: int) -> list[Request]:
        """Returns when so many requests have come in all."""
        self._wait(lambda: self.has(count), f"{count} requests")
        return self.requests

    def wait_answered(self, count: int) -> None:
        """Returns when so many answers have been sent in all."""
        self._wait(lambda: self.answered >= count, f"{count} answers")

    def _wait(self, is_reached: Callable[[], bool], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(is_reached, PATIENCE_S), (
                f"waited {PATIENCE_S:g} s for {what}; {len(self.requests)} came, {self.answered} were answered"
            )

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self.thread_id = threading.get_native_id()
        connections: set[Connection] = set()
        server = await self._loop.create_server(lambda: Connection(self, connections), "127.0.0.1", 0, backlog=2048)
        with self._changed:
            self.port = server.sockets[0].getsockname()[1]
            self._changed.notify_all()
        await self._stopping.wait()
        server.close()
        for connection in list(connections):
            connection.abort()
        await server.wait_closed()

    async def reply(self, request: Request) -> Reply:
        """What a request gets, once it may have it."""
        if self._holds(request):
            self._held[request] = asyncio.Event()
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        if request in self._held:
            await self._held[request].wait()
        answer = self.answer(request)
        return await answer if inspect.isawaitable(answer) else answer

    def count_answer(self) -> None:
        with self._changed:
            self.answered += 1
            self._changed.notify_all()


class Connection(asyncio.Protocol):
    """One client: its requests are answered one after the other."""

    def __init__(self, server: Server, connections: "set[Connection]") -> None:
        self._server = server
        self._connections = connections
        self._received = b""
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        if self._task:
            self._task.cancel()

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        request = self._take()
        if request:
            self._task = asyncio.create_task(self._reply(request))

    def _take(self) -> Request | None:
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for name, _, value in (line.partition(":") for line in lines):
            before = headers.get(name.lower())
            headers[name.lower()] = value.strip() if before is None else f"{before}, {value.strip()}"
        if len(body) < (size := int(headers.get("content-length", 0))):
            return None
        method, path, _ = first.split(" ")
        self._received = body[size:]
        return Request(method, path, headers, body[:size])

    async def _reply(self, request: Request) -> None:
        try:
            reply = await self._server.reply(request)
        except Exception as bug:
            self._server.bugs.append(bug)
            reply = None
        if isinstance(reply, Response):
            self._transport.write(reply.encode())
        elif reply is None:
            linger = struct.pack("ii", 1, 0)  # for no time: closing sends a reset
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
        else:
            if isinstance(reply, bytes):
                self._transport.write(reply)
            else:
                async for piece in reply:
                    self._transport.write(piece)
            self._transport.close()
        self._server.count_answer()
