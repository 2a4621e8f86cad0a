"""How many tokens, or how much money, a run may be billed with (`--budget`)."""

from llmfilter.ending import STOPPED_EARLY, Ending
from llmfilter.stats import Stats, Usage
from llmfilter.worker import Change

# Of text in UTF-8, in whatever language: beside the tokenizers of GPT-4, Qwen, DeepSeek and Mistral, on prose in 12
# languages, code and JSON, this says half to twice as many tokens, and mostly within a quarter.
TOKEN_BYTES = 4


class Budget:
    """Lets requests go as long as something is left, if those under way cost what the mean has been.

    Admits a request while what was billed so far plus what the requests in flight are expected to cost (the
    mean so far, each) stays below the budget. Before there is a mean they are expected to cost what their
    own bytes do. What is in flight when the budget is used up goes beyond it.

    most: money where there is a price, else tokens.
    """

    def __init__(self, most: float, stats: Stats, changed: Change, ending: Ending) -> None:
        self._most = most
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
            what = f"--budget of {self._most:g} is" if self._stats.price else f"{self._most} tokens of --budget are"
            self._ending.begin(STOPPED_EARLY, f"the {what} used up")

    def free(self) -> None:
        """Note that a request is no longer under way."""
        self._under_way -= 1
        self._changed.notify()

    def count(self, usage: Usage) -> None:
        """Note a completion and what it cost; stop where the server does not say."""
        self._completions += 1
        if not usage.total:
            self._ending.begin(
                STOPPED_EARLY,
                "the server does not say how many tokens it bills, so --budget can't be kept: leave it out",
            )

    @property
    def _billed(self) -> float:
        return self._stats.expense(self._stats.billed)

    @property
    def _is_used_up(self) -> bool:
        return self._billed >= self._most

    def _has_room(self, body_bytes: int) -> bool:
        if self._completions:
            mean = self._billed / self._completions
        else:
            mean = self._stats.expense(Usage(body_bytes // TOKEN_BYTES))
        return self._billed + self._under_way * mean < self._most
