"""One request to a chat server: sent when its limits allow it, and what came back classified.

Whatever a server says in an error passes `clean` before it is printed: secrets masked, fit for one
line. An answer is never altered, also where it is shown to the model again.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from llmfilter.api import faults
from llmfilter.api.completion import Completion, parse_completion
from llmfilter.errors import Abandoned, Faulty, Retryable, RowError, RunError, UsageError
from llmfilter.jsontext import parse_json
from llmfilter.server.endpoint import Endpoint, Mask
from llmfilter.server.exchange import Reply, Stale, Wire
from llmfilter.server.limit.limit import Limit, Ticket
from llmfilter.stats import Stats
from llmfilter.words import printable

Fault = TypeVar("Fault", bound=RowError | RunError)
MESSAGE_CHARS_MOST = 1000
LIMIT_S = 600.0  # so long without one success, or asked to wait for longer: the run is hopeless
SAID_AFTER_S = 5.0  # without one success: who watches wants to know what is waited for


class Counted(Protocol):
    """What counts the requests that were sent for it."""

    attempts: int


class Chat:
    """A client for one endpoint. To be made on a running loop; `close` it in the end.

    answers: how many there have been; draining: set once nothing may be sent any more; on_wait gets a message
    when the server is waited for, and when it is back.
    """

    on_wait: Callable[[str], None] = staticmethod(lambda message: None)

    def __init__(self, endpoint: Endpoint, timeout_s: float, limit: Limit, stats: Stats) -> None:
        self._wire = Wire(endpoint, timeout_s)
        self._mask = endpoint.mask
        self.limit = limit
        self.stats = stats
        self.answers = 0
        self._is_waiting = self._has_said_full = False
        self.draining = asyncio.Event()

    @property
    def at_server(self) -> int:
        """Return how many requests are sent and not answered yet."""
        return self._wire.at_server

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    def drain(self) -> None:
        """Send nothing more: what waits to be sent is abandoned, what is under way goes on."""
        self.draining.set()
        self.limit.drain()
        self._wire.drain()

    async def send(self, body: bytes, sender: Counted) -> Completion:
        """Send a request once, when its turn comes; return the completion.

        Raise Retryable where another attempt may help, RowError, RunError, or Abandoned while draining.
        """
        is_again = False
        while True:
            if self.draining.is_set():
                raise Abandoned
            ticket = await self.limit.turn()
            self._count(sender, 1)
            try:
                completion = self._completion(await self._wire.post(body, is_again))
                break
            except Stale:
                self.limit.release(ticket)
                is_again = True
            except (RowError, RunError) as fault:
                self._learn(self.clean(fault), ticket)
                raise fault from None
            except Abandoned:  # it was not sent yet
                self._count(sender, -1)
                self.limit.release(ticket)
                raise
            except BaseException:
                self.limit.release(ticket)
                raise
        self.limit.answered(ticket)
        if self._is_waiting:
            self._is_waiting = False
            self.on_wait("the server answers again")
        self.answers += 1
        self.stats.answer_s.add(asyncio.get_running_loop().time() - ticket.sent_at)
        self.stats.billed_prompt += completion.prompt_tokens
        self.stats.billed_completion += completion.completion_tokens
        return completion

    def _count(self, sender: Counted, requests: int) -> None:
        self.stats.requests += requests
        self.stats.retries += requests * bool(sender.attempts)
        sender.attempts += requests

    async def models(self) -> list[str]:
        """Return the names of the server's models; raise RowError or RunError."""
        try:
            document = parse_json(self._body(await self._wire.models()))
            return [model["id"] for model in document["data"]]
        except (RowError, RunError) as fault:
            raise self.clean(fault) from None
        except (ValueError, TypeError, LookupError):
            raise RowError("server", "it sent no list of models") from None

    def _learn(self, fault: RowError | RunError, ticket: Ticket) -> None:
        """Tell the limit what became of a request; raise RunError where that ends the run."""
        if isinstance(fault, RunError) or not isinstance(fault, Retryable) or fault.kind == "server":
            self.limit.answered(ticket)
            if isinstance(fault, Faulty) and (end := faults.classify_hidden(fault.document)):
                raise self.clean(end)
            return
        if not fault.is_refusal:
            self.limit.failed(ticket)
        else:
            self.stats.refusals += 1
            self.limit.refused(ticket, fault.after_s)
            if (fault.after_s or 0) > LIMIT_S:
                raise RunError(
                    f"the server asks to wait {fault.after_s:.0f} s ({fault.message}): "
                    "give the same command again after that"
                )
        if self.limit.stuck_s >= SAID_AFTER_S and (fault.is_refusal or self.limit.away):
            self._say_waiting(fault)
        if self.limit.stuck_s >= LIMIT_S:
            raise RunError(
                f"the server has answered nothing for {LIMIT_S / 60:.0f} minutes, at last with {fault.message}: "
                "give the same command again later"
            )

    def _say_waiting(self, fault: Retryable) -> None:
        """Say once that the server is waited for; of one without room only the first time, as windows may be short."""
        if self._is_waiting or (fault.is_refusal and self._has_said_full):
            return
        self._has_said_full |= fault.is_refusal
        self._is_waiting = not fault.is_refusal
        what = "has no room" if fault.is_refusal else "does not answer"
        self.on_wait(f"the server {what} ({fault.message}): waiting for it, {LIMIT_S / 60:.0f} minutes at most")

    def clean(self, fault: Fault) -> Fault:
        """Return an error without secrets, as short as a line of ours may be, and without what a terminal obeys."""
        fault.message = printable(self._mask.text(fault.message), MESSAGE_CHARS_MOST)
        if isinstance(fault, RowError) and fault.raw is not None:
            fault.raw = self._mask.text(fault.raw)
        return fault

    def _body(self, reply: Reply) -> bytes:
        """Return the body of an answer with status 200; raise what another status means."""
        if reply.status != 200:
            headers = {name.lower(): self._mask.text(value) for name, value in reply.headers.items()}
            raise faults.classify(reply.status, headers, self._mask(reply.body))
        return reply.body

    def _completion(self, reply: Reply) -> Completion:
        body = self._body(reply)
        try:
            return parse_completion(body)
        except Faulty:  # an error, which is masked before anything is cut off it
            return parse_completion(self._mask(body))


_LISTED_MOST = 20
_NAME_CHARS_MOST = 100  # characters of a model's name


async def only_model(chat: "Chat", mask: Mask, is_dry: bool) -> str:
    """Return the server's model, if it has just one; else raise UsageError that lists them.

    is_dry: nothing else will be asked of the server.
    """
    try:
        models: list[Any] = list(await chat.models())
    except (RowError, RunError) as error:
        raise UsageError(
            f"no model was named, and the server could not be asked for one ({error})"
            f"{': give -m NAME, which needs no server' if is_dry else _advice(error)}"
        ) from None
    finally:
        await chat.close()
    names = [each for each in models if isinstance(each, str) and each.isprintable()]
    if len(names) == len(models) == 1:
        return names[0]
    shown = ", ".join(printable(mask.text(name), _NAME_CHARS_MOST) for name in names[:_LISTED_MOST])
    more = ", …" if len(names) > _LISTED_MOST else ""
    raise UsageError(f"which model? Give -m NAME; the server has: {shown or 'none that can be named'}{more}")


def _advice(error: RowError | RunError) -> str:
    """Return what to do where the server can't be asked for its model."""
    if isinstance(error, RunError):
        return ""  # it says so itself
    if isinstance(error, Retryable) and error.kind in ("network", "timeout"):
        return f": {error.advice}"
    return ": check $OPENAI_API_KEY" if error.status == 403 else ": give -m NAME"
