"""stream: what servers send piece by piece → the completion that would have come whole."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfilter.api.completion import parse_completion
from llmfilter.api.faults import error_codes
from llmfilter.api.stream import Stream, is_stream
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


def events(*chunks: Any, end: str = "data: [DONE]\n\n") -> bytes:
    texts = [chunk if isinstance(chunk, str) else json.dumps(chunk, ensure_ascii=False) for chunk in chunks]
    return ("".join(f"data: {text}\n\n" for text in texts) + end).encode("utf-8", "backslashreplace")


def chunk(finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def whole(finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, **message}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion", "choices": [choice]}


USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "m"}
A, B = chunk(content="a"), chunk("stop", content="é😀")
AB = whole(content="aé😀")
CALL = {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}

STREAMS = {
    "LF, [DONE]": (events(A, B), AB),
    "CRLF": (events(A, B).replace(b"\n", b"\r\n"), AB),
    "no blank behind the colon": (events(A, B).replace(b"data: ", b"data:"), AB),
    "no [DONE], no last line break": (events(A, B, end="").rstrip(), AB),
    "one line break": (events(A, B).replace(b"\n\n", b"\n"), AB),
    "comments, names, blank lines, nothing in an event": (
        b": OPENROUTER PROCESSING\n\nevent: message\nid: 1\nretry: 5\n\n\n\n: keep-alive\ndata:\n\n" + events(A, B),
        AB,
    ),
    "what comes behind the end says nothing": (events(A, B) + events(A) + b"data: {\n\n", AB),
    "Azure's first chunk": (
        events({"choices": [], "id": "", "prompt_filter_results": [{"prompt_index": 0}]}, A, B),
        AB | {"prompt_filter_results": [{"prompt_index": 0}]},
    ),
    "nulls, the role and the name of the model with each": (
        events(
            HEAD | chunk(role="assistant", content="", refusal=None) | {"usage": None},
            HEAD | chunk(role="assistant", content="a") | {"usage": None},
            HEAD | chunk("stop", role="assistant", content=None) | {"usage": None},
        ),
        HEAD | whole(content="a", refusal=None) | {"usage": None},
    ),
    "an index nowhere": (
        events({"choices": [{"delta": {"content": "a"}}]}, {"choices": [{"finish_reason": "stop"}]}),
        {
            "object": "chat.completion",
            "choices": [{"message": whole(content="a")["choices"][0]["message"], "finish_reason": "stop"}],
        },
    ),
    "reasoning_content": (
        events(chunk(reasoning_content="h"), chunk(reasoning_content="m"), A, B),
        whole(content="aé😀", reasoning_content="hm"),
    ),
    "reasoning": (
        events(chunk(reasoning="h", content=""), chunk(reasoning="m"), A, B),
        whole(content="aé😀", reasoning="hm"),
    ),
    "a think tag cut in two": (
        events(chunk(content="<thi"), chunk(content="nk>x</th"), chunk("stop", content="ink>a")),
        whole(content="<think>x</think>a"),
    ),
    "Mistral's parts": (
        events(
            chunk(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "h"}]}]),
            chunk(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "m"}]}]),
            A,
            B,
        ),
        whole(
            content=[
                *({"type": "thinking", "thinking": [{"type": "text", "text": text}]} for text in "hm"),
                {"type": "text", "text": "aé😀"},
            ]
        ),
    ),
    "a refusal": (events(chunk(refusal="I "), chunk("stop", refusal="won't")), whole(refusal="I won't")),
    "message for delta": (
        events({"id": "c", "choices": [{"index": 0, "message": {"content": "aé😀"}, "finish_reason": "stop"}]}),
        AB,
    ),
    "usage in a last chunk": (events(A, B, {"choices": [], "usage": USAGE}), AB | {"usage": USAGE}),
    "usage in a last chunk without choices": (events(A, B, {"usage": USAGE}), AB | {"usage": USAGE}),
    "usage with the last text": (events(A, B | {"usage": USAGE}), AB | {"usage": USAGE}),
    "Groq's usage": (
        events(A | {"x_groq": {"id": "g"}}, B | {"x_groq": {"id": "g", "usage": USAGE}}),
        AB | {"usage": USAGE, "x_groq": {"id": "g", "usage": USAGE}},
    ),
    "usage that grows": (events(A | {"usage": {"prompt_tokens": 7}}, B | {"usage": USAGE}), AB | {"usage": USAGE}),
    "usage within the choice": (
        events(
            A,
            {"id": "c", "choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "stop", "usage": USAGE}]},
        ),
        {
            **whole(),
            "choices": [whole(content="ab")["choices"][0] | {"usage": USAGE}],
            "usage": USAGE,
        },
    ),
    "a final usage and no finish_reason": (
        events(A, {"choices": [], "usage": USAGE}),
        whole(None, content="a") | {"usage": USAGE},
    ),
    "a finish_reason taken back by a later chunk": (events(A, B, chunk()), AB),
    "an empty finish_reason": (events(chunk("", content="a"), B), AB),
    "two choices, mixed": (
        events(A, chunk(index=1, content="x"), B, chunk(index=1, content="y"), chunk("length", index=1)),
        AB | {"choices": [*AB["choices"], {**whole("length", content="xy")["choices"][0], "index": 1}]},
    ),
    "two choices in one chunk": (
        events({"id": "c", "choices": [*chunk("length", index=1, content="x")["choices"], *B["choices"]]}),
        {
            **AB,
            "choices": [*whole(content="é😀")["choices"], {**whole("length", content="x")["choices"][0], "index": 1}],
        },
    ),
    "log-probabilities": (
        events(
            {
                "choices": [
                    {
                        "index": 0,
                        "delta": {"content": "a"},
                        "logprobs": {"content": [{"token": "a", "logprob": -0.5}], "refusal": None},
                    }
                ]
            },
            {
                "choices": [
                    {
                        "index": 0,
                        "delta": {"content": "b"},
                        "logprobs": {
                            "content": [{"token": "b", "logprob": -1.5}, {"token": "", "logprob": -2e-7}],
                            "refusal": None,
                        },
                    }
                ]
            },
            {"choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]},
        ),
        {
            "object": "chat.completion",
            "choices": [
                {
                    **whole(content="ab")["choices"][0],
                    "logprobs": {
                        "content": [
                            {"token": "a", "logprob": -0.5},
                            {"token": "b", "logprob": -1.5},
                            {"token": "", "logprob": -2e-7},
                        ],
                        "refusal": None,
                    },
                }
            ],
        },
    ),
    "a token twice": (
        events(
            *[{"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{"token": "a"}]}}]}] * 2,
            {"choices": [{"index": 0, "finish_reason": "stop"}]},
        ),
        {
            "object": "chat.completion",
            "choices": [{**whole(content="aa")["choices"][0], "logprobs": {"content": [{"token": "a"}] * 2}}],
        },
    ),
    "a chunk twice, with a message": (
        events(*[{"choices": [{"index": 0, "message": {"content": "a"}}]}] * 2, {"usage": USAGE}, {"usage": USAGE}),
        {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "aa"}}],
            "usage": USAGE,
        },
    ),
    "usage that stays": (
        events(A | {"usage": USAGE}, {"id": "c", "choices": [], "usage": USAGE}),
        whole(None, content="a") | {"usage": USAGE},
    ),
    "tool calls": (
        events(
            chunk(content=None, tool_calls=[{"index": 0, **CALL, "function": {"name": "f", "arguments": ""}}]),
            chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
            chunk(tool_calls=[{"index": 1, **CALL, "id": "u"}]),
            chunk("tool_calls", tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
        ),
        whole("tool_calls", tool_calls=[CALL, CALL | {"id": "u"}]),
    ),
    "tool calls with all of their name each time": (
        events(
            chunk(tool_calls=[{"index": 0, **CALL, "function": {"name": "f", "arguments": '{"a"'}}]),
            chunk("tool_calls", tool_calls=[{"index": 0, **CALL, "function": {"name": "f", "arguments": ":1}"}}]),
        ),
        whole("tool_calls", tool_calls=[CALL]),
    ),
    "tool calls without an index": (
        events(chunk(tool_calls=[CALL]), chunk("tool_calls", tool_calls=[CALL | {"id": "u"}])),
        whole("tool_calls", tool_calls=[CALL, CALL | {"id": "u"}]),
    ),
    "what else a choice and a delta may have": (
        events(
            {"choices": [{"index": 0, "delta": {"content": "a", "annotations": [1], "audio": {"data": "x"}, "n": 1}}]},
            {
                "choices": [
                    {
                        "index": 0,
                        "delta": {"annotations": [2], "audio": {"data": "y"}, "n": 2},
                        "finish_reason": "stop",
                        "stop_reason": 5,
                    }
                ]
            },
        ),
        {
            "object": "chat.completion",
            "choices": [
                {**whole(content="a", annotations=[1, 2], audio={"data": "xy"}, n=2)["choices"][0], "stop_reason": 5}
            ],
        },
    ),
    "half a character in each of two chunks": (
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"\\ud83d"},"finish_reason":null}]}\n\n'
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"\\ude00"},"finish_reason":"stop"}]}\n\n',
        whole(content="😀"),
    ),
    "whole, and then half an event": (events(A, B, end='data: {"choices": []'), AB),
}


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


SAID = {"error": {"message": "overloaded", "type": "server_error", "code": 529}}
NO_CREDIT = {"error": {"message": "no credit", "code": "insufficient_quota"}}
ENDED = "the stream ended before the answer did (no finish_reason, no usage)"
CUT = "the stream holds an event that is not whole JSON"
SENT = "the server sent an error within the stream: "

BROKEN = {
    "nothing": (b"", ENDED, None),
    "nothing but the end": (events(), ENDED, None),
    "an end without a reason": (events(A), ENDED, "a"),
    "no end at all": (events(A, end=""), ENDED, "a"),
    "half an event": (events(A, end='data: {"choices":[{"delta":{"content":"b'), CUT, "a"),
    "a usage that is not the last": (events(A | {"usage": USAGE}, chunk(content="b")), ENDED, "ab"),
    "a usage before the text": (events({"choices": [], "usage": USAGE}, A), ENDED, "a"),
    "one of two choices": (events(A, chunk("stop", index=1, content="b")), ENDED, "a"),
    "an error": (events(A, SAID), SENT + "overloaded", "a"),
    "an error at once": (events(SAID), SENT + "overloaded", None),
    "an error with a finish_reason": (events(A, SAID | chunk("error")), SENT + "overloaded", "a"),
    "llama.cpp's error": (events(A, end='error: {"code":500,"message":"overloaded"}\n\n'), SENT + "overloaded", "a"),
    "an error line that is no JSON": (events(A, end="error: overloaded\n\n"), CUT, "a"),
    "Gemini's list": (events(A, [SAID]), SENT + "overloaded", "a"),
    "a flat error": (
        events(A, {"object": "error", "message": "overloaded"}),
        ENDED.partition(" (")[0] + ": overloaded",
        "a",
    ),
    "an event that is not JSON": (events(A, "{"), CUT, "a"),
    "bytes that are no text": (events(A, end="") + b'data: {"\xff": 1}\n\n', CUT, "a"),
    "reasoning only": (events(chunk(reasoning="hm")), ENDED, "hm"),
    "no choice is an object": (events({"choices": [1, None, "x"]}, {"choices": {"a": 1}}), ENDED, None),
}


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
