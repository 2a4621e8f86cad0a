"""What an HTTP error means: retry, reject the row, or end the run; and how long to wait. Pure.

The rules are openai-python's, the ones that servers expect: status first, then the body's `type`
and `code`, never the words of its message.
"""

import re
from collections.abc import Mapping
from typing import Any

from llmfilter.errors import Retryable, RowError, RunError, printable
from llmfilter.record import parse_json

BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 60.0
_RETRIED = {408, 409, 429}  # and 5xx
_NO_CREDIT = "insufficient_quota"
# What a server says about every request alike, as long as none has succeeded.
REFUSALS = {400, 403, 404, 422}


class ModelMissing(RowError):
    """The server has no model of this name."""


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> RowError | RunError:
    """What an answer with a status other than 200 means: RunError, Retryable or RowError.

    headers: their names in lower case, or any case where the mapping doesn't mind.
    """
    document = _parse(body)
    words = server_words(document, body)
    message = f"HTTP {status}: {words}" if words else f"HTTP {status}"
    codes = error_codes(document)
    if status in (401, 402) or _NO_CREDIT in codes:
        return RunError(f"the server refuses all requests ({message}): {_MEND.get(status, _MEND[402])}")
    if status == 407:
        return RunError(
            f"the proxy refuses all requests ({message}): check the password in $HTTPS_PROXY or $HTTP_PROXY"
        )
    if 300 <= status < 400:
        where = printable(headers.get("location", "elsewhere"))
        return RowError("http", f"HTTP {status}: redirected to {where}: give the final URL with -u", status=status)
    verdict = headers.get("x-should-retry")
    if verdict == "true" or (verdict != "false" and (status in _RETRIED or status >= 500)):
        fault = Retryable("http", message, status=status)
        fault.after_s = retry_after_s(headers)
        is_waiting = fault.after_s is not None or "unavailable_error" in codes
        fault.is_limit = status == 429 or (status == 503 and is_waiting)
        return fault
    if "content_filter" in codes:
        return RowError("filtered", message, status=status)
    if status == 400 and "temperature" in words:
        message += "; without it: -o temperature=null"
    if "model_not_found" in codes:
        return ModelMissing("http", message, status=status)
    if status == 404 and not error_codes(document):
        message += "; is the base URL complete (many servers want /v1 in it)?"
    return RowError("http", message, status=status)


_MEND = {
    401: "check $OPENAI_API_KEY (or the -H that authorizes)",
    402: "no credit is left: top up, then give the same command again",
}


def read_hidden_error(document: Any) -> RunError | None:
    """What an error object sent with status 200 means for the run; None if only its row is concerned."""
    if _NO_CREDIT in error_codes(document):
        return RunError(f"the server refuses all requests ({server_words(document, b'')}): {_MEND[402]}")
    return None


def _parse(body: bytes) -> Any:
    try:
        return parse_json(body)
    except ValueError:
        return None


def error_codes(document: Any) -> set[str]:
    """The `type` and `code` of an error, as text, wherever its server puts them."""
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
    """What a server says in an error, whichever shape it comes in; fit for one line."""
    for place in _places(document):
        for key in ("message", "detail", "error"):
            words = place.get(key)
            if isinstance(words, list):  # FastAPI: [{"loc": …, "msg": …}]
                words = "; ".join(str(each.get("msg", each) if isinstance(each, dict) else each) for each in words)
            if isinstance(words, str) and words.strip():
                return printable(words)
    text = body[:10_000].decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    return printable(title[1] if title else text, 200)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long a server asks to wait: `retry-after-ms`, else `retry-after` in seconds or as a date,
    which counts from the response's own `Date`; None if it doesn't say."""
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


def wait_s(after_s: float | None, failures: int, jitter: float) -> float:
    """How long to wait before the same request is sent again.

    after_s: what the server asked for, or None; failures: how many there were, from 1 on; jitter: in
    [0, 1), spreads the requests, lest they all come back at once.
    """
    if after_s is not None:
        return after_s * (1 + jitter / 4)
    return min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16)) * (0.5 + jitter / 2)
