"""Line → record, and what a line looks like that is none. Pure, but for `peek_keys`."""

import os
import re
import stat
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from llmfilter.errors import RowError, RunError, attempt
from llmfilter.input.reader import BLOCK_BYTES, BOM, LINE_BYTES_MAX, Overlong
from llmfilter.jsontext import object_end, parse_json


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
    message = f"a JSON object is needed, this is {kind_of(record)}"
    if isinstance(record, list):
        message += f"; one record a line: {_ARRAY.command}"
    raise RowError("input", message)


def kind_of(value: Any) -> str:
    """Return what kind of JSON value that is, like `an array`."""
    return _KINDS.get(type(value), "a number")


_KINDS = {list: "an array", str: "a string", bool: "a boolean", type(None): "null", dict: "an object"}


class Form(NamedTuple):
    """What a line looks like that is no JSON object, or a whole file of such lines.

    looks: how it begins.
    name: what it is.
    command: what makes JSON lines of it; FILE stands for a file's name where it can't read a pipe.
    lines_least: how many lines without a record it takes to say so of the whole file; 0: never.
    """

    looks: bytes
    name: str
    command: str
    lines_least: int = 3


# What no text begins with: https://en.wikipedia.org/wiki/List_of_file_signatures
_BINARY = [
    Form(rb"\x1f\x8b", "gzip", "zcat", 1),
    Form(rb"\x28\xb5\x2f\xfd", "zstd", "zstdcat", 1),
    Form(rb"BZh[1-9]1AY&SY", "bzip2", "bzcat", 1),
    Form(rb"\xfd7zXZ\0", "xz", "xzcat", 1),
    Form(rb"PK\x03\x04", "a zip archive", "unzip -p FILE", 1),
    Form(
        rb"PAR1",
        "Parquet",
        """python3 -c 'import pandas; pandas.read_parquet("FILE").to_json("/dev/stdout", "records", lines=True)'""",
        1,
    ),
    Form(rb"\xff\xfe|\xfe\xff|.?\0", "UTF-16", "iconv -f UTF-16 -t UTF-8", 1),
]
_ENCODED = [
    *_BINARY,
    Form(rb"", "text that is not UTF-8", "iconv -f ENCODING -t UTF-8 (uchardet FILE guesses the ENCODING)"),
]
_ARRAY = Form(rb"\[", "a JSON array", "jq -c '.[]'")
_COMMAS = Form(rb"", "JSON with a comma behind each line", "sed 's/,[[:space:]]*$//'")
_SEVERAL = Form(rb"", "several objects on one line", "jq -c .")
_TEXT = [
    *_BINARY,
    _ARRAY,
    Form(rb"\{\Z", "a JSON object over several lines", "jq -c ."),
    Form(rb"\{.*[:\[,]\s*(-?Infinity|NaN)\s*[,\]}]", "JSON with NaN or Infinity, which is Python's", "jq -c ."),
    Form(
        rb"\{\s*'|\{.*['\"]:\s*(None|True|False|')",
        "Python's repr",
        "python3 -c 'import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) for line in sys.stdin]'",
    ),
    Form(rb"[^{}\[\]\"]*\t", "TSV", "mlr -S --itsv --ojsonl cat"),
    Form(rb"[^{}\[\]]*,\S(?!.*[\]}]\Z)", "CSV", "mlr -S --icsv --ojsonl cat"),
    Form(rb"[^{}\[\],]*;\S", "CSV with semicolons", "mlr -S --icsv --ifs ';' --ojsonl cat"),
    Form(rb"[\w\x80-\xff]+ ?[\w\x80-\xff]", "lines of text", "jq -Rc '{text: .}'", 0),
    Form(rb"[^{}\[\]\":]*,", "CSV", "mlr -S --icsv --ojsonl cat"),
]
_LOOKED_AT = 1 << 12  # bytes of a line that tell its form


def form_of(line: bytes) -> Form | None:
    """Return what a line looks like that is not JSON, if that is known."""
    try:
        text, forms = line.decode(), _TEXT
    except UnicodeDecodeError:
        text, forms = "", _ENCODED
    end = object_end(text[:_LOOKED_AT], 0)
    if end > 0 and text.startswith("{"):
        behind = text[end:].strip()
        return _COMMAS if behind == "," else _SEVERAL if behind.startswith("{") else None
    return next((form for form in forms if re.match(form.looks, line[:_LOOKED_AT], re.DOTALL)), None)


def _parse_odd(line: bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError as fault:
        what = "JSON: " + _IN_LINE.sub(r", at \1", str(fault))
    try:
        line.decode()
    except UnicodeDecodeError as fault:
        what = f"UTF-8, at byte {fault.start}"
    form = form_of(line)
    way = f"; to convert {form.name}: {form.command}" if form else ""
    raise RowError("input", f"the line is not {what}{way}")


_IN_LINE = re.compile(r": line 1 (column \d+) \(char \d+\)$")  # which line of the input it is stands before


def refuse_foreign(lines: Sequence[bytes], records: Sequence[dict[str, Any] | RowError]) -> None:
    """Raise RunError if the first lines of an input show that it is a file of another kind; records: what they hold."""
    lines = [line for line in lines if line]
    if any(isinstance(each, dict) for each in records) or not lines or isinstance(lines[0], Overlong):
        return
    form = form_of(lines[0])
    if form and 0 < form.lines_least <= len(lines):
        raise RunError(f"stdin is {form.name}, not one JSON object a line; to convert it: {form.command}")


def peek_keys(stdin: int) -> list[str] | None:
    """Return the keys of the first record where stdin is a file, of which nothing is taken; else None."""
    try:
        if not stat.S_ISREG(os.fstat(stdin).st_mode):
            return None
        block = os.pread(stdin, BLOCK_BYTES, os.lseek(stdin, 0, os.SEEK_CUR))
    except OSError:
        return None
    first = block.removeprefix(BOM).split(b"\n", _PEEKED_MOST)[:_PEEKED_MOST]
    return next((list(record) for record in parse_records(first) if isinstance(record, dict)), None)


_PEEKED_MOST = 32
