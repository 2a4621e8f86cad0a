"""What a run prints that sends nothing: request bodies (`-n`)."""

import json
from abc import ABC, abstractmethod
from typing import Any

import orjson

from llmfilter.errors import RowError
from llmfilter.jsontext import parse_json
from llmfilter.modes.budget import TOKEN_BYTES
from llmfilter.modes.seen import Seen
from llmfilter.stats import Stats
from llmfilter.words import counted, short

# "How to count tokens", in OpenAI's cookbook.
_MESSAGE_TOKENS = 4
_REPLY_TOKENS = 3


class Preview(ABC):
    """Prints something for each request instead of sending it, and tells what was new from what was equal to it."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._new = self._equal = 0

    @abstractmethod
    def line(self, key: bytes, body: bytes, found: bytes | RowError | None) -> bytes:
        """Return what to print for a request, with its newline, or nothing.

        found: the line that the cache would answer it with, or what is wrong with the answer there.
        """

    @abstractmethod
    def report(self, stats: Stats, is_whole: bool) -> list[str]:
        """Return what there is to say at the end; is_whole: of the whole input."""

    def _is_new(self, key: bytes) -> bool:
        is_new = self._seen.add(key)
        self._new += is_new
        self._equal += not is_new
        return is_new

    def _counts(self, stats: Stats, is_whole: bool, done: str) -> str:
        """Return what became of the rows; done: what is done with the new requests."""
        which = counted(stats.rows, "row") if is_whole else "as far as it came"
        counts = [f"{stats.cached:,} answered by the cache", f"{stats.failed:,} failed"]
        counts.append(f"{counted(self._new, 'request')} {done}")
        if self._equal:
            counts.append(f"{self._equal:,} equal to one before")
        return f"{which}: {', '.join(counts)}"


class DryRun(Preview):
    """Prints each body, and says about what the prompts cost. budget: the tokens of `--budget`, if it was given."""

    def __init__(self, seen: Seen, budget: int | None) -> None:
        super().__init__(seen)
        self._budget = budget
        self._tokens = self._attachments = self._within = 0

    def line(self, key: bytes, body: bytes, found: bytes | RowError | None) -> bytes:
        """As in Preview."""
        if not isinstance(found, bytes) and self._is_new(key):
            self._within += self._budget is not None and self._tokens < self._budget
            tokens, attachments = measure(body)
            self._tokens += tokens
            self._attachments += attachments
        return body + b"\n"

    def report(self, stats: Stats, is_whole: bool) -> list[str]:
        """As in Preview."""
        said = [self._counts(stats, is_whole, "to be sent")]
        if not self._new:
            return said
        said.append(f"about {short(self._tokens)} prompt tokens, at {TOKEN_BYTES} bytes of text each")
        if self._attachments:
            said[-1] += f"; beside them pictures or files ({self._attachments:,}), which only the server can count"
        if self._budget is not None:
            said.append(f"--budget {self._budget}: {self._judge(self._budget)}")
        return said

    def _judge(self, budget: int) -> str:
        if self._tokens < budget:
            return f"it covers all prompts, and leaves about {short(budget - self._tokens)} tokens for the answers"
        return f"the prompts alone use it up after about {counted(self._within, 'request')}, with the answers sooner"


def measure(body: bytes) -> tuple[int, int]:
    """Return about how many tokens a request's prompt has, and how many parts that are no text: pictures, audio, files.

    A schema and tools count, since OpenAI makes them part of the prompt.
    """
    request = parse_json(body)
    messages = request["messages"]
    response_format = request.get("response_format")
    size = _json_bytes(request.get("tools"))
    size += _json_bytes(response_format.get("json_schema")) if isinstance(response_format, dict) else 0
    attachments = 0
    for message in messages:
        size += _json_bytes(message.get("tool_calls"))
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                size += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            else:
                attachments += isinstance(part, dict)
    return size // TOKEN_BYTES + _MESSAGE_TOKENS * len(messages) + _REPLY_TOKENS, attachments


def _json_bytes(value: Any) -> int:
    if not value:
        return 0
    try:
        return len(orjson.dumps(value, default=str))
    except orjson.JSONEncodeError:  # a lone surrogate
        return len(json.dumps(value, default=str))
