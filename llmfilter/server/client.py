"""One request to a chat server: sent when its limits allow it, and what came back classified.

Whatever a server says in an error passes `clean` before it is printed: secrets masked, fit for one
line. An answer is never altered, also where it is shown to the model again.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from llmfilter import ending
from llmfilter.api import faults
from llmfilter.api.completion import Completion, parse_completion
from llmfilter.ending import Ending
from llmfilter.errors import Abandoned, Fault, Faulty, Retryable, RowError, RunError
from llmfilter.server.exchange import Again, Reply, Stale, Wire
from llmfilter.server.limit.history import Ticket
from llmfilter.server.limit.turns import Limit
from llmfilter.server.mask import Mask
from llmfilter.stats import Stats
from llmfilter.words import printable

F = TypeVar("F", bound=Fault)
MESSAGE_CHARS_MOST = 1000
LIMIT_S = 600.0  # so long without one success, or asked to wait for longer: the run is hopeless
NOTICES_MOST = 3  # different ones about answers, each said once
SAID_AFTER_S = 5.0  # without one success: who watches wants to know what is waited for


class Sender(Protocol):
    """Whose request it is.

    sent: how many requests were sent for it.
    """

    sent: int

    def is_own_fault(self, answers: int) -> bool:
        """Tell whether it keeps failing, or being refused, while others are answered."""


class Client:
    """A client for one endpoint. To be made on a running loop; `close` it in the end.

    answers: how many requests were answered, if only with an error.
    is_hopeless: nothing was answered for LIMIT_S.
    ending: of the run; once it has begun nothing is sent any more.
    say: gets a message when the server is waited for, and when it is back.
    """

    def __init__(self, wire: Wire, limit: Limit, stats: Stats, ending: Ending, say: Callable[[str], None]) -> None:
        self._wire = wire
        self._mask = wire.mask
        self._say = say
        self.limit = limit
        self.stats = stats
        self.answers = 0
        self._noticed: set[str] = set()
        self._is_waiting = self._has_said_full = self.is_hopeless = False
        self.ending = ending
        ending.tell(limit.drain)
        ending.tell(wire.drain)

    @property
    def at_server(self) -> int:
        """Return how many requests are sent and not answered yet."""
        return self._wire.at_server

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    async def send(self, body: bytes, sender: Sender) -> Completion:
        """Send a request once, when its turn comes; return the completion.

        Raise Retryable where another attempt may help, RowError, RunError, or Abandoned while draining.
        """
        is_again = False
        while True:
            if self.ending.has_begun:
                raise Abandoned
            ticket = self.limit.take(sender) or await self.limit.turn(sender)
            self._count_sent(sender)
            try:
                completion = self._completion(await self._wire.post(body, is_again))
                break
            except Again as again:
                self.limit.release(ticket)
                is_again |= isinstance(again, Stale)
            except Fault as error:  # kept in no variable: with its traceback that would be a circle around the body
                raise self._learn(error, ticket, sender) from None
            except Abandoned:  # it was not sent yet
                self._count_unsent(sender)
                self.limit.release(ticket)
                raise
            except BaseException:
                self.limit.release(ticket)
                raise
        self._note_answer(ticket)
        self.stats.billed = self.stats.billed.plus(completion.usage)
        if completion.notice and completion.notice not in self._noticed and len(self._noticed) < NOTICES_MOST:
            self._noticed.add(completion.notice)
            self._say(completion.notice)
        return completion

    def _count_sent(self, sender: Sender) -> None:
        self.stats.requests += 1
        self.stats.retries += sender.sent > 0
        sender.sent += 1

    def _count_unsent(self, sender: Sender) -> None:
        """Take back what was counted of a request that was not sent after all."""
        sender.sent -= 1
        self.stats.retries -= sender.sent > 0
        self.stats.requests -= 1

    def _note_answer(self, ticket: Ticket) -> None:
        self.limit.answered(ticket)
        self.answers += 1
        if self._is_waiting:
            self._is_waiting = False
            self._say("the server answers again")

    def _learn(self, error: Fault, ticket: Ticket, sender: Sender) -> Fault:
        """Tell the limit what became of a request; return the error as it may be printed, or what ends the run."""
        fault = self.clean(faults.timed(error, self.limit.took_s(ticket), self._wire.is_streaming))
        if not isinstance(fault, Retryable) or fault.kind == "server":
            self._note_answer(ticket)
            end = faults.classify_hidden(fault.document) if isinstance(fault, Faulty) else None
            return self.clean(end) if end else fault
        if fault.is_unreachable:
            self._count_unsent(sender)
        is_own = sender.is_own_fault(self.answers)
        self._tell_limit(fault, ticket, is_own)
        if fault.is_refusal and (fault.after_s or 0) > LIMIT_S:
            return RunError(
                f"the server asks to wait {fault.after_s:.10g} s ({fault.message}): "
                "give the same command again after that"
            )
        if self.limit.stuck_s >= SAID_AFTER_S and not is_own and (fault.is_refusal or self.limit.is_away):
            self._say_waiting(fault)
        if self.limit.stuck_s >= LIMIT_S:
            self._give_up(fault)
        return fault

    def _tell_limit(self, fault: Retryable, ticket: Ticket, is_own: bool) -> None:
        if fault.is_refusal:
            self.stats.refusals += 1
            self.limit.refused(ticket, fault.after_s, is_own)
        elif fault.overdue_s is not None:
            self.limit.overdue(ticket, is_own)
        else:
            self.limit.failed(ticket, is_own, fault.is_unreachable)

    def _give_up(self, fault: Retryable) -> None:
        """End the run: nothing was answered for too long."""
        self.is_hopeless = True
        self.ending.begin(
            ending.STOPPED_EARLY,
            f"the server has answered nothing for {LIMIT_S / 60:.0f} minutes, at last with {fault.message}: "
            "give the same command again later",
            whole_status=ending.SOME_FAILED,
        )

    def _say_waiting(self, fault: Retryable) -> None:
        """Say once that the server is waited for; of one without room only the first time, as windows may be short."""
        if self._is_waiting or (fault.is_refusal and self._has_said_full):
            return
        self._has_said_full |= fault.is_refusal
        self._is_waiting = not fault.is_refusal
        what = "has no room" if fault.is_refusal else "does not answer"
        self._say(f"the server {what} ({fault.message}): waiting for it, {LIMIT_S / 60:.0f} minutes at most")

    def clean(self, fault: F) -> F:
        """Return an error as it may be printed."""
        return clean(fault, self._mask)

    def _completion(self, reply: Reply) -> Completion:
        body = body_of(reply, self._mask)
        try:
            return parse_completion(body)
        except Faulty:  # an error, which is masked before anything is cut off it
            return parse_completion(self._mask(body))


def clean(fault: F, mask: Mask) -> F:
    """Return an error without secrets, as short as a line of ours may be, and without what a terminal obeys."""
    words: dict[str, str] = {"message": printable(mask.text(fault.message), MESSAGE_CHARS_MOST)}
    if isinstance(fault, RowError) and fault.raw is not None:
        words["raw"] = mask.text(fault.raw)
    return fault.but(**words)


def body_of(reply: Reply, mask: Mask) -> bytes:
    """Return the body of an answer with status 200; raise what another status means."""
    if reply.status != 200:
        headers = {name.lower(): mask.text(value) for name, value in reply.headers.items()}
        raise faults.classify(reply.status, headers, mask(reply.body))
    return reply.body
