"""A cached completion and its record → the output line. Pure, but for the counters.

Nearly every replay is plain: no check but that it is an object, and no key that the record has too.
That is done here in one piece; the calls of those who know each step take longer than the steps.
"""

import struct
from functools import lru_cache

from orjson import loads

from llmfilter.answer import Checks
from llmfilter.completion import HEADER, parse_content, parse_header
from llmfilter.errors import RowError
from llmfilter.record import splice
from llmfilter.rows import Row
from llmfilter.stats import Stats


@lru_cache(1000)  # the answers to one prompt mostly have the same keys
def _parse_keys(text: bytes) -> tuple[str, ...]:
    keys: tuple[str, ...] = tuple(loads(text))
    return keys


class Replay:
    """Makes output lines of what is stored, and counts them."""

    def __init__(self, checks: Checks, stats: Stats) -> None:
        self._parse = checks.parse
        self._takes_any = checks.takes_any
        self._stats = stats

    def line(self, row: Row, key: bytes, stored: bytes) -> bytes | RowError | None:
        """Return a row's line; or what today's checks say against what is stored; or None where it is damaged."""
        record = row.record
        try:
            keys_end, start, end, prompt_tokens, completion_tokens = parse_header(key, stored)
            keys = stored[HEADER.size : keys_end] if self._takes_any else b""
            if keys and record and record.keys().isdisjoint(_parse_keys(keys)):
                line = b"%b,%b\n" % (row.raw[:-1], str.encode(loads(stored[start:end]))[1:])
            else:
                answer, answer_keys = self._parse(parse_content(stored, keys_end, start, end))
                line = splice(row.raw, record, answer, answer_keys)
                self._stats.count_replaced(row.number, record, answer_keys)
        except (struct.error, ValueError):
            return None
        except RowError as fault:
            return fault
        self._stats.count_replay(prompt_tokens, completion_tokens)
        return line
