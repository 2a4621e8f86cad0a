"""Lines → rows with their requests, and what the cache has for them: the first half of every mode that asks.

Rows are taken in blocks up to the look-up in the cache: a call for each row and stage would cost more
than the stages do.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

from llmfilter.cache.replay import Outcome, Replay
from llmfilter.errors import RowError
from llmfilter.input.records import parse_records, refuse_foreign
from llmfilter.jsontext import Row
from llmfilter.modes.hopeless import Hopeless
from llmfilter.modes.plan import Plan
from llmfilter.output.lines import BUFFER_BYTES
from llmfilter.pipeline import Run

_ROWS_MOST = 256  # taken together: more is no faster, and falls out of the processor's caches


class Found(NamedTuple):
    """Rows, the bodies of their requests, their keys in the cache, and what was found there."""

    rows: list[Row]
    bodies: list[bytes]
    keys: list[bytes]
    outcomes: list[Outcome]


class LookUp:
    """Makes requests of lines and looks them up; what can't become a request gets its error line.

    taken: the line that was taken last.
    """

    def __init__(self, plan: Plan, run: Run) -> None:
        self._plan = plan
        self._run = run
        self.hopeless = Hopeless(run.stats, plan.prompt.fields)
        self.replay = Replay(plan.checks, run.stats)
        # A picture is as large as thousands of rows.
        self.lines_most = 1 if plan.prompt.image else max(1, min(_ROWS_MOST, BUFFER_BYTES // plan.prompt.fixed_bytes))
        self.taken = 0
        plan.cache.on_failure = run.output.say

    def take(self, lines: list[bytes]) -> Iterator[Found]:
        """Yield rows until all are looked up: several times where answers are too large to be held together."""
        plan, stats = self._plan, self._run.stats
        raws = [line.strip() for line in lines]
        records = parse_records(raws)
        if not plan.prompt.is_settled:
            refuse_foreign(raws, records)
        rows, bodies = self._sift(raws, records, plan.prompt.bodies(records, raws, self.taken + 1))
        for notice in plan.prompt.notices.take():
            self._run.output.say(notice)
        stats.rows += len(rows)
        keys = plan.keys.of(bodies)
        while rows:
            outcomes = self.replay.outcomes(rows, keys, plan.cache.find(keys))
            count = len(outcomes)
            yield Found(rows[:count], bodies[:count], keys[:count], outcomes)
            del rows[:count], bodies[:count], keys[:count]

    def _sift(
        self, raws: list[bytes], records: list[dict[str, Any] | RowError], bodies: list[bytes | RowError]
    ) -> tuple[list[Row], list[bytes]]:
        """Return the rows that can be sent, with their requests; print the error lines of the others."""
        first, last = self.taken + 1, self.taken + len(raws)
        rows: Iterable[Any] = zip(range(first, last + 1), raws, records, strict=True)
        if {*map(type, bodies)} == {bytes}:
            self.taken = last
            return list(rows), cast(list[bytes], bodies)
        sound = []
        for row, body in zip(rows, bodies, strict=True):
            self.taken, raw, record = row
            if isinstance(body, bytes):
                sound.append((row, body))
            elif not raw:
                self._run.output.skip(self.taken)
            else:
                self._run.stats.rows += 1
                self._run.fail(self.taken, raw, body, is_record=record is not body)
                if not sound:
                    self.hopeless.reject_unsent(body)
        return [row for row, _ in sound], [body for _, body in sound]
