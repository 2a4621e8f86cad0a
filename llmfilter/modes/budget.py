"""How many tokens a run may be billed with (`--budget`)."""

from llmfilter.ending import STOPPED_EARLY, Ending
from llmfilter.stats import Stats
from llmfilter.worker import Change

# Of text in UTF-8, in whatever language: beside the tokenizers of GPT-4, Qwen, DeepSeek and Mistral, on prose in 12
# languages, code and JSON, this says half to twice as many tokens, and mostly within a quarter.
TOKEN_BYTES = 4


class Budget:
    """Lets requests go as long as tokens are left, if those under way cost what the mean has been.

    Admits a request while the tokens billed so far plus the expected tokens of the requests in flight (the
    mean so far, each) stay below the budget. Before there is a mean they are expected to cost what their
    own bytes do. What is in flight when the tokens are used up goes beyond them.
    """

    def __init__(self, tokens: int, stats: Stats, changed: Change, ending: Ending) -> None:
        self._tokens = tokens
        self._stats = stats
        self._changed = changed
        self._ending = ending
        self._under_way = 0
        self._completions = 0

    async def take(self, body_bytes: int) -> None:
        """Return when a request of so many bytes may go, to be followed by `free`; or as soon as the run is over."""
        await self._changed.until(lambda: self._ending.has_begun or self._is_used_up or self._has_room(body_bytes))
        self._under_way += 1
        if self._is_used_up:
            self._ending.begin(STOPPED_EARLY, f"the {self._tokens} tokens of --budget are used up")

    def free(self) -> None:
        """Note that a request is no longer under way."""
        self._under_way -= 1
        self._changed.notify()

    def count(self, tokens: int) -> None:
        """Note a completion and what it cost; stop where the server does not say."""
        self._completions += 1
        if not tokens:
            self._ending.begin(
                STOPPED_EARLY,
                "the server does not say how many tokens it bills, so --budget can't be kept: leave it out",
            )

    @property
    def _billed(self) -> int:
        return self._stats.billed_prompt + self._stats.billed_completion

    @property
    def _is_used_up(self) -> bool:
        return self._billed >= self._tokens

    def _has_room(self, body_bytes: int) -> bool:
        mean = self._billed / self._completions if self._completions else body_bytes / TOKEN_BYTES
        return self._billed + self._under_way * mean < self._tokens
