"""completion: a body with HTTP 200 → the model's content, and back from the cache.

What each server's body means is in test_answers_golden.
"""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmfilter.api.completion import parse_completion
from llmfilter.cache.stored import HEADER, is_whole, pack, parse_content
from llmfilter.errors import Faulty

any_text = st.text(st.characters(exclude_categories=()), min_size=1).filter(lambda text: not text.isspace())

KEY = bytes(32)


def body_of(message: dict[str, Any], ascii_only: bool = True, **beside: Any) -> bytes:
    document = {"id": "c-1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **beside}
    return json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "backslashreplace")


def unpack(stored: bytes) -> tuple[str, int, int]:
    assert is_whole(KEY, stored)
    *_, keys_end, start, end, prompt_tokens, completion_tokens, _ = HEADER.unpack_from(stored)
    return parse_content(stored, keys_end, start, end)[0], prompt_tokens, completion_tokens


@settings(deadline=None)
@given(any_text, st.booleans(), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@example('{"a":"é\ud83d"}', True, 1, 2)
@example("\ud800", False, 1, 2)
@example('"', True, 0, 0)
@example("c-1", True, 0, 0)
def test_a_stored_completion_reads_back(text: str, ascii_only: bool, prompt: int, completion: int) -> None:
    body = body_of({"content": text}, ascii_only, usage={"prompt_tokens": prompt, "completion_tokens": completion})
    fresh = parse_completion(body)
    assert fresh.fault is None
    stored = pack(KEY, fresh)
    assert stored.endswith(body)
    replay = unpack(stored)
    assert replay == (fresh.content, *fresh.usage[:2])
    assert replay[1:] == (prompt, completion)


def test_a_stored_completion_of_parts_reads_back() -> None:
    parts = [{"type": "thinking", "text": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = body_of({"content": parts})
    assert unpack(pack(KEY, parse_completion(body))) == ("ab", 0, 0)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}, (7, 0)),
        ({"prompt_tokens": 7}, (7, 0)),
        ({"prompt_tokens": None, "completion_tokens": 3}, (0, 3)),
        ({"prompt_tokens": -1, "completion_tokens": True}, (0, 0)),
        ({"prompt_tokens": 1.5, "completion_tokens": "3"}, (0, 0)),
        ({"prompt_tokens": 2**40, "completion_tokens": 1}, (0, 0)),  # a part would be kept for the whole
        ({"prompt_tokens": 7.5, "completion_tokens": 1}, (0, 0)),
        ({"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": "8"}, (7, 1)),
        ({"prompt_tokens": 7.0, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": "x"}}, (7, 1)),
        ({}, (0, 0)),
        (None, (0, 0)),
        ([], (0, 0)),
    ],
)
def test_tokens_count_only_where_the_server_counts_them(usage: Any, tokens: tuple[int, int]) -> None:
    found = parse_completion(body_of({"content": "{}"}, usage=usage))
    assert found.usage == (*tokens, 0)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 20}, (7, 13, 0)),  # xAI, Gemini: reasoning
        ({"total_tokens": 20}, (0, 20, 0)),
        ({"prompt_tokens": 135.0, "completion_tokens": 3.0}, (135, 3, 0)),
        ({"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}, (9, 3, 8)),
        ({"prompt_tokens": 9, "completion_tokens": 3, "prompt_cache_hit_tokens": 6}, (9, 3, 6)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"audio": 1}, "prompt_cache_hit_tokens": 6}, (9, 0, 6)),
        ({"prompt_tokens": 9, "prompt_tokens_details": None}, (9, 0, 0)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 10}}, (9, 0, 9)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": "8"}}, (9, 0, 0)),
    ],
)
def test_each_dialect_of_usage_is_understood(usage: Any, tokens: tuple[int, int, int]) -> None:
    assert parse_completion(body_of({"content": "{}"}, usage=usage)).usage == tokens


@settings(deadline=None, max_examples=300)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "error",
                        "choices",
                        "message",
                        "content",
                        "finish_reason",
                        "refusal",
                        "usage",
                        "tool_calls",
                        "type",
                        "text",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
@example({"choices": [{"message": {"content": {"text": "x"}}}]})
@example({"choices": [{"message": {"content": [None, {"type": "text"}, {"type": "text", "text": 5}]}}]})
@example({"choices": [{"message": {"content": 5, "refusal": {}, "reasoning": 5}, "finish_reason": []}], "usage": "x"})
@example({"choices": {"0": {}}})
@example({"error": False})
def test_no_body_is_too_strange(document: Any) -> None:
    try:
        assert isinstance(parse_completion(json.dumps(document).encode()).content, str)
    except Faulty as fault:
        assert fault.kind == "server"


@pytest.mark.parametrize(
    ("body", "raw"),
    [
        ("é".encode() * 5_000, "é" * 1_000),
        (b'{"choices": "\xff"}', '{"choices": "\ufffd"}'),
        (b"[" * 100_000, "[" * 1_000),
    ],
)
def test_a_faulty_body_is_shown_by_its_beginning(body: bytes, raw: str) -> None:
    with pytest.raises(Faulty) as caught:
        parse_completion(body)
    assert caught.value.raw == raw


@pytest.mark.parametrize(
    "error", [{"code": 502}, {"code": 502, "message": None}, {"metadata": {"raw": "overloaded 502"}}]
)
def test_an_error_without_words_is_shown_as_it_stands(error: dict[str, Any]) -> None:
    with pytest.raises(Faulty, match="502"):
        parse_completion(json.dumps({"error": error, "choices": None}).encode())
