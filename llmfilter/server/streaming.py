"""Answers that come piece by piece (`--stream`): a way of carrying, of which nobody else knows."""

import asyncio

from llmfilter.api.stream import ask_stream, refuses_usage
from llmfilter.errors import Abandoned
from llmfilter.server.endpoint import Endpoint
from llmfilter.server.exchange import Again, Reply, Wire

TRIAL_S = 1.0  # what a server does not know it refuses at once


class StreamingWire(Wire):
    """Connections on which streams are asked for, with the tokens at their end as long as the server tells them."""

    is_streaming = True

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        super().__init__(endpoint, timeout_s)
        self._has_usage = True
        self._is_tried = False
        self._is_known = asyncio.Event()

    async def post(self, body: bytes, is_again: bool = False) -> Reply:
        """As in Wire; raise Again where the server does not tell the tokens, which it is not asked for any more."""
        await self._wait_for_trial()
        has_usage = self._has_usage
        reply = await super().post(ask_stream(body, has_usage), is_again)
        self._is_known.set()
        if has_usage and refuses_usage(reply.status, reply.body):
            self._has_usage = False
            raise Again
        return reply

    async def _wait_for_trial(self) -> None:
        """Let one request find out alone whether the server tells the tokens; the others wait for it, but not long."""
        if not self._is_tried:
            self._is_tried = True
            self._loop.call_later(TRIAL_S, self._is_known.set)
        elif not self._is_known.is_set():
            await self._is_known.wait()
            if self._is_draining:
                raise Abandoned
