"""What a run prints that sends nothing: the lines of a Batch API's file (`--to-batch`)."""

from llmfilter.errors import RowError
from llmfilter.modes.preview import Tally
from llmfilter.stats import Stats

_LINE = b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions","body":%b}\n'


class ToBatch:
    """Prints each request that the cache has no answer to, once.

    An answer that does not pass the checks would come again: the ordinary run asks for a better one.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._unusable = 0

    def line(self, key: bytes, body: bytes, found: bytes | RowError | None) -> bytes:
        """As in Printer."""
        self._unusable += isinstance(found, RowError)
        if found is None and self._tally.is_new(key):
            return _LINE % (key.hex().encode(), body)
        return b""

    def report(self, stats: Stats, is_whole: bool) -> list[str]:
        """As in Printer."""
        said = self._tally.counts(stats, is_whole, "printed")
        if self._unusable:
            said += f", {self._unusable:,} with an unusable answer, which the ordinary run asks for again"
        return [said]
