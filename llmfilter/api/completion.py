"""A server's answer with HTTP 200 → the model's content. Pure.

HTTP 200 alone is not success: servers and proxies send errors, cut answers and refusals with it.
"""

from typing import Any, NamedTuple

from llmfilter.api.faults import server_words
from llmfilter.api.stream import is_stream, put_together
from llmfilter.errors import Faulty, RowError
from llmfilter.jsontext import parse_json
from llmfilter.words import printable

UINT32_MAX = (1 << 32) - 1
_CUT = (
    "the answer was cut off: raise -o max_tokens=N if it is set; else the model's context is full: shorten the prompt"
)


class Completion(NamedTuple):
    """A response's body, what the model said in it, and the tokens it was billed with (0 where the server didn't say).

    fault: why it is no answer although it was paid for, or None.
    """

    body: bytes
    content: str
    prompt_tokens: int
    completion_tokens: int
    fault: RowError | None = None


def parse_completion(body: bytes) -> Completion:
    """Return the completion in a body; raise Faulty where there is none."""
    try:
        document = parse_json(body)
    except ValueError as fault:
        if is_stream(body):  # whether asked for or not
            return parse_completion(put_together(body))
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
    return tokens if type(tokens) is int and 0 <= tokens <= UINT32_MAX else 0
