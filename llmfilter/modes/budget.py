"""How many tokens a run may be billed with (`--budget`)."""

from collections.abc import Callable

from llmfilter.stats import Stats
from llmfilter.worker import Change

# Of text in UTF-8, in whatever language: beside the tokenizers of GPT-4, Qwen, DeepSeek and Mistral, on prose in 12
# languages, code and JSON, this says half to twice as many tokens, and mostly within a quarter.
TOKEN_BYTES = 4


class Budget:
    """Lets requests go as long as tokens are left, if those under way cost what the mean has been.

    Before there is a mean they are expected to cost what their own bytes do. changed: wakes who waits
    for room; stop: ends the run, and says why. What is under way when the tokens are used up goes
    beyond them.
    """

    def __init__(self, tokens: int, stats: Stats, changed: Change, stop: Callable[[str], None]) -> None:
        self._tokens = tokens
        self._stats = stats
        self._changed = changed
        self._stop = stop
        self._under_way = 0
        self._completions = 0

    async def take(self, is_over: Callable[[], bool], body_bytes: int) -> None:
        """Return when a request of so many bytes may go, to be followed by `free`; or as soon as the run is over."""
        await self._changed.until(lambda: is_over() or self._is_used_up or self._has_room(body_bytes))
        self._under_way += 1
        if self._is_used_up:
            self._stop(f"the {self._tokens} tokens of --budget are used up")

    def free(self) -> None:
        """Note that a request is no longer under way."""
        self._under_way -= 1
        self._changed.notify()

    def count(self, tokens: int) -> None:
        """Note a completion and what it cost; stop where the server does not say."""
        self._completions += 1
        if not tokens:
            self._stop("the server does not say how many tokens it bills, so --budget can't be kept: leave it out")

    @property
    def _billed(self) -> int:
        return self._stats.billed_prompt + self._stats.billed_completion

    @property
    def _is_used_up(self) -> bool:
        return self._billed >= self._tokens

    def _has_room(self, body_bytes: int) -> bool:
        mean = self._billed / self._completions if self._completions else body_bytes / TOKEN_BYTES
        return self._billed + self._under_way * mean < self._tokens
