"""What was typed, as far as the modes need it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from llmfilter.answers.checks import Checks
from llmfilter.cache.store import NoCache
from llmfilter.input.request import Keys, Prompt
from llmfilter.pipeline import Run

if TYPE_CHECKING:
    from llmfilter.server.client import Client


class Plan(NamedTuple):
    """What was typed about requests and answers.

    prompt: makes the body of a record's request.
    keys: makes the key of a body in the cache.
    checks: what an answer must be.
    cache: the answers paid for.
    """

    prompt: Prompt
    keys: Keys
    checks: Checks
    cache: NoCache


class Asking(NamedTuple):
    """What was typed about asking.

    connect: makes the client when the first row needs it, since loading it takes longer than a run that
    the cache can answer.
    jobs: most requests in flight.
    retries: attempts after the first.
    reasks: how often a model is shown its unusable answer.
    budget: the tokens, or the money, that may be billed, or None.
    """

    connect: "Callable[[Run], Client]"
    jobs: int
    retries: int
    reasks: int
    budget: float | None
