"""A chat server whose answers take a while: slow_server.py PORT SHORTEST_S LONGEST_S

It stands thousands of requests in flight at little cost. Each answer holds the moment at which it was
sent, by the machine's monotonic clock: whoever prints it can tell how long ago that was.
"""

import asyncio
import random
import re
import sys
import time

import uvloop

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
BODY = (
    rb'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,"message":'
    rb'{"role":"assistant","content":"{\"label\": \"positive\", \"score\": 4, \"sent_at\": %.6f}"},'
    rb'"finish_reason":"stop"}],"usage":{"prompt_tokens":98,"completion_tokens":21,"total_tokens":119}}'
)


class Connection(asyncio.Protocol):
    def __init__(self, shortest_s: float, longest_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay_s = shortest_s, longest_s
        self._received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while size := request_size(self._received):
            self._received = self._received[size:]
            self._loop.call_later(random.uniform(*self._delay_s), self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            body = BODY % time.monotonic()
            self._transport.write(HEAD % (len(body), body))


def request_size(received: bytes) -> int:
    """How many bytes the first request has, or 0 while it is not complete."""
    end = received.find(b"\r\n\r\n") + 4
    if end < 4:
        return 0
    length = LENGTH.search(received, 0, end)
    size = end + (int(length[1]) if length else 0)
    return size if size <= len(received) else 0


async def serve(port: int, shortest_s: float, longest_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(shortest_s, longest_s), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
