"""stream: what servers send piece by piece → the completion that would have come whole."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import AB, BROKEN, NO_CREDIT, STREAMS, A, B, chunk, events

from llmfilter.api.completion import parse_completion
from llmfilter.api.faults import error_codes
from llmfilter.api.stream import Stream, ask_stream, is_stream, refuses_usage
from llmfilter.errors import Faulty, RowError

MIB = 1 << 20


def put(*pieces: bytes, most: int = 16 * MIB) -> Any:
    """The completion that these bytes add up to."""
    stream = Stream(most)
    for piece in pieces:
        stream.feed(piece)
        if stream.is_over:
            break
    return json.loads(stream.end())


@pytest.mark.parametrize(("body", "expected"), STREAMS.values(), ids=STREAMS)
def test_a_stream_is_the_completion_that_would_have_come_whole(body: bytes, expected: Any) -> None:
    assert is_stream(body)
    assert put(body) == expected
    assert put(*(body[at : at + 1] for at in range(len(body)))) == expected
    assert parse_completion(json.dumps(put(body)).encode()).body


@pytest.mark.parametrize("name", ["CRLF", "tool calls", "log-probabilities"])
def test_a_stream_may_be_cut_anywhere(name: str) -> None:
    body, expected = STREAMS[name]
    for at in range(len(body)):
        assert put(body[:at], body[at:]) == expected


def test_a_byte_order_mark_before_a_stream_is_none_of_it() -> None:
    body, expected = STREAMS["CRLF"]
    body = b"\xef\xbb\xbf" + body
    assert is_stream(body) and put(body) == expected
    assert put(*(body[at : at + 1] for at in range(len(body)))) == expected


@pytest.mark.parametrize(("body", "message", "text"), BROKEN.values(), ids=BROKEN)
def test_a_stream_that_is_not_whole_is_no_answer(body: bytes, message: str, text: str | None) -> None:
    for pieces in ([body], [body[at : at + 1] for at in range(len(body))]):
        with pytest.raises(Faulty) as caught:
            put(*pieces)
        fault = caught.value
        assert (fault.kind, fault.message, fault.raw) == ("server", message, text)


def test_the_code_of_an_error_is_told() -> None:
    for body in (
        events(A, NO_CREDIT),
        events(A, end=f"error: {json.dumps(NO_CREDIT)}\n"),
        events({"code": "insufficient_quota"}),
    ):
        with pytest.raises(Faulty) as caught:
            put(body)
        assert "insufficient_quota" in error_codes(caught.value.document)


def test_an_answer_that_is_too_large_is_refused() -> None:
    piece = events(chunk(content="x" * 1000), end="")
    with pytest.raises(RowError, match="larger than 2 MiB") as caught:
        put(*[piece] * 5000, most=2 * MIB)
    assert not isinstance(caught.value, Faulty)
    with pytest.raises(RowError, match="larger than 2 MiB"):
        put(*[b"data: " + b"x" * 1000] * 5000, most=2 * MIB)
    assert put(*[piece] * 1900, events(B), most=2 * MIB)["choices"][0]["message"]["content"].startswith("xxx")


def test_what_is_passed_over_takes_no_room() -> None:
    stream = Stream(2 * MIB)
    for _ in range(100):
        stream.feed(b": keep-alive, and nothing else\n" * 2000)
    stream.feed(events(A, B))
    assert json.loads(stream.end()) == AB


def test_other_bodies_are_no_streams() -> None:
    for body in (b'{"choices": []}', b"", b"<html>", b"\n\n {", b'"data:"', b"upstream: gone"):
        assert not is_stream(body)


texts = st.text(max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
tokens = st.lists(st.fixed_dictionaries({"token": st.sampled_from("ab"), "logprob": st.sampled_from([0, -1.5e-7])}))
functions = st.fixed_dictionaries({"name": st.text(min_size=1, max_size=5), "arguments": texts})
calls = st.fixed_dictionaries(
    {"id": st.text(min_size=1, max_size=5), "type": st.just("function"), "function": functions}
)
messages = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | texts},
    optional={
        "reasoning_content": st.none() | texts,
        "reasoning": st.none() | texts,
        "refusal": st.none() | texts,
        "tool_calls": st.lists(calls, min_size=1, max_size=2),
    },
)
choices = st.fixed_dictionaries(
    {"message": messages, "finish_reason": st.sampled_from(["stop", "length"])},
    optional={
        "logprobs": st.none() | st.fixed_dictionaries({"content": tokens, "refusal": st.none()}),
        "stop_reason": scalars,
    },
)
completions = st.fixed_dictionaries(
    {"id": texts, "object": st.just("chat.completion"), "choices": st.lists(choices, min_size=1, max_size=3)},
    optional={"created": scalars, "model": texts, "usage": st.dictionaries(texts, scalars, min_size=1, max_size=2)},
)


def cut(draw: st.DataObject, text: Any) -> list[Any]:
    """A text in pieces, none of them empty unless it is the only one."""
    places = sorted(draw.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=3)))
    return [text[start:end] for start, end in pairwise([0, *places, len(text)]) if text[start:end]] or [text]


def deltas(draw: st.DataObject, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a message is torn into."""
    yield {key: value for key, value in message.items() if key == "role" or value is None}
    for key, value in message.items():
        if key == "tool_calls":
            for at, call in enumerate(value):
                yield {key: [{"index": at, **call, "function": {**call["function"], "arguments": ""}}]}
                for piece in cut(draw, call["function"]["arguments"]):
                    yield {key: [{"index": at, "function": {"arguments": piece}}]}
        elif isinstance(value, str) and key != "role":
            yield from ({key: piece} for piece in cut(draw, value))


def pieces_of(draw: st.DataObject, index: int, choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a choice is torn into."""
    logprobs = choice.get("logprobs")
    last = {key: value for key, value in choice.items() if key not in ("message", "logprobs")}
    for delta in deltas(draw, choice["message"]):
        yield {"index": index, "delta": delta, **({"logprobs": None} if "logprobs" in choice else {})}
    for tokens in cut(draw, logprobs["content"]) if logprobs else ():
        yield {"index": index, "delta": {}, "logprobs": {"content": tokens, "refusal": None}}
    yield {"index": index, "delta": {}, **last}


def tear(draw: st.DataObject, completion: dict[str, Any]) -> list[dict[str, Any]]:
    """A completion torn into chunks, those of its choices mixed."""
    head = {**completion, "object": "chat.completion.chunk"}
    head.pop("usage", None)
    streams = [list(pieces_of(draw, at, choice)) for at, choice in enumerate(completion["choices"])]
    chunks = []
    while streams := [stream for stream in streams if stream]:
        chunks.append({**head, "choices": [draw.draw(st.sampled_from(streams)).pop(0)]})
    if "usage" in completion:
        is_apart = draw.draw(st.booleans())
        chunks += [{**head, "choices": []}] if is_apart else []
        chunks[-1]["usage"] = completion["usage"]
    return chunks


@settings(deadline=None)
@given(completions, st.booleans(), st.data())
def test_a_completion_that_is_torn_comes_out_equal_to_itself(
    completion: dict[str, Any], ascii_only: bool, draw: st.DataObject
) -> None:
    for at, choice in enumerate(completion["choices"]):
        choice["index"] = at
    chunks = [json.dumps(each, ensure_ascii=ascii_only) for each in tear(draw, completion)]
    assert put(*cut(draw, events(*chunks))) == completion


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs"}]}),
        (400, {"error": {"message": "Unknown parameter: 'stream_options'.", "param": "stream_options"}}),
        (400, {"error": {"message": "Unrecognized request argument supplied: stream_options", "param": None}}),
    ],
)
def test_a_server_may_not_know_what_asks_for_the_tokens(status: int, body: Any) -> None:
    assert refuses_usage(status, json.dumps(body).encode())
    assert not refuses_usage(500, json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        {"detail": [{"loc": ["body", "temperature"], "input": {"stream": True, "stream_options": {}}}]},
        {"error": {"message": "temperature: {'stream_options': {}}"}},
        {"error": {"message": 'temperature: {"stream_options" : {}}'}},
        {"error": {"message": "no"}},
    ],
)
def test_an_error_that_quotes_the_request_is_about_something_else(body: Any) -> None:
    assert not refuses_usage(400, json.dumps(body).encode())


def test_a_stream_is_asked_for_behind_all_else() -> None:
    body = b'{"model":"m","messages":[]}'
    asked = b'{"model":"m","messages":[],"stream":true'
    assert ask_stream(body) == asked + b',"stream_options":{"include_usage":true}}'
    assert ask_stream(body, has_usage=False) == asked + b"}"
