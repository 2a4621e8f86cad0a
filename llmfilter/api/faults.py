"""What an HTTP error means: retry, reject the row, or end the run. Pure.

The rules are openai-python's, the ones that servers expect: status first, then the body's `type`
and `code`, never the words of its message.
"""

import re
from collections.abc import Mapping
from typing import Any

from llmfilter.errors import Retryable, RowError, RunError
from llmfilter.jsontext import parse_json
from llmfilter.words import printable

# "No room now": too many requests, a full queue or a model that loads, overloaded (Anthropic), no capacity (Groq).
_REFUSALS = {429, 503, 529, 498}
_RETRIED = {408, 409, *_REFUSALS}  # and 5xx
_NO_CREDIT = "insufficient_quota"
# What a server says about every request alike, as long as none has succeeded.
REJECTIONS = {400, 403, 404, 422}
_ADVICE = {
    401: "check $OPENAI_API_KEY (or the -H that authorizes)",
    402: "no credit is left: top up, then give the same command again",
    407: "check the user and password in $HTTPS_PROXY or $HTTP_PROXY",
}
FINAL = _ADVICE.keys()  # these end the run, whatever the body says
_LIST_MOST = 20  # of what a server lists as wrong


class ModelMissing(RowError):
    """The server has no model of this name."""


def classify(status: int, headers: Mapping[str, str], body: bytes) -> RowError | RunError:
    """Return what an answer with a status other than 200 means: RunError, Retryable or RowError.

    headers: their names in lower case, or any case where the mapping doesn't mind.
    """
    document = _parse(body)
    words = server_words(document, body)
    message = f"HTTP {status}: {words}" if words else f"HTTP {status}"
    codes = error_codes(document)
    if status in (401, 402) or _NO_CREDIT in codes:
        return _end("the server", message, _ADVICE[401 if status == 401 else 402])
    if status == 407:
        return _end("the proxy", message, _ADVICE[407])
    if 300 <= status < 400:
        where = printable(headers.get("location", "elsewhere"))
        return RowError("http", f"HTTP {status}: redirected to {where}: give the final URL with -u", status=status)
    if _is_retried(status, headers):
        fault = Retryable("http", message, status=status)
        fault.after_s = retry_after_s(headers)
        fault.is_refusal = status in _REFUSALS or fault.after_s is not None
        return fault
    if "content_filter" in codes:
        return RowError("filtered", message, status=status)
    if "model_not_found" in codes:
        return ModelMissing("http", message, status=status)
    return RowError("http", message + _hint(status, words, codes), status=status)


def classify_hidden(document: Any) -> RunError | None:
    """Return what an error object sent with status 200 means for the run; None if only its row is concerned."""
    if _NO_CREDIT in error_codes(document):
        return _end("the server", server_words(document, b""), _ADVICE[402])
    return None


def classify_proxy(status: int, reason: str) -> Retryable | RunError:
    """Return what a proxy means that does not open a tunnel; reason: its words beside the status."""
    message = printable(f"HTTP {status} {reason}")
    if status in (401, 407):
        return _end("the proxy", message, _ADVICE[407])
    return Retryable("network", f"the proxy does not connect to the server: {message}")


def _end(who: str, message: str, advice: str) -> RunError:
    return RunError(f"{who} refuses all requests ({message}): {advice}")


def _is_retried(status: int, headers: Mapping[str, str]) -> bool:
    verdict = headers.get("x-should-retry")
    if verdict in ("true", "false"):
        return verdict == "true"
    return status in _RETRIED or status >= 500 or (status >= 400 and retry_after_s(headers) is not None)


def _hint(status: int, words: str, codes: set[str]) -> str:
    if status == 400 and "temperature" in words:
        return "; without it: -o temperature=null"
    if status == 404 and not codes:
        return "; is the base URL complete (many servers want /v1 in it)?"
    return ""


def _parse(body: bytes) -> Any:
    try:
        return parse_json(body)
    except ValueError:
        return None


def error_codes(document: Any) -> set[str]:
    """Return the `type` and `code` of an error, as text, wherever its server puts them."""
    found = set()
    for place in _places(document):
        for key in ("type", "code"):
            if isinstance(place.get(key), str | int):
                found.add(str(place[key]))
        if isinstance(place.get("innererror"), dict):
            found.add(str(place["innererror"].get("code", "")))
    return found


def _places(document: Any) -> list[dict[str, Any]]:
    if isinstance(document, list):  # Gemini's compatible endpoint
        document = document[0] if document else None
    if not isinstance(document, dict):
        return []
    error = document.get("error")
    return [error, document] if isinstance(error, dict) else [document]


def server_words(document: Any, body: bytes) -> str:
    """Return what a server says in an error, whichever shape it comes in; fit for one line."""
    for place in _places(document):
        for key in ("message", "detail", "error", "errors"):
            words = place.get(key)
            if isinstance(words, list):  # FastAPI: [{"loc": …, "msg": …}]; Cloudflare: [{"code": …, "message": …}]
                words = "; ".join(map(_listed_words, words[:_LIST_MOST]))
            if isinstance(words, str) and words.strip():
                return printable(words)
    return printable(_page_words(body[:10_000].decode("utf-8", "replace")), 200)


def _listed_words(fault: Any) -> str:
    return str(fault.get("msg") or fault.get("message") or fault) if isinstance(fault, dict) else str(fault)


def _page_words(text: str) -> str:
    """Return the title of a page in HTML, else its text without tags; other text as it is."""
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    if not title and not re.match(r"\s*<(!|html|head|body|h1|center|p|div)\b", text, re.IGNORECASE):
        return text
    from html import unescape  # hardly ever needed

    words = title[1] if title else re.sub(r"(?is)<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]*>?", " ", text)
    return " ".join(unescape(words).split())


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to wait; None if it doesn't say.

    `retry-after-ms`, else `retry-after` in seconds or as a date, which counts from the response's own `Date`.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait_s = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        if 0 <= wait_s < float("inf"):
            return wait_s
    if "retry-after" not in headers:
        return None
    from email.utils import parsedate_to_datetime  # takes 4 ms to import, and is hardly ever needed

    try:
        until = parsedate_to_datetime(headers["retry-after"])
        since = parsedate_to_datetime(headers["date"])
        return max(0.0, (until - since).total_seconds())
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
