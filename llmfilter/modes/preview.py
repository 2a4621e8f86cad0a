"""A run that sends nothing, and prints something for each request instead (`-n`, `--to-batch`)."""

from collections.abc import Iterator
from typing import Protocol

from llmfilter.cache.replay import Outcome
from llmfilter.modes.look_up import LookUp
from llmfilter.modes.plan import Plan
from llmfilter.modes.seen import Seen
from llmfilter.pipeline import Run
from llmfilter.stats import Stats, UnderWay
from llmfilter.words import counted


class Printer(Protocol):
    """What is printed."""

    def line(self, key: bytes, body: bytes, found: Outcome) -> bytes:
        """Return what to print for a request, with its newline, or nothing; found: what the cache has for it."""

    def report(self, stats: Stats, is_whole: bool) -> list[str]:
        """Return what there is to say at the end; is_whole: of the whole input."""


class Tally:
    """Counts requests, and duplicates among them.

    new: how many different ones there were.
    """

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self.new = self._duplicates = 0

    def is_new(self, key: bytes) -> bool:
        """Count a request; return whether it is the first of its kind."""
        is_new = self._seen.add(key)
        self.new += is_new
        self._duplicates += not is_new
        return is_new

    def counts(self, stats: Stats, is_whole: bool, done: str) -> str:
        """Return what became of the rows; done: what is done with the new requests."""
        which = counted(stats.rows, "row") if is_whole else "stopped early; so far"
        counts = [f"{stats.cached:,} answered by the cache", f"{stats.failed:,} failed"]
        counts.append(f"{counted(self.new, 'request')} {done}")
        if self._duplicates:
            counts.append(counted(self._duplicates, "duplicate"))
        return f"{which}: {', '.join(counts)}"


class Preview:
    """A mode of the pipeline: see there."""

    resumes = False
    has_room = True

    def __init__(self, plan: Plan, printer: Printer, run: Run) -> None:
        self._cache = plan.cache
        self._printer = printer
        self._run = run
        self._look_up = LookUp(plan, run)
        self.lines_most = self._look_up.lines_most
        self._first_left: int | None = None

    @property
    def taken(self) -> int:
        """As in Mode."""
        return self._look_up.taken

    def take(self, lines: list[bytes]) -> Iterator[int]:
        """As in Mode: print a line for each request."""
        for rows, bodies, keys, outcomes in self._look_up.take(lines):
            self._first_left = rows[0][0]  # should there be no room to remember a request
            printed = map(self._printer.line, keys, bodies, outcomes)
            self._run.output.answers({row[0]: line for row, line in zip(rows, printed, strict=True)})
            self._first_left = None
            yield rows[-1][0] + 1

    def under_way(self) -> UnderWay:
        """As in Mode: nothing is, or what could not be printed."""
        return UnderWay(first_unfinished=self._first_left)

    def report(self) -> list[str]:
        """As in Mode."""
        return self._printer.report(self._run.stats, is_whole=not self._run.ending.has_begun)

    async def close(self) -> None:
        """As in Mode."""
        self._cache.close()
