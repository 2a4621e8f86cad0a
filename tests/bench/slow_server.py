"""A chat server whose answers take a while: slow_server.py PORT SHORTEST_S LONGEST_S [SLOTS]

Beyond so many at a time it refuses, with 429. A GET tells, as JSON, how many it took and refused since the last one.
It stands thousands of requests in flight at little cost. Each answer holds the moment at which it was
sent, by the machine's monotonic clock: whoever prints it can tell how long ago that was.
"""

import asyncio
import math
import random
import re
import sys
import time

import uvloop

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
HEAD = b"HTTP/1.1 %d Said\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
BODY = (
    rb'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,"message":'
    rb'{"role":"assistant","content":"{\"label\": \"positive\", \"score\": 4, \"sent_at\": %.6f}"},'
    rb'"finish_reason":"stop"}],"usage":{"prompt_tokens":98,"completion_tokens":21,"total_tokens":119}}'
)


class Slots:
    """How many may be under way, and are; how many were taken and refused."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.busy = self.taken = self.refused = 0


class Connection(asyncio.Protocol):
    def __init__(self, shortest_s: float, longest_s: float, slots: Slots) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay_s = shortest_s, longest_s
        self._slots = slots
        self._received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while size := request_size(self._received):
            is_question = self._received.startswith(b"GET")
            self._received = self._received[size:]
            slots = self._slots
            if is_question:
                self._write(200, b'{"taken":%d,"refused":%d}' % (slots.taken, slots.refused))
                slots.taken = slots.refused = 0
            elif slots.busy >= slots.most:
                slots.refused += 1
                self._write(429, b'{"error":{"message":"no room now"}}')
            else:
                slots.busy += 1
                self._loop.call_later(random.uniform(*self._delay_s), self._answer)

    def _answer(self) -> None:
        self._slots.busy -= 1
        if not self._transport.is_closing():
            self._slots.taken += 1
            self._write(200, BODY % time.monotonic())

    def _write(self, status: int, body: bytes) -> None:
        self._transport.write(HEAD % (status, len(body), body))


def request_size(received: bytes) -> int:
    """How many bytes the first request has, or 0 while it is not complete."""
    end = received.find(b"\r\n\r\n") + 4
    if end < 4:
        return 0
    length = LENGTH.search(received, 0, end)
    size = end + (int(length[1]) if length else 0)
    return size if size <= len(received) else 0


async def serve(port: int, shortest_s: float, longest_s: float, slots: float = math.inf) -> None:
    loop, room = asyncio.get_running_loop(), Slots(slots)
    server = await loop.create_server(lambda: Connection(shortest_s, longest_s, room), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


uvloop.run(serve(int(sys.argv[1]), *map(float, sys.argv[2:])))
