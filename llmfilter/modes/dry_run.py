"""What a run prints that sends nothing: request bodies (`-n`)."""

import json
from collections.abc import Callable
from typing import Any

import orjson

from llmfilter.api.stream import ask_stream
from llmfilter.errors import RowError
from llmfilter.jsontext import parse_json
from llmfilter.modes.budget import TOKEN_BYTES
from llmfilter.modes.preview import Tally
from llmfilter.stats import Stats, Usage
from llmfilter.words import counted, money, short

# "How to count tokens", in OpenAI's cookbook.
_MESSAGE_TOKENS = 4
_REPLY_TOKENS = 3


class DryRun:
    """Prints each body, and says about what the prompts cost.

    stats: tells the price of tokens, and what the cache's answers had cost.
    budget: of `--budget`, if it was given.
    is_streaming: whether streams will be asked for.
    shorten: makes a body fit to be looked at.
    """

    def __init__(
        self,
        tally: Tally,
        stats: Stats,
        budget: float | None,
        is_streaming: bool,
        shorten: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._tally = tally
        self._stats = stats
        self._budget = budget
        self._is_streaming = is_streaming
        self._shorten = shorten
        self._tokens = self._attachments = self._within = 0

    def line(self, key: bytes, body: bytes, found: bytes | RowError | None) -> bytes:
        """As in Printer."""
        if not isinstance(found, bytes) and self._tally.is_new(key):
            self._within += self._budget is not None and self._expense < self._budget
            tokens, attachments = measure(body)
            self._tokens += tokens
            self._attachments += attachments
        if self._shorten:
            body = self._shorten(body)
        return (ask_stream(body) if self._is_streaming else body) + b"\n"

    def report(self, stats: Stats, is_whole: bool) -> list[str]:
        """As in Printer."""
        said = [self._tally.counts(stats, is_whole, "to be sent")]
        if not self._tally.new:
            return said
        said.append(f"about {short(self._tokens)} prompt tokens, at {TOKEN_BYTES} bytes of text each")
        if self._attachments:
            said[-1] += f"; beside them pictures or files ({self._attachments:,}), which only the server can count"
        said += self._whole()
        if self._budget is not None:
            said.append(f"--budget {self._budget:.15g}: {self._judge(self._budget)}")
        return said

    @property
    def _expense(self) -> float:
        """What the prompts cost so far."""
        return self._stats.expense(Usage(self._tokens))

    def _whole(self) -> list[str]:
        """Return about what all of it costs, as far as that can be told."""
        stats, said = self._stats, []
        prompts = Usage(self._tokens)
        if stats.price:
            said.append(f"the prompts will cost about {money(stats.price.cost(prompts))}")
        if stats.cached:
            answers = round(self._tally.new * stats.saved.completion / stats.cached)
            whole = prompts._replace(completion=answers)
            cost = f", and everything will cost about {money(stats.price.cost(whole))}" if stats.price else ""
            basis = counted(stats.cached, "answer")
            said.append(f"the answers will have about {short(answers)} tokens{cost}, judging by {basis} in the cache")
        return said

    def _judge(self, budget: float) -> str:
        if self._expense < budget:
            left = budget - self._expense
            rest = money(left) if self._stats.price else f"{short(round(left))} tokens"
            return f"it covers all prompts, and leaves about {rest} for the answers"
        return (
            f"the prompts alone use it up after about {counted(self._within, 'request')}; with the answers it is sooner"
        )


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
