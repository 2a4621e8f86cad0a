"""Streams of events as servers send them, and the completions that they add up to."""

import json
from typing import Any


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
