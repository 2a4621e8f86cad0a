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
from llmfilter.cache.stored import HEADER, KEYS_AT, SUM_BYTES, parse_content, usage_of
from llmfilter.errors import RowError
from llmfilter.jsontext import Row, splice
from llmfilter.stats import Stats

Outcome = bytes | RowError | None  # a row's line; what today's checks say of its stored answer; nothing sound is stored


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
        lines = None
        if self._is_plain and None not in found:
            lines = self._plain_lines(rows[: len(found)], keys, cast(Sequence[bytes], found))
        return lines or self._one_by_one(rows, keys, found)

    def _plain_lines(self, rows: Sequence[Row], keys: Sequence[bytes], found: Sequence[bytes]) -> list[Outcome] | None:
        """Return the lines of rows whose answers all are whole, and go into their records as they are; else None."""
        try:
            headers = list(map(HEADER.unpack_from, found))
        except struct.error:  # one is cut off
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

    def _one_by_one(self, rows: Sequence[Row], keys: Sequence[bytes], found: Sequence[bytes | None]) -> list[Outcome]:
        """Return the outcomes of rows that are not all plain; those that are take the short way here too."""
        outcomes: list[Outcome] = []
        headers: list[tuple[int, ...]] = []
        line: Outcome
        for (number, raw, record), key, stored in zip(rows, keys, found, strict=False):
            if stored is None or len(stored) < HEADER.size:
                outcomes.append(None)
                continue
            header = HEADER.unpack_from(stored)
            sum_, version, keys_end, start, end, *_ = header
            keys_at = KEYS_AT.get(version)
            if sum_ != adler32(stored[SUM_BYTES:], adler32(key)) or keys_at is None:
                outcomes.append(None)
                continue
            names = stored[keys_at:keys_end]
            if self._is_plain and names and record and record.keys().isdisjoint(_parse_keys(names)):
                line = b"".join((raw[:-1], b",", loads(stored[start:end]).encode()[1:], b"\n"))
            else:
                try:
                    answer = self._checks.judge(*parse_content(stored, keys_end, start, end))
                    line = self.join(number, raw, record, answer, stored[keys_end:])
                except RowError as fault:
                    outcomes.append(fault)
                    continue
            outcomes.append(line)
            headers.append(header)
        if headers:
            _, versions, _, _, _, *tokens = zip(*headers, strict=True)
            self._stats.count_replays(len(headers), usage_of(versions, *tokens))
        return outcomes

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
