"""How a completion is stored: the response's body byte for byte, behind a small header. Pure.

The header says where the body's content stands, which keys that has and what it cost, so that a
replay need not parse the whole body.
"""

import struct
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any
from zlib import adler32

import orjson

from llmfilter.api.completion import Completion, parse_completion
from llmfilter.errors import RowError
from llmfilter.jsontext import dump_text, parse_json
from llmfilter.stats import Usage

# Adler-32 of the key and of all that follows (CRC-32 takes twice as long); format version; where the
# keys end that follow; where the content's JSON string starts and ends (both 0: parse the body); prompt
# tokens; completion tokens; those of the prompt that the server had in its cache. The keys are a JSON array
# if the content is nothing but one JSON object in one line, else there are none.
HEADER = struct.Struct("<IBHIIIII")
# By version, where the keys begin: without and with cached tokens. What was paid for is read for ever.
KEYS_AT = {4: HEADER.size - 4, 5: HEADER.size}
SUM_BYTES = 4
_KEYS_BYTES_MOST = 1000


def pack(key: bytes, completion: Completion, answer: tuple[bytes, Mapping[str, Any]] | None = None) -> bytes:
    """Return a completion as it is stored under a key; answer: the object found in it, and its keys, if known."""
    body, content, usage, fault, _ = completion
    version = 5 if usage.cached else 4
    keys_at = KEYS_AT[version]
    literal = dump_text(content)
    # Wherever it stands: equal bytes read back as equal text. A fault is found by parsing the body.
    at = -1 if fault else body.find(literal)
    keys, start, end = b"", 0, 0
    if at >= 0:
        keys = _keys(content, *answer) if answer else b""
        start = keys_at + len(keys) + at
        end = start + len(literal)
    header = HEADER.pack(0, version, keys_at + len(keys), start, end, *usage)
    summed = header[SUM_BYTES:keys_at] + keys + body
    return adler32(summed, adler32(key)).to_bytes(SUM_BYTES, "little") + summed


def _keys(content: str, answer: bytes, answer_keys: Mapping[str, Any]) -> bytes:
    """Return the keys of an answer that is all there is in its content, else nothing."""
    try:
        keys = orjson.dumps(list(answer_keys)) if answer_keys and answer == content.encode() else b""
    except (UnicodeEncodeError, orjson.JSONEncodeError):  # a lone surrogate, which a replay would have to spell
        return b""
    return keys if len(keys) <= _KEYS_BYTES_MOST else b""


def is_whole(key: bytes, stored: bytes) -> bool:
    """Return whether what is stored under a key is what was stored there, in a version that is known."""
    if len(stored) < HEADER.size:
        return False
    sum_, version, *_ = HEADER.unpack_from(stored)
    return bool(sum_ == adler32(stored[SUM_BYTES:], adler32(key)) and version in KEYS_AT)


def parse_content(stored: bytes, keys_end: int, start: int, end: int) -> tuple[str, RowError | None]:
    """Return the content of what is stored, and what its completion lacks, if anything.

    Its body begins at `keys_end`; the places are its header's.
    """
    if end:
        return str(parse_json(stored[start:end])), None
    completion = parse_completion(stored[keys_end:])
    return completion.content, completion.fault


def usage_of(
    versions: Sequence[int], prompts: Sequence[int], completions: Sequence[int], cached: Sequence[int]
) -> Usage:
    """Return the tokens that headers tell of, added up; each of their fields is a sequence."""
    have_cached = [KEYS_AT[version] == HEADER.size for version in versions]
    return Usage(sum(prompts), sum(completions), sum(compress(cached, have_cached)))
