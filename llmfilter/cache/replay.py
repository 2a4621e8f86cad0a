"""A completion, cached or new, and its record → the output line. Pure, but for the counters.

Nearly every replay is plain: no check but that it is an object, and no key that the record has too.
That is done here in one piece; calling the functions that own these steps would cost more than the
steps.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from zlib import adler32

from orjson import loads

from llmfilter.answers.checks import Answer, Checks
from llmfilter.cache.stored import HEADER, KEYS_AT, SUM_BYTES, parse_content
from llmfilter.errors import RowError
from llmfilter.jsontext import Row, splice
from llmfilter.stats import Stats, Usage

Outcome = bytes | RowError | None  # a row's line; what today's checks say of its stored answer; nothing sound is stored
_unpack_header = HEADER.unpack_from


@lru_cache(1000)  # the answers to one prompt mostly have the same keys
def _parse_keys(text: bytes) -> tuple[str, ...]:
    keys: tuple[str, ...] = tuple(loads(text))
    return keys


class Replay:
    """Makes output lines of what is stored, and counts them."""

    def __init__(self, checks: Checks, stats: Stats) -> None:
        self._checks = checks
        self._is_plain = checks.takes_any and checks.response is None
        self._stats = stats

    def outcomes(self, rows: Iterable[Row], keys: Iterable[bytes], found: Iterable[bytes | None]) -> list[Outcome]:
        """Return one outcome for each row that was looked up.

        This may be fewer than `rows`: a look-up stops after 1 MB, and the caller then asks for the rest.
        """
        is_plain, header_bytes = self._is_plain, HEADER.size
        outcomes: list[Outcome] = []
        line: Outcome
        rows_cached = prompt = completion = cached = 0
        for (number, raw, record), key, stored in zip(rows, keys, found, strict=False):
            if stored is None or len(stored) < header_bytes:
                outcomes.append(None)
                continue
            sum_, version, keys_end, start, end, prompt_, completion_, cached_ = _unpack_header(stored)
            keys_at = KEYS_AT.get(version)
            if sum_ != adler32(stored[SUM_BYTES:], adler32(key)) or keys_at is None:
                outcomes.append(None)
                continue
            if (
                is_plain
                and keys_end > keys_at
                and record
                and record.keys().isdisjoint(_parse_keys(stored[keys_at:keys_end]))
            ):
                line = b"".join((raw[:-1], b",", loads(stored[start:end]).encode()[1:], b"\n"))
            else:
                try:
                    answer = self._checks.judge(*parse_content(stored, keys_end, start, end))
                    line = self.join(number, raw, record, answer, stored[keys_end:])
                except RowError as fault:
                    outcomes.append(fault)
                    continue
            outcomes.append(line)
            rows_cached += 1
            prompt += prompt_
            completion += completion_
            if keys_at == header_bytes:
                cached += cached_
        self._stats.count_replays(rows_cached, Usage(prompt, completion, cached))
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
