"""What an HTTP error means: retry, reject the row, or end the run. Pure.

The rules are openai-python's, the ones that servers expect: status first, then the body's `type`
and `code`, never the words of its message.
"""

import re
from collections.abc import Container, Mapping
from enum import Enum, auto
from typing import Any, NamedTuple, TypeVar

from llmfilter.errors import LATE_S, Fault, Retryable, RowError, RunError
from llmfilter.jsontext import parse_json
from llmfilter.words import printable

# What a server says when no money is left, or may be spent.
_NO_CREDIT = {
    *("insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded"),  # OpenAI
    *("project_spend_limit_exceeded", "organization_usage_limit_exceeded"),
    "enforced_spend_limit_reached",  # Anthropic
    "exceeded_current_quota_error",  # Moonshot
}
_TOP_UP = "no credit is left: top up, then give the same command again"
_CHECK_KEY = "check $OPENAI_API_KEY (or the -H that authorizes)"
_CHECK_PROXY = "check the user and password in $HTTPS_PROXY or $HTTP_PROXY"
FINAL = {401, 402, 407}  # these end the run, whatever the body says
# Somebody's patience is over: the server's own, a proxy's, Cloudflare's (522, 524).
_OVERDUE = {408, 504, 522, 524}
_ENDLESS = "-o max_tokens=N for a model that does not stop"
NEVER = {501, 505}  # not implemented: the same request won't be the next time either
_LIST_MOST = 20  # of what a server lists as wrong
F = TypeVar("F", bound=Fault)


class ModelMissing(RowError):
    """The server has no model of this name."""


class Remedy(Enum):
    """What is to be done about an error."""

    END = auto()  # the run: it would meet every row
    WAIT = auto()  # no room now: sent again, which uses up no attempt
    RETRY = auto()  # a fault: sent again, as often as -r allows
    ROW = auto()  # this row's error
    FILTERED = auto()  # this row's: its content was withheld
    NO_MODEL = auto()  # this row's, and every other's as long as none was answered
    UNUSABLE = auto()  # the model's answer was bad, and the server has checked it: asked again


class Case(NamedTuple):
    """What a status, or a `type` or `code` in the body, means. None: any; advice: what the user can do."""

    statuses: Container[int] | None
    codes: set[str] | None
    remedy: Remedy
    advice: str = ""


# The first that fits counts. Statuses: RFC 9110, Anthropic's 529, Groq's 498 (its flex tier has no capacity).
CASES = [
    Case({401}, None, Remedy.END, _CHECK_KEY),
    Case({402}, None, Remedy.END, _TOP_UP),
    Case(None, _NO_CREDIT, Remedy.END, _TOP_UP),
    Case({407}, None, Remedy.END, _CHECK_PROXY),
    Case({429, 498, 503, 529}, None, Remedy.WAIT),
    Case(None, {"slow_down"}, Remedy.WAIT),  # OpenAI: more requests than a moment ago
    Case({408, 409}, None, Remedy.RETRY),
    Case(NEVER, None, Remedy.ROW),
    Case(range(500, 600), None, Remedy.RETRY),
    Case(None, {"content_filter"}, Remedy.FILTERED),
    Case(None, {"model_not_found"}, Remedy.NO_MODEL),
    Case({400}, {"json_validate_failed"}, Remedy.UNUSABLE),  # Groq, of its own model's answer
    Case(None, None, Remedy.ROW),
]


def classify(status: int, headers: Mapping[str, str], body: bytes) -> RowError | RunError:
    """Return what an answer with a status other than 200 means: RunError, Retryable or RowError.

    headers: their names in lower case, or any case where the mapping doesn't mind.
    """
    document = _parse(body)
    words = server_words(document, body)
    message = f"HTTP {status}: {words}" if words else f"HTTP {status}"
    codes = error_codes(document)
    after_s = retry_after_s(headers)
    case = next(
        case
        for case in CASES
        if (case.statuses is None or status in case.statuses) and (case.codes is None or case.codes & codes)
    )
    remedy = _as_the_server_wants(case.remedy, status, headers.get("x-should-retry"), after_s)
    match remedy:
        case Remedy.END:
            return _end("the proxy" if status == 407 else "the server", message, case.advice)
        case Remedy.WAIT | Remedy.RETRY:
            return Retryable("http", message, status=status, after_s=after_s, is_refusal=remedy is Remedy.WAIT)
        case Remedy.FILTERED:
            return RowError("filtered", message, status=status)
        case Remedy.NO_MODEL:
            return ModelMissing("http", message, status=status)
        case Remedy.UNUSABLE:
            return RowError("unparsable", message, status=status, raw=_failed_generation(document))
    if 300 <= status < 400:
        where = printable(headers.get("location", "elsewhere"))
        return RowError("http", f"HTTP {status}: redirected to {where}: give the final URL with -u", status=status)
    return RowError("http", message + _hint(status, words, codes), status=status, param=_param(document))


def _as_the_server_wants(remedy: Remedy, status: int, verdict: str | None, after_s: float | None) -> Remedy:
    """Return a remedy as the server's own headers change it: x-should-retry decides, else a Retry-After."""
    if verdict == "false" and remedy in (Remedy.WAIT, Remedy.RETRY):
        return Remedy.ROW
    if verdict == "true" and remedy is Remedy.ROW:
        remedy = Remedy.RETRY
    if after_s is not None and verdict != "false" and status >= 400 and remedy in (Remedy.ROW, Remedy.RETRY):
        return Remedy.WAIT
    return remedy


def classify_hidden(document: Any) -> RunError | None:
    """Return what an error object sent with status 200 means for the run; None if only its row is concerned."""
    codes = error_codes(document)
    if codes & {*_NO_CREDIT, "402"}:
        return _end("the server", server_words(document, b""), _TOP_UP)
    if "401" in codes:
        return _end("the server", server_words(document, b""), _CHECK_KEY)
    return None


def timed(fault: F, took_s: float, is_streaming: bool) -> F:
    """Return a fault that knows whether it was a time limit; after a long one it says the way out.

    took_s: since the request was sent; is_streaming: whether a stream was asked for.
    """
    if not isinstance(fault, Retryable):
        return fault
    is_ours = fault.kind == "timeout"
    if not (is_ours or fault.status in _OVERDUE or (fault.is_dropped and took_s >= LATE_S)):
        return fault
    message = fault.message
    if took_s >= LATE_S and is_ours:
        message += f": a longer --timeout, or {_ENDLESS}"
    elif took_s >= LATE_S:
        ways = _ENDLESS if is_streaming else f"--stream, or {_ENDLESS}"
        message = f"{printable(message)}, after {took_s:.0f} s, as a proxy that loses patience does: {ways}"
    return fault.but(message=message, overdue_s=took_s)


def classify_proxy(status: int, reason: str) -> Retryable | RunError:
    """Return what a proxy means that does not open a tunnel; reason: its words beside the status."""
    message = printable(f"HTTP {status} {reason}")
    if status in (401, 407):
        return _end("the proxy", message, _CHECK_PROXY)
    return Retryable("network", f"the proxy does not connect to the server: {message}", is_unreachable=True)


def _end(who: str, message: str, advice: str) -> RunError:
    return RunError(f"{who} refuses all requests ({message}): {advice}")


def _hint(status: int, words: str, codes: set[str]) -> str:
    if status == 400 and "temperature" in words:
        return "; without it: -o temperature=null"
    if status in (204, 404, 405, 410) and not codes:
        return "; is the base URL complete (many servers want /v1 in it)?"
    return ""


def _param(document: Any) -> str | None:
    """Return the field of the request that an error blames: OpenAI's `param`, FastAPI's `loc`."""
    for place in _places(document):
        if isinstance(place.get("param"), str):
            return str(place["param"])
        detail = place.get("detail")
        first = detail[0] if isinstance(detail, list) and detail else None
        if isinstance(first, dict) and isinstance(first.get("loc"), list):
            names = [each for each in first["loc"] if isinstance(each, str) and each != "body"]
            return ".".join(names) or None
    return None


def _failed_generation(document: Any) -> str | None:
    texts = [place.get("failed_generation") for place in _places(document)]
    return next((text for text in texts if isinstance(text, str)), None)


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
    places = _places(document)
    if places and not any(places[0].values()):  # {"error": null}
        return ""
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
