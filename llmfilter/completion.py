"""A server's answer with HTTP 200 → the model's content. Pure.

HTTP 200 alone is not success: servers and proxies send errors, cut answers and refusals with it.
A stored completion is the body byte for byte behind a small header that says where its content
stands, which keys that has and what it cost, so that a replay need not parse the whole body.
"""

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple
from zlib import adler32

import orjson

from llmfilter.errors import Retryable, RowError, printable
from llmfilter.faults import server_words
from llmfilter.record import dump_text, parse_json

# Adler-32 of the key and of all that follows (CRC-32 takes twice as long); format version; where the
# keys end that follow; where the content's JSON string starts and ends (both 0: parse the body); prompt
# tokens; completion tokens. The keys are a JSON array if the content is nothing but one JSON object in
# one line, else there are none.
HEADER = struct.Struct("<IBHIIII")
VERSION = 4
SUM_BYTES = 4
_KEYS_BYTES_MOST = 1000
_UINT32_MAX = (1 << 32) - 1
_CUT = (
    "the answer was cut off: raise -o max_tokens=N if it is set; else the model's context is full: shorten the prompt"
)
_SHOWN = 1000  # characters of a body that is no completion


class Completion(NamedTuple):
    """A response's body, what the model said in it, and the tokens it was billed with (0 where the server didn't say).

    fault: why it is no answer although it was paid for, or None.
    """

    body: bytes
    content: str
    prompt_tokens: int
    completion_tokens: int
    fault: RowError | None = None


class Faulty(Retryable):
    """A 200 that is no answer: kind `server`; document: what was parsed of it."""

    def __init__(self, message: str, body: bytes, document: Any = None) -> None:
        super().__init__("server", message, raw=body[: 4 * _SHOWN].decode("utf-8", "replace")[:_SHOWN])
        self.document = document


def parse_completion(body: bytes) -> Completion:
    """Return the completion in a body; raise Faulty where there is none."""
    try:
        document = parse_json(body)
    except ValueError as fault:
        raise Faulty(f"the answer is not JSON: {fault}", body) from None
    if not isinstance(document, dict):
        raise Faulty("the answer is not a JSON object", body, document)
    if document.get("error") is not None:
        words = server_words(document, body)
        raise Faulty(f"the server sent an error with status 200: {words}", body, document)
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise Faulty("the answer has no choices", body, document)
    usage = document.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    content = _content(message.get("content"))
    return Completion(
        body,
        content,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _fault(choice.get("finish_reason"), message, content, body),
    )


def _content(content: Any) -> str:
    if isinstance(content, list):  # parts: Mistral's thinking and text
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join([text for text in texts if isinstance(text, str)])
    return content if isinstance(content, str) else ""


def _fault(reason: Any, message: dict[str, Any], content: str, body: bytes) -> RowError | None:
    if reason == "length":
        return RowError("truncated", _CUT, raw=content or _reasoning(message))
    if reason == "content_filter":
        return RowError("filtered", "the server's content filter withheld the answer", raw=content)
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        return RowError("refused", printable(refusal, len(refusal)), raw=refusal)
    if content and not content.isspace():
        return None
    if message.get("tool_calls"):
        return RowError("unparsable", "the model called a tool instead of answering", raw=_reasoning(message))
    if _reasoning(message):
        return RowError("unparsable", "the model reasoned but gave no answer", raw=_reasoning(message))
    return Faulty("the answer is empty", body)


def _reasoning(message: dict[str, Any]) -> str | None:
    for key in ("reasoning_content", "reasoning"):
        if isinstance(message.get(key), str) and message[key].strip():
            return str(message[key])
    if isinstance(message.get("content"), list):  # Mistral's thinking parts
        inner = [part.get("thinking") for part in message["content"] if isinstance(part, dict)]
        return _content([each for part in inner if isinstance(part, list) for each in part]) or None
    return None


def _count(tokens: Any) -> int:
    return tokens if type(tokens) is int and 0 <= tokens <= _UINT32_MAX else 0


def pack(key: bytes, completion: Completion, answer: tuple[bytes, Mapping[str, Any]] | None = None) -> bytes:
    """Return a completion as it is stored under a key; answer: the object found in it, and its keys, if known."""
    tokens = completion.prompt_tokens, completion.completion_tokens
    body, literal = completion.body, dump_text(completion.content)
    at = body.find(literal)  # wherever it stands: equal bytes read back as equal text
    keys, start, end = b"", 0, 0
    if at >= 0:
        keys = _keys(completion.content, *answer) if answer else b""
        start = HEADER.size + len(keys) + at
        end = start + len(literal)
    summed = HEADER.pack(0, VERSION, HEADER.size + len(keys), start, end, *tokens)[SUM_BYTES:] + keys + body
    return adler32(summed, adler32(key)).to_bytes(SUM_BYTES, "little") + summed


def _keys(content: str, answer: bytes, answer_keys: Mapping[str, Any]) -> bytes:
    """Return the keys of an answer that is all there is in its content, else nothing."""
    try:
        keys = orjson.dumps(list(answer_keys)) if answer_keys and answer == content.encode() else b""
    except (UnicodeEncodeError, orjson.JSONEncodeError):  # a lone surrogate, which a replay would have to spell
        return b""
    return keys if len(keys) <= _KEYS_BYTES_MOST else b""


def is_whole(key: bytes, stored: bytes) -> bool:
    """Return whether what is stored under a key is what this version has stored there."""
    if len(stored) < HEADER.size:
        return False
    sum_, version, *_ = HEADER.unpack_from(stored)
    return bool(sum_ == adler32(stored[SUM_BYTES:], adler32(key)) and version == VERSION)


def parse_content(stored: bytes, keys_end: int, start: int, end: int) -> str:
    """Return the content of what is stored, whose body begins at `keys_end`; the places are its header's."""
    if end:
        return str(parse_json(stored[start:end]))
    return parse_completion(stored[keys_end:]).content
