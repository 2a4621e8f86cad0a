"""The result lines of a Batch API → the cache (`--from-batch`).

Any of the files that a provider gives, in any order. What the cache has stays there: loading twice
changes nothing, also where the ordinary run has got a better answer since.
"""

import asyncio
import re
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from llmfilter.answers.checks import Checks
from llmfilter.api import faults
from llmfilter.api.completion import Completion, parse_completion
from llmfilter.cache.store import open_cache
from llmfilter.cache.stored import is_whole, pack
from llmfilter.errors import RowError, UsageError
from llmfilter.input.reader import BLOCK_BYTES
from llmfilter.input.records import parse_record
from llmfilter.input.request import Keys, Prompt
from llmfilter.job import Job, check_stats
from llmfilter.jsontext import members
from llmfilter.options import make_parser
from llmfilter.output.lines import Output
from llmfilter.pipeline import Pipeline
from llmfilter.stats import Stats

if TYPE_CHECKING:
    from llmfilter.server.client import Chat


_LOADING = {"--from-batch", "--cache", "--no-cache", "--stats", "--quiet"}  # what goes with --from-batch
_KEY_DIGITS = 64
# What follows a body in what OpenAI and most others write: the response's end, and `error`.
_REST = re.compile(rb'\s*\}\s*,\s*"error"\s*:\s*null\s*\}$')
_REST_BYTES_MOST = 40
_BLOCKS_MOST = 4  # on their way to the disk: about 1 MB
Result = tuple[bytes, Completion]  # under its key


class Load(Pipeline):
    """A run that stores completions instead of asking for them; `asked` in its counters are those that were new."""

    def __init__(self, job: "Job", stdin: int, output: Output, stats: Stats) -> None:
        super().__init__(job, stdin, output, stats)
        self._rows_most = BLOCK_BYTES  # all lines of a block are stored together
        self._room = asyncio.Semaphore(_BLOCKS_MOST)
        self._under_way: set[bytes] = set()

    async def _take(self, lines: list[bytes]) -> None:
        """Store what lines hold, while the next ones are read; what is no answer gets its error line."""
        results = []
        for number, line in enumerate(lines, self._number + 1):
            raw = line.strip()
            if not raw:
                continue
            try:
                results.append(parse_result(raw))
            except RowError as error:
                self._fail(number, raw, error, is_record=error.kind != "input")
        self._number += len(lines)
        self.stats.rows += len(results)
        await self._room.acquire()
        self._tasks.create_task(self._store(results))

    async def _store(self, results: list[Result]) -> None:
        cache, stats = self._job.cache, self.stats
        new: dict[bytes, Completion] = {}
        for key, completion in results:
            (stored,) = cache.find([key])
            if key in new or key in self._under_way or (stored and is_whole(key, stored)):
                stats.count_replays(1, completion.prompt_tokens, completion.completion_tokens)
            else:
                new[key] = completion
        self._under_way |= new.keys()
        are_stored = await cache.put_all([(key, pack(key, completion)) for key, completion in new.items()])
        self._under_way -= new.keys()
        self._room.release()
        if not are_stored:
            return self._stop_early("what came back can't be stored")
        stats.asked += len(new)
        stats.billed_prompt += sum(completion.prompt_tokens for completion in new.values())
        stats.billed_completion += sum(completion.completion_tokens for completion in new.values())
        return None

    def report(self) -> list[str]:
        """As in Pipeline."""
        stats = self.stats
        return [f"{stats.rows} lines: {stats.asked} answers stored, {stats.cached} in the cache, {stats.failed} failed"]


def parse_result(line: bytes) -> Result:
    """Return the key and the completion in a result line; raise the RowError that it stands for, or is."""
    document = parse_record(line)
    if "response" not in document and "error" not in document:
        what = "a request, of which the provider's results are wanted" if "body" in document else "no result of a batch"
        raise RowError("input", f"this is {what}: it has neither `response` nor `error`")
    key = _parse_key(document.get("custom_id"))
    response = document.get("response")
    response = response if isinstance(response, dict) else {}
    status, body = response.get("status_code", 200), response.get("body")
    if status != 200 or not isinstance(body, dict):
        raise _classify(status, body if isinstance(body, dict) else {"error": document.get("error")})
    completion = parse_completion(_cut_body(line, body))
    if completion.fault:
        raise completion.fault
    return key, completion


def _parse_key(custom_id: Any) -> bytes:
    try:
        if isinstance(custom_id, str) and len(custom_id) == _KEY_DIGITS:
            return bytes.fromhex(custom_id)
    except ValueError:
        pass
    raise RowError("input", "this is not the result of a line of --to-batch: its `custom_id` is no key")


def _cut_body(line: bytes, body: dict[str, Any]) -> bytes:
    """Return the body in a line as it stands there; body: the same, parsed."""
    rest = _REST.search(line, len(line) - _REST_BYTES_MOST)
    if rest:
        cut = line[line.find(b"{", line.find(b'"body"')) : rest.start()]
        with suppress(orjson.JSONDecodeError):
            if orjson.loads(cut) == body:
                return cut
    return _value("body", _value("response", line))


def _value(key: str, text: bytes) -> bytes:
    """Return the value of a key of a JSON object as it stands there."""
    return {name: value for name, _, value in members(text)}[key]


def _classify(status: Any, document: dict[str, Any]) -> RowError:
    """Return what a line without a completion means; document: where its error is."""
    if type(status) is int and status != 200:
        fault = faults.classify(status, {}, orjson.dumps(document, default=str))
        return fault if isinstance(fault, RowError) else RowError("http", fault.message, status=status)
    words = faults.server_words(document, b"")
    codes = [code for code in sorted(faults.error_codes(document)) if code not in words]
    return RowError("server", ": ".join([*codes, words]) if words else "the line holds no completion")


def make_loading(args: Namespace, environ: Mapping[str, str]) -> Job:
    """Return the job of `--from-batch`, which has a cache and else nothing."""
    for action in make_parser()._actions:
        option = action.option_strings[-1]
        if option not in _LOADING and getattr(args, action.dest, action.default) != action.default:
            raise UsageError(
                f"--from-batch only puts results into the cache: {option} belongs to the same command without it"
            )
    if args.no_cache:
        raise UsageError("--from-batch puts results into the cache: leave out --no-cache")
    check_stats(args.stats)
    return Job(
        prompt=Prompt(None, None, "", {}),
        keys=Keys("", []),
        checks=Checks(),
        reasks=0,
        retries=0,
        jobs=1,
        keep_order=False,
        budget=None,
        cache=open_cache(args, environ),
        connect=_connect_never,
    )


def _connect_never() -> "Chat":
    raise AssertionError("nothing is sent")
