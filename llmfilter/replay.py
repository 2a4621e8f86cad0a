"""A cached completion and its record → the output line. Pure, but for the counters.

Nearly every replay is plain: no check but that it is an object, and no key that the record has too.
That is done here in one piece; the calls of those who know each step take longer than the steps.
"""

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from orjson import loads

from llmfilter.answer import Checks
from llmfilter.completion import HEADER, VERSION, unpack
from llmfilter.errors import RowError
from llmfilter.record import splice
from llmfilter.stats import Stats

_unpack_header = HEADER.unpack_from


@lru_cache(1000)  # the answers to one prompt mostly have the same keys
def _read_keys(text: bytes) -> tuple[str, ...]:
    keys = loads(text)
    if isinstance(keys, list) and all(isinstance(key, str) for key in keys):
        return tuple(keys)
    raise ValueError("these are no keys")


class Replay:
    """Makes output lines of what is stored, and counts them."""

    def __init__(self, checks: Checks, stats: Stats) -> None:
        self._read = checks.parse
        self._takes_any = checks.takes_any
        self._stats = stats

    def line(self, stored: bytes, raw: bytes, record: Mapping[str, Any]) -> bytes | None:
        """The line, or None if what is stored does not pass today's checks."""
        try:
            version, keys_end, start, end, prompt_tokens, completion_tokens = _unpack_header(stored)
            keys = stored[HEADER.size : keys_end] if version == VERSION and self._takes_any else b""
            if keys and record and record.keys().isdisjoint(_read_keys(keys)):
                line = b"%b,%b\n" % (raw[:-1], str.encode(loads(stored[start:end]))[1:])
            else:
                content, prompt_tokens, completion_tokens = unpack(stored)
                line = splice(raw, record, *self._read(content))
        except (struct.error, ValueError, TypeError, RowError):  # TypeError: str.encode, of what is no text
            return None
        stats = self._stats  # as its count_replay, without the call
        stats.cached += 1
        stats.saved_prompt += prompt_tokens
        stats.saved_completion += completion_tokens
        return line
