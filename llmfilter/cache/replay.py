"""A completion, cached or new, and its record → the output line. Pure, but for the counters.

Nearly every replay is plain: no check but that it is an object, and no key that the record has too. Such rows
are done a block at a time: a call for each row and step would cost more than the steps.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, cast
from zlib import adler32

from orjson import loads

from llmfilter.answers.checks import Answer, Checks
from llmfilter.cache.stored import HEADER, KEYS_AT, SUM_BYTES, is_whole, parse_content, usage_of
from llmfilter.errors import RowError
from llmfilter.jsontext import Row, splice
from llmfilter.stats import Stats

Outcome = bytes | RowError | None  # a row's line; what today's checks say of its stored answer; nothing sound is stored
_PARTS = 8  # of a block that is not plain as a whole


@lru_cache(1000)  # the answers to one prompt mostly have the same keys
def _parse_keys(text: bytes) -> list[str]:
    keys: list[str] = loads(text)
    return keys


class Replay:
    """Makes output lines of what is stored, and counts them."""

    def __init__(self, checks: Checks, stats: Stats) -> None:
        self._checks = checks
        self._is_plain = checks.takes_any and checks.response is None
        self._stats = stats

    def outcomes(self, rows: Sequence[Row], keys: Sequence[bytes], found: Sequence[bytes | None]) -> list[Outcome]:
        """Return one outcome for each row that was looked up.

        This may be fewer than `rows`: a look-up stops after 1 MB, and the caller then asks for the rest.
        """
        count = len(found)
        if not self._is_plain or not any(found):
            return [*map(self._outcome, rows, keys, found)]
        if lines := self._plain_lines(rows[:count], keys, cast(Sequence[bytes], found)):
            return lines
        if count == 1:
            return [self._outcome(rows[0], keys[0], found[0])]
        step = max(1, count // _PARTS)
        parts = [slice(at, at + step) for at in range(0, count, step)]
        return [*chain(*[self.outcomes(rows[part], keys[part], found[part]) for part in parts])]

    def _plain_lines(self, rows: Sequence[Row], keys: Sequence[bytes], found: Sequence[bytes]) -> list[Outcome] | None:
        """Return the lines of rows whose answers all are whole, and go into their records as they are; else None."""
        try:
            headers = list(map(HEADER.unpack_from, found))
        except (TypeError, struct.error):  # one was not found, or is cut off
            return None
        sums, versions, keys_ends, starts, ends, *tokens = zip(*headers, strict=True)
        if not KEYS_AT.keys() >= {*versions}:
            return None
        answer_keys = {
            stored[KEYS_AT[version] : end] for stored, version, end in zip(found, versions, keys_ends, strict=True)
        }
        _, raws, records = zip(*rows, strict=True)
        if b"" in answer_keys or not all(records):
            return None
        if sums != tuple(map(adler32, [stored[SUM_BYTES:] for stored in found], map(adler32, keys))):
            return None
        if not set().union(*records).isdisjoint(chain(*map(_parse_keys, answer_keys))):
            return None
        # Each content is the text of an object: its brace gives way to a comma behind the record's members.
        members = [stored[start + 2 : end - 1] for stored, start, end in zip(found, starts, ends, strict=True)]
        tails = loads(b'[",%b\\n"]' % b'\\n",",'.join(members))
        self._stats.count_replays(len(found), usage_of(versions, *tokens))
        return [raw[:-1] + tail.encode() for raw, tail in zip(raws, tails, strict=True)]

    def _outcome(self, row: Row, key: bytes, stored: bytes | None) -> Outcome:
        if stored is None or not is_whole(key, stored):
            return None
        _, version, keys_end, start, end, *tokens = HEADER.unpack_from(stored)
        try:
            answer = self._checks.judge(*parse_content(stored, keys_end, start, end))
            line = self.join(*row, answer, stored[keys_end:])
        except RowError as fault:
            return fault
        self._stats.count_replays(1, usage_of([version], *zip(tokens)))
        return line

    def join(self, number: int, raw: bytes, record: dict[str, Any], answer: Answer, body: bytes) -> bytes:
        """Return the line of a row whose answer came in this response's body."""
        replaced = None
        if self._checks.response is not None:
            if self._checks.response in answer[1]:
                replaced = ("answer", self._checks.response)
            answer = self._checks.add_response(answer, body)
        if not record.keys().isdisjoint(answer[1]):
            replaced = ("record", next(key for key in record if key in answer[1]))
        if replaced:
            self._stats.count_replaced(number, *replaced)
        return splice(raw, record, *answer)
