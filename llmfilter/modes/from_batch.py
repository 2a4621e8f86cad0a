"""The result lines of a Batch API → the cache (`--from-batch`).

Any of the files that a provider gives, in any order. What the cache has stays there: loading twice
changes nothing, also where the ordinary run has got a better answer since.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson

from llmfilter.answers.checks import Checks
from llmfilter.api import faults
from llmfilter.api.completion import Completion, parse_completion
from llmfilter.api.stream import BYTES_MOST
from llmfilter.cache.store import NoCache
from llmfilter.cache.stored import is_whole, pack
from llmfilter.errors import RowError
from llmfilter.input.reader import BLOCK_BYTES
from llmfilter.input.records import parse_record
from llmfilter.jsontext import value_at
from llmfilter.pipeline import Run
from llmfilter.stats import UnderWay
from llmfilter.words import counted

_KEY = re.compile("[0-9a-fA-F]{64}")
# What follows a body in what OpenAI and most others write: the response's end, and `error`.
_REST = re.compile(rb'\s*\}\s*,\s*"error"\s*:\s*null\s*\}$')
_REST_BYTES_MOST = 40
_BLOCKS_MOST = 4  # on their way to the disk: about 1 MB
Result = tuple[bytes, Completion]  # under its key


class FromBatch:
    """A mode of the pipeline: see there. `asked` in its counters are the answers that were new."""

    resumes = True
    lines_most = BLOCK_BYTES  # all lines of a block are stored together

    def __init__(self, cache: NoCache, run: Run) -> None:
        self._cache = cache
        self._run = run
        self._blocks: set[int] = set()  # on their way to the disk, each by its first line
        self._storing: set[bytes] = set()
        self._first_unstored: int | None = None
        self.taken = 0
        cache.on_failure = run.output.say

    @property
    def has_room(self) -> bool:
        """As in Mode."""
        return len(self._blocks) < _BLOCKS_MOST

    def take(self, lines: list[bytes]) -> Iterator[int]:
        """As in Mode: store what lines hold, while the next ones are read."""
        results = []
        first = self.taken + 1
        for number, line in enumerate(lines, first):
            raw = line.strip()
            if not raw:
                continue
            self._run.stats.rows += 1
            try:
                results.append(parse_result(raw))
            except RowError as error:
                self._run.fail(number, raw, error, is_record=error.kind != "input")
        self.taken += len(lines)
        self._blocks.add(first)
        self._run.tasks.create_task(self._store(first, results))
        yield self.taken + 1

    async def _store(self, first: int, results: list[Result]) -> None:
        cache, stats = self._cache, self._run.stats
        new: dict[bytes, Completion] = {}
        for key, completion in results:
            (stored,) = cache.find([key])
            if key in new or key in self._storing or (stored and is_whole(key, stored)):
                stats.count_replays(1, completion.usage)
            else:
                new[key] = completion
        self._storing |= new.keys()
        are_stored = await cache.put_all([(key, pack(key, completion)) for key, completion in new.items()])
        self._storing -= new.keys()
        self._blocks.remove(first)
        self._run.output.changed.notify()
        if not are_stored:
            self._first_unstored = min(first, self._first_unstored or first)
            return self._run.stop_early("what came back can't be stored")
        stats.asked += len(new)
        for completion in new.values():
            stats.billed = stats.billed.plus(completion.usage)
        return None

    def under_way(self) -> UnderWay:
        """As in Mode."""
        unfinished = [*self._blocks, *([self._first_unstored] if self._first_unstored else [])]
        return UnderWay(first_unfinished=min(unfinished, default=None))

    def report(self) -> list[str]:
        """As in Mode."""
        stats = self._run.stats
        stored = (
            f"{counted(stats.asked, 'answer')} stored, {stats.cached:,} already in the cache, {stats.failed:,} failed"
        )
        return [f"{counted(stats.rows, 'line')}: {stored}"]

    async def close(self) -> None:
        """As in Mode."""
        self._cache.close()


def parse_result(line: bytes) -> Result:
    """Return the key and the completion in a result line; raise the RowError that it stands for, or is."""
    document = parse_record(line)
    if "response" not in document and "error" not in document:
        what = "a request, not its result" if "body" in document else "not a result of a batch"
        raise RowError("input", f"this is {what}: it has neither `response` nor `error`")
    key = _parse_key(document.get("custom_id"))
    response = document.get("response")
    response = response if isinstance(response, dict) else {}
    status, body = response.get("status_code", 200), response.get("body")
    if status != 200 or not isinstance(body, dict):
        raise _classify(status, body if isinstance(body, dict) else {"error": document.get("error")})
    cut = _cut_body(line, body)
    if len(cut) > BYTES_MOST:
        raise RowError("server", f"the answer is larger than {BYTES_MOST >> 20} MiB")
    completion = parse_completion(cut)
    if completion.fault:
        Checks().judge(completion.content, completion.fault)
    return key, completion


def _parse_key(custom_id: Any) -> bytes:
    if isinstance(custom_id, str) and _KEY.fullmatch(custom_id):
        return bytes.fromhex(custom_id)
    raise RowError("input", "this is not the result of a line of --to-batch: its `custom_id` is not a key")


def _cut_body(line: bytes, body: dict[str, Any]) -> bytes:
    """Return the body in a line as it stands there; body: the same, parsed."""
    rest = _REST.search(line, len(line) - _REST_BYTES_MOST)
    if rest:
        cut = line[line.find(b"{", line.find(b'"body"')) : rest.start()]
        with suppress(orjson.JSONDecodeError):
            if orjson.loads(cut) == body:
                return cut
    return value_at(value_at(line, "response"), "body")


def _classify(status: Any, document: dict[str, Any]) -> RowError:
    """Return what a line without a completion means; document: where its error is."""
    if type(status) is int and status != 200:
        fault = faults.classify(status, {}, orjson.dumps(document, default=str))
        if isinstance(fault, RowError):
            return fault
        return RowError("http", f"HTTP {status}: {faults.server_words(document, b'')}".rstrip(": "), status=status)
    words = faults.server_words(document, b"")
    codes = [code for code in sorted(faults.error_codes(document)) if code not in words]
    return RowError("server", ": ".join([*codes, words]) if words else "the line holds no completion")
