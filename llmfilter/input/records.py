"""Line → record, and what a line looks like that is none. Pure, but for `peek_keys`."""

import os
import re
import stat
from collections.abc import Sequence
from typing import Any

import orjson

from llmfilter.errors import RowError, attempt
from llmfilter.input.reader import BLOCK_BYTES, BOM, LINE_BYTES_MAX, Overlong
from llmfilter.jsontext import parse_json


def parse_records(lines: Sequence[bytes]) -> list[dict[str, Any] | RowError]:
    """Return for each line its record, or what is wrong with it."""
    try:
        records: list[dict[str, Any] | RowError] = list(map(orjson.loads, lines))  # refuses an Overlong
        if {*map(type, records)} == {dict}:
            return records
    except orjson.JSONDecodeError:
        pass
    return [attempt(parse_record, line) for line in lines]


def parse_record(line: bytes) -> dict[str, Any]:
    """Return the record in a line; raise RowError(`input`) where it is not one JSON object."""
    if isinstance(line, Overlong):  # its beginning may well be JSON
        raise RowError("input", f"the line is longer than {LINE_BYTES_MAX >> 20} MiB; its beginning is shown")
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = _parse_odd(line)
    if isinstance(record, dict):
        return record
    message = f"a JSON object is needed, this is {_NAMES.get(type(record), 'a number')}"
    if isinstance(record, list):
        message += "; one record a line: jq -c '.[]'"
    raise RowError("input", message)


def _parse_odd(line: bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError as fault:
        what, ways = "JSON: " + _IN_LINE.sub(r", at \1", str(fault)), _TEXT
    try:
        line.decode()
    except UnicodeDecodeError as fault:
        what, ways = f"UTF-8, at byte {fault.start}", _ENCODED
    way = next((f"; {way}" for looks, way in ways if re.match(looks, line, re.DOTALL)), "")
    raise RowError("input", f"the line is not {what}{way}")


_IN_LINE = re.compile(r": line 1 (column \d+) \(char \d+\)$")  # which line of the input it is stands before
# What a line that is not JSON looks like, and how a file of such lines becomes records.
_UTF_16 = (rb"\xff\xfe|\xfe\xff|.?\0", "UTF-16 becomes UTF-8 with: iconv -f UTF-16 -t UTF-8")
_ENCODED = [
    (rb"\x1f\x8b", "gzip is unpacked with: zcat"),
    _UTF_16,
    (rb"", "it becomes UTF-8 with: iconv -f ENCODING -t UTF-8 (uchardet FILE guesses which)"),
]
_TEXT = [
    _UTF_16,
    (rb"\[", "an array becomes one record a line with: jq -c '.[]'"),
    (rb"\{\Z", "an object over several lines becomes one line with: jq -c ."),
    (rb"(?![{}\]]|\"[^\"]*\"\s*:).*[,;\t]", "CSV becomes JSON lines with: mlr -S --icsv --ojsonl cat"),
    (rb"\w+ \w", "lines of text become records with: jq -Rc '{text: .}'"),
]
_NAMES = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


def peek_keys(stdin: int) -> list[str] | None:
    """Return the keys of the first record where stdin is a file, of which nothing is taken; else None."""
    try:
        if not stat.S_ISREG(os.fstat(stdin).st_mode):
            return None
        block = os.pread(stdin, BLOCK_BYTES, os.lseek(stdin, 0, os.SEEK_CUR))
        return list(parse_record(block.removeprefix(BOM).partition(b"\n")[0]))
    except (OSError, RowError):
        return None
