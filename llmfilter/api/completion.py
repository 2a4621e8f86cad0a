"""A server's answer with HTTP 200 → the model's content. Pure.

HTTP 200 alone is not success: servers and proxies send errors, cut answers and refusals with it.
"""

from typing import Any, NamedTuple

from llmfilter.api.faults import server_words
from llmfilter.api.stream import is_stream, put_together
from llmfilter.errors import Faulty, RowError
from llmfilter.jsontext import object_end, parse_json, value_at
from llmfilter.stats import Usage
from llmfilter.words import printable

TOKENS_MOST = (1 << 32) - 1
# What servers give as `finish_reason`, in lower case, and what it says of the answer. Beside OpenAI's own: vLLM,
# SGLang, Ollama (null, `load`), Mistral (`model_length`), DeepSeek (`insufficient_system_resource`), OpenRouter
# (`error`), and what gateways hand through of Anthropic, Gemini, Bedrock and Cohere.
_WHOLE = {"", "stop", "eos", "eos_token", "stop_sequence", "stop_token", "end_turn", "complete", "completed"}
_WHOLE |= {"tool_calls", "function_call", "load"}  # without an answer, as the content tells
_CUT_OFF = {"length", "max_tokens", "model_length", "max_output_tokens", "max_completion_tokens", "error_limit"}
_CUT_OFF |= {"model_context_window_exceeded", "incomplete"}
_WITHHELD = {"content_filter", "content_filtered", "content_filter: recitation", "recitation", "sensitive"}
_WITHHELD |= {"safety", "image_safety", "blocklist", "prohibited_content", "spii", "refusal", "error_toxic"}
_WITHHELD |= {"guardrail_intervened", "guardrails"}
_BROKEN_OFF = {"insufficient_system_resource", "abort", "aborted", "error", "network_error", "cancelled"}
_BROKEN_OFF |= {"user_cancel", "malformed_function_call", "malformed_response"}
_NOTICE = "the server ends answers with finish_reason {!r}: taken as `stop`"
_KNOWN = _WHOLE | _CUT_OFF | _WITHHELD | _BROKEN_OFF
_CUT = (
    "the answer was cut off: raise -o max_tokens=N if it is set; else the model's context is full: shorten the prompt"
)
# What answers with 200 and is no chat completion: keys that tell it, what it is, the way out.
_SHAPES = [
    ({"message", "done"}, "Ollama's own API", "give -u http://HOST:11434/v1"),
    ({"response", "done"}, "Ollama's own API", "give -u http://HOST:11434/v1"),
    ({"result", "success"}, "Cloudflare's own API", "give the URL of its OpenAI-compatible one, which ends in /ai/v1"),
    ({"candidates"}, "Gemini's own API", "give the URL of its OpenAI-compatible one, which ends in /v1beta/openai"),
    ({"content", "stop_reason"}, "Anthropic's own API", "give -u https://api.anthropic.com/v1"),
    ({"output"}, "OpenAI's Responses API", "give the URL that /chat/completions follows"),
    ({"generated_text"}, "a text generation API", "give its OpenAI-compatible URL, which often ends in /v1"),
    ({"data", "object"}, "a list", "give the URL that /chat/completions follows"),
    ({"choices"}, "text completions", "give the URL that /chat/completions follows"),
]
_NO_ERROR: tuple[Any, ...] = (None, "", {}, [], False)  # what gateways leave in `error` beside an answer
_ANY_SHAPE = "another API's answer", "give the URL of an OpenAI-compatible one, which often ends in /v1"
_PAGE = "a web page", "give the URL of the API, which often ends in /v1"


class Completion(NamedTuple):
    """A response's body, what the model said in it, and the tokens it was billed with.

    fault: why it is no answer although it was paid for, or None.
    notice: what is to be said once about answers like this, or None.
    """

    body: bytes
    content: str
    usage: Usage
    fault: RowError | None = None
    notice: str | None = None


def parse_completion(body: bytes) -> Completion:
    """Return the completion in a body; raise Faulty where there is none."""
    try:
        document = parse_json(body)
    except ValueError as error:
        if is_stream(body):  # whether asked for or not
            return parse_completion(put_together(body))
        shape = _PAGE if body.lstrip()[:1] == b"<" else None
        raise Faulty(f"the answer is not JSON: {error}", body, shape=shape) from None
    if not isinstance(document, dict):
        raise Faulty("the answer is not a JSON object", body, document, _ANY_SHAPE)
    choices = document.get("choices")
    choice: Any = choices[0] if isinstance(choices, list) and choices else None
    if document.get("error") is not None and not (choice and document["error"] in _NO_ERROR):
        raise _sent_error(document, body)
    message = choice["message"] if isinstance(choice, dict) and "message" in choice else False
    if not (isinstance(message, dict) or message is None):  # null where Gemini has withheld it
        if document.get("errors"):
            raise _sent_error(document, body)
        shape = next(((what, way) for keys, what, way in _SHAPES if keys <= document.keys()), _ANY_SHAPE)
        is_blank = "choices" in document and not choice  # what it was is not to be seen
        raise Faulty("the answer has no choices", body, document, None if is_blank else shape)
    message = message or {}
    content = _content(message.get("content"), body)
    reason = finish_reason(choice)
    fault = _fault(reason, choice, message, content, body)
    notice = None if reason in _KNOWN else _NOTICE.format(printable(reason, 100))
    return Completion(body, content, parse_usage(document.get("usage")), fault, notice)


def _sent_error(document: dict[str, Any], body: bytes) -> Faulty:
    return Faulty(f"the server sent an error with status 200: {server_words(document, body)}", body, document)


def finish_reason(choice: dict[str, Any]) -> str:
    """Return why a choice ended, in lower case; nothing where the server does not say."""
    reason = choice.get("finish_reason")
    if isinstance(reason, dict):  # SGLang's own
        reason = reason.get("type")
    return reason.strip().lower() if isinstance(reason, str) else ""


def _content(content: Any, body: bytes) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content):
        return _text_of(content)
    return _cut_content(body)  # Workers AI and some proxies parse it: its own bytes are the answer


def _text_of(parts: list[dict[str, Any]]) -> str:
    """Return the text among the parts of a content, as Mistral sends it beside thinking."""
    texts = [part.get("text") for part in parts if part["type"] in ("text", "output_text")]
    return "".join([text for text in texts if isinstance(text, str)])


def _cut_content(body: bytes) -> str:
    """Return the first choice's content as it stands in a body."""
    choices = value_at(body, "choices").decode()[1:].lstrip()
    choice = choices[: object_end(choices, 0)].encode()
    return value_at(value_at(choice, "message"), "content").decode()


def _fault(reason: str, choice: dict[str, Any], message: dict[str, Any], content: str, body: bytes) -> RowError | None:
    if choice.get("error") not in _NO_ERROR:
        return _sent_error({"error": choice["error"]}, body)
    if reason in _CUT_OFF:
        return RowError("truncated", "the answer was cut off", raw=content or _reasoning(message))
    if reason in _WITHHELD:
        return RowError("filtered", f"the server withheld the answer (finish_reason {reason})", raw=content)
    if reason in _BROKEN_OFF:
        return Faulty(f"the server broke the answer off (finish_reason {reason})", body)
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
        texts = [each for part in inner if isinstance(part, list) for each in part]
        return _text_of([each for each in texts if isinstance(each, dict) and "type" in each]) or None
    return None


def parse_usage(usage: Any) -> Usage:
    """Return the tokens in a completion's `usage`, in any dialect; none where the server does not say.

    Where one of the two that are billed is no number, both count as none: a budget would be kept by a part.
    What only the total has (xAI's and Gemini's reasoning) is completion.
    """
    if not isinstance(usage, dict):
        return Usage()
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None or completion is None:
        return Usage()
    total = _count(usage.get("total_tokens")) or 0
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    cached = cached or _count(usage.get("prompt_cache_hit_tokens")) or 0  # DeepSeek's
    return Usage(prompt, max(completion, total - prompt), min(cached, prompt))


def _count(tokens: Any) -> int | None:
    """Return a number of tokens, 0 where there is none; None where that is no number of tokens."""
    if type(tokens) is int and 0 <= tokens <= TOKENS_MOST:
        return tokens
    if type(tokens) is float and tokens.is_integer():
        return _count(int(tokens))
    return 0 if tokens is None else None
