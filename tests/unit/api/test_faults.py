"""faults: what an HTTP error means. What each server's body means is in test_answers_golden."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from llmfilter.api.faults import classify, classify_hidden, classify_proxy, retry_after_s, server_words, timed
from llmfilter.errors import Retryable, RowError, RunError
from llmfilter.modes.attempts import BACKOFF_FIRST_S, BACKOFF_MOST_S, delay_s
from llmfilter.words import printable


def remedy(error: RowError | RunError) -> str:
    if isinstance(error, RunError):
        return "end"
    if isinstance(error, Retryable):
        return "wait" if error.is_refusal else "retry"
    return "row"


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([400, 403, 404, 405, 406, 410, 413, 415, 418, 422, 424, 431, 451], "row"),
        ([201, 204, 206, 300, 301, 302, 303, 304, 307, 308], "row"),
        ([501, 505], "row"),
        ([408, 409, 500, 502, 504, 520, 522, 524, 599], "retry"),
        ([429, 498, 503, 529], "wait"),
        ([401, 402], "end"),
    ],
)
def test_the_status_decides_first(statuses: list[int], expected: str) -> None:
    assert {status: remedy(classify(status, CIMultiDict(), b"")) for status in statuses} == dict.fromkeys(
        statuses, expected
    )


@pytest.mark.parametrize(
    ("status", "verdict", "expected"),
    [
        (400, "true", "retry"),
        (404, "true", "retry"),
        (429, "true", "wait"),
        (429, "false", "row"),
        (500, "false", "row"),
        (503, "false", "row"),
        (500, "maybe", "retry"),
        (400, "maybe", "row"),
        (401, "true", "end"),
    ],
)
def test_the_servers_own_verdict_on_retrying_wins(status: int, verdict: str, expected: str) -> None:
    assert remedy(classify(status, CIMultiDict({"X-Should-Retry": verdict}), b"")) == expected


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (500, {"Retry-After": "3"}, "wait"),
        (409, {"retry-after-ms": "3"}, "wait"),
        (403, {"Retry-After": "3"}, "wait"),
        (500, {"Retry-After": "soon"}, "retry"),
        (403, {"Retry-After": "soon"}, "row"),
        (503, {"Retry-After": "3", "x-should-retry": "false"}, "row"),
        (400, {"Retry-After": "3", "x-should-retry": "true"}, "wait"),
        (307, {"Retry-After": "3"}, "row"),
        (401, {"Retry-After": "3"}, "end"),
        (402, {"Retry-After": "3"}, "end"),
        (407, {"Retry-After": "3"}, "end"),
    ],
)
def test_who_says_when_to_come_back_has_no_room_now(status: int, headers: dict[str, str], expected: str) -> None:
    assert remedy(classify(status, CIMultiDict(headers), b"")) == expected


def test_no_credit_is_no_rate_limit() -> None:
    body = b'{"error":{"message":"You exceeded your current quota","type":"insufficient_quota"}}'
    assert remedy(classify(429, CIMultiDict({"Retry-After": "3"}), body)) == "end"
    assert remedy(classify_hidden(json.loads(body)) or RowError("server", "")) == "end"


@pytest.mark.parametrize(("status", "expected"), [(401, "end"), (407, "end"), (403, "retry"), (502, "retry")])
def test_a_proxy_that_opens_no_tunnel_is_named(status: int, expected: str) -> None:
    error = classify_proxy(status, "No\nWay")
    assert (remedy(error), "OPENAI" in str(error)) == (expected, False)
    assert "the proxy" in str(error) and f"HTTP {status} No Way" in str(error)


WORDS = "insufficient_quota, rate limit, 429, 401, invalid_api_key, content_filter, unavailable_error, model_not_found"


@pytest.mark.parametrize(
    ("status", "expected"), [(400, "row"), (403, "row"), (500, "retry"), (503, "wait"), (429, "wait")]
)
@pytest.mark.parametrize(
    "shape", ['{"error":{"message":"%s","type":"x"}}', '{"message":"%s"}', '{"detail":"%s"}', "%s"]
)
def test_the_words_of_a_message_decide_nothing(status: int, expected: str, shape: str) -> None:
    error = classify(status, CIMultiDict(), (shape % WORDS).encode())
    assert remedy(error) == expected
    assert type(error) in {RowError, Retryable}
    assert getattr(error, "kind", None) == "http"
    assert "insufficient_quota" in str(error)


@settings(deadline=None, max_examples=300)
@given(
    st.integers(201, 599),
    st.dictionaries(
        st.sampled_from(["Retry-After", "retry-after-ms", "Date", "Location", "x-should-retry"]), st.text(max_size=12)
    ),
    st.binary()
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["error", "message", "detail", "msg", "type", "code", "innererror"]), inner, max_size=3
            )
        ),
    ).map(lambda document: json.dumps(document).encode()),
)
@example(400, {}, b'{"error":{"innererror":{"code":[]},"code":{}},"type":[1]}')
@example(400, {}, b'{"error":{"innererror":{"code":null}}}')
@example(400, {}, b'[[{"error":{}}]]')
@example(400, {}, b'{"error":{"message":"\\ud800"}}')
def test_no_error_is_too_strange(status: int, headers: dict[str, str], body: bytes) -> None:
    """Whatever comes, the result has one of the remedies, and its message fits into a terminal's line."""
    message = str(classify(status, CIMultiDict(headers), body))
    assert message.encode()
    assert printable(message, 10_000) == message


# Waiting

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "after_s"),
    [
        ({}, None),
        ({"Retry-After": "20"}, 20.0),
        ({"retry-after": "0"}, 0.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": " 7 "}, 7.0),
        ({"Retry-After-Ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "20"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "20"}, 20.0),
        ({"retry-after-ms": "-1", "retry-after": "20"}, 20.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:29:30 GMT", "Date": DATE}, 90.0),
        ({"Retry-After": "Wed, 21 Oct 2015 09:29:30 +0200", "Date": DATE}, 90.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:27:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:29:30 GMT"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:29:30 GMT", "Date": "today"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:29:30 -0000", "Date": DATE}, None),
        ({"Retry-After": "1e23"}, 1e23),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "1e400"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": "20 seconds"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "Wed, 21 Oct 99999 07:28:00 GMT", "Date": DATE}, None),
        ({"Retry-After": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT", "Date": DATE}, None),
        ({"x-ratelimit-reset-requests": "6m0s"}, None),
    ],
)  # fmt: skip
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], after_s: float | None) -> None:
    assert retry_after_s(CIMultiDict(headers)) == after_s


jitters = st.floats(0, 1, exclude_max=True)


@settings(deadline=None)
@given(st.integers(1, 10_000), jitters)
def test_backoff_doubles_up_to_its_bound_and_jitter_spreads_the_upper_half(failures: int, jitter: float) -> None:
    most_s = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 1_000), BACKOFF_MOST_S)
    assert most_s / 2 <= delay_s(None, failures, jitter) <= most_s
    assert delay_s(None, failures, 0) == most_s / 2
    assert delay_s(None, failures + 1, jitter) >= delay_s(None, failures, jitter)


@settings(deadline=None)
@given(st.floats(0, 1e6), st.integers(1, 10_000), jitters)
def test_what_the_server_asks_for_is_waited_and_at_most_a_quarter_more(
    after_s: float, failures: int, jitter: float
) -> None:
    assert after_s <= delay_s(after_s, failures, jitter) <= after_s * 1.25
    assert delay_s(after_s, failures, 0) == after_s


# Words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 😀", "plain é 😀"),
        (" \x1b[31mred\x1b[0m\x07 ", "[31mred [0m"),
        ("a\r\n\tb\x9bc\x7fd", "a b c d"),
        ("x" * 501, "x" * 499 + "…"),
        ("x" * 500, "x" * 500),
        ("x" * 20_000_000, "x" * 499 + "…"),
        ("bad \ud800 \udfff", "bad \ufffd \ufffd"),
        ("a\u2028b", "a b"),
    ],
)
def test_foreign_words_are_made_fit_for_a_line(text: str, shown: str) -> None:
    assert printable(text) == shown
    error = classify(400, CIMultiDict(), json.dumps({"error": {"message": text}}).encode())
    assert str(error) == f"HTTP 400: {shown}"


def test_a_long_list_of_faults_is_not_told_whole() -> None:
    assert len(server_words({"detail": [{"msg": "no"}] * 1_000_000}, b"")) < 100


ENDLESS = "-o max_tokens=N for a model that does not stop"
LOST = "as a proxy that loses patience does: "


def dropped() -> Retryable:
    return Retryable("network", "it broke", is_dropped=True)


def ours() -> Retryable:
    return Retryable("timeout", "no answer within 60 s (--timeout)")


def http(status: int) -> Retryable:
    return Retryable("http", f"HTTP {status}", status=status)


@pytest.mark.parametrize(
    ("fault", "took_s", "is_streaming", "is_limit", "words"),
    [
        (ours(), 60, False, True, f"no answer within 60 s (--timeout): a longer --timeout, or {ENDLESS}"),
        (ours(), 29, False, True, "no answer within 60 s (--timeout)"),
        *(
            (http(status), 61.2, False, True, f"HTTP {status}, after 61 s, {LOST}--stream, or {ENDLESS}")
            for status in (408, 504, 522, 524)
        ),
        (http(504), 2, False, True, "HTTP 504"),
        (http(502), 61, False, False, "HTTP 502"),
        (dropped(), 31, True, True, f"it broke, after 31 s, {LOST}{ENDLESS}"),
        (dropped(), 29, False, False, "it broke"),
        (Retryable("network", "it broke within the answer"), 31, False, False, "it broke within the answer"),
        (RowError("http", "HTTP 400", status=400), 61, False, False, "HTTP 400"),
    ],
)
def test_a_time_limit_is_told_with_the_way_out(
    fault: RowError, took_s: float, is_streaming: bool, is_limit: bool, words: str
) -> None:
    found = timed(fault, took_s, is_streaming)
    assert (type(found), found.args) == (type(fault), (found.message,))
    fault = found
    assert fault.message == words
    if isinstance(fault, Retryable):
        assert (fault.overdue_s is not None, fault.is_late) == (is_limit, is_limit and took_s >= 30)
