"""replay: a cached answer is, byte for byte, the line that was printed the first time."""

import json
import struct
from zlib import adler32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import Member, line_members, objects, write_object

from llmfilter.answers.checks import Answer, Checks
from llmfilter.api.completion import Completion, parse_completion
from llmfilter.cache.replay import Replay
from llmfilter.cache.stored import pack
from llmfilter.errors import RowError
from llmfilter.jsontext import Row, parse_json, splice
from llmfilter.stats import Stats, Usage

KEY = bytes(32)
ROW = (1, b'{"c":1}', {"c": 1})

EACH_CHECKS = [Checks(), Checks(fields=["a"]), Checks(key="b"), Checks(is_text=True)]
contents = st.one_of(
    objects,
    objects.map("<think>x</think>\n{}".format),
    st.sampled_from(["{}", "[]", "plain", '{"a":1}{"a":2}', '```json\n{"a": 1}\n```', '{"a":1,"a":2}', '{"a":1e400}']),
)


def replay(by: Replay, row: Row, key: bytes, stored: bytes | None) -> bytes | RowError | None:
    """What becomes of one row."""
    (outcome,) = by.outcomes([row], [key], [stored])
    return outcome


def body_of(content: str, ascii_only: bool = True) -> bytes:
    choice = {"message": {"content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    return json.dumps({"choices": [choice], "usage": usage}, ensure_ascii=ascii_only).encode()


@settings(deadline=None)
@given(contents, line_members, st.sampled_from(EACH_CHECKS), st.booleans())
@example('{"a":\n1}', [Member("c", '"c"', "1")], EACH_CHECKS[0], True)
@example('{"a":\r1}', [Member("c", '"c"', "1")], EACH_CHECKS[0], True)
@example('{"a": "\u2028é"}', [], EACH_CHECKS[0], False)
@example('{"a": "\u2028é"}', [Member("c", '"c"', "1.0")], EACH_CHECKS[0], True)
@example(json.dumps(dict.fromkeys(map(str, range(500)))), [Member("c", '"c"', "1")], EACH_CHECKS[0], True)
def test_it_is_the_line_of_the_first_time(
    content: str, members: list[Member], checks: Checks, ascii_only: bool
) -> None:
    raw = write_object(members, "").encode()
    record, body = parse_json(raw), body_of(content, ascii_only)
    fresh = parse_completion(body)
    answers: list[Answer | None] = [None]
    try:
        answers.append(checks.parse(fresh.content))
        answers += [EACH_CHECKS[0].parse(fresh.content)]  # the keys that another run has stored
    except RowError:
        pass
    line = splice(raw, record, *answers[1]) if len(answers) > 1 and answers[1] else None
    for answer in answers:
        stats = Stats()
        replayed = replay(Replay(checks, stats), (1, raw, record), KEY, pack(KEY, fresh, answer))
        check_replay(replayed, line, stats)


def check_replay(replayed: bytes | RowError | None, line: bytes | None, stats: Stats) -> None:
    assert (None if isinstance(replayed, RowError) else replayed) == line
    counted = (1, 1, 5, 3) if line else (0, 0, 0, 0)
    assert (stats.answered, stats.cached, *stats.saved[:2]) == counted


@pytest.mark.parametrize("size", range(60))
def test_what_is_cut_off_is_a_miss(size: int) -> None:
    body = body_of('{"a": 1}')
    stored = pack(KEY, parse_completion(body))[:size]
    assert replay(Replay(Checks(), Stats()), ROW, KEY, stored) is None


def store(version: int, *fields: int, rest: bytes) -> bytes:
    """What a version has stored under KEY."""
    stored = struct.pack(f"<BH{len(fields) - 1}I", version, *fields) + rest
    return adler32(stored, adler32(KEY)).to_bytes(4, "little") + stored


def test_what_is_stored_can_always_be_read() -> None:
    """If this fails, everybody pays again for what is in their caches."""
    body = b'{"choices":[{"message":{"content":"{\\"a\\":1}"},"finish_reason":"stop"}]}'
    stored = store(4, 23 + 5, 28 + 34, 28 + 45, 5, 3, rest=b'["a"]' + body)
    assert pack(KEY, Completion(body, '{"a":1}', Usage(5, 3)), (b'{"a":1}', {"a": 1})) == stored
    for checks, line in ((Checks(), b'{"c":1,"a":1}\n'), (Checks(key="b"), b'{"c":1,"b":{"a":1}}\n')):
        assert replay(Replay(checks, Stats()), ROW, KEY, stored) == line


def test_what_is_stored_with_cached_tokens_can_always_be_read() -> None:
    """A body without them is stored as ever, so that older programs on the same cache can read it."""
    body = b'{"choices":[{"message":{"content":"{\\"a\\":1}"},"finish_reason":"stop"}]}'
    stored = store(5, 27 + 5, 32 + 34, 32 + 45, 5, 3, 4, rest=b'["a"]' + body)
    assert pack(KEY, Completion(body, '{"a":1}', Usage(5, 3, 4)), (b'{"a":1}', {"a": 1})) == stored
    for checks, line in ((Checks(), b'{"c":1,"a":1}\n'), (Checks(key="b"), b'{"c":1,"b":{"a":1}}\n')):
        stats = Stats()
        assert replay(Replay(checks, stats), ROW, KEY, stored) == line
        assert stats.saved == (5, 3, 4)


def test_what_another_version_has_stored_is_a_miss() -> None:
    body = body_of('{"a": 1}')
    assert replay(Replay(Checks(), Stats()), ROW, KEY, store(3, 23, 0, 0, 5, 3, rest=body)) is None
    line = replay(Replay(Checks(), Stats()), ROW, KEY, store(4, 23, 0, 0, 5, 3, rest=body))
    assert line == b'{"c":1,"a": 1}\n'


@given(
    st.integers(0, 2000),
    st.integers(1, 255),
    st.sampled_from(EACH_CHECKS),
    st.sampled_from([("12345", None), ('{"a": 1}', None), ('{"a": 1}', (b'{"a": 1}', {"a": 1}))]),
)
def test_a_damaged_byte_is_a_miss(at: int, change: int, checks: Checks, answered: tuple[str, Answer | None]) -> None:
    content, answer = answered
    stored = bytearray(pack(KEY, parse_completion(body_of(content)), answer))
    stored[at % len(stored)] ^= change
    assert replay(Replay(checks, Stats()), ROW, KEY, bytes(stored)) is None


def test_what_is_stored_under_another_key_is_a_miss() -> None:
    stored = pack(KEY, parse_completion(body_of('{"a": 1}')))
    assert replay(Replay(Checks(), Stats()), ROW, bytes(31) + b"\1", stored) is None


def test_an_answer_that_fails_todays_checks_is_returned_as_what_is_wrong_with_it() -> None:
    stored = pack(KEY, parse_completion(body_of('{"a": 1}')))
    fault = replay(Replay(Checks(fields=["b"]), Stats()), ROW, KEY, stored)
    assert isinstance(fault, RowError) and (fault.kind, fault.raw) == ("invalid", '{"a": 1}')


MISSES = ["damaged", "cut off", "not found"]
KINDS = ["plain", "plain", "plain", "without keys", "in more lines", *MISSES]


@settings(deadline=None)
@given(st.lists(st.tuples(objects, line_members, st.sampled_from(KINDS), st.integers(0, 9)), min_size=1, max_size=20))
def test_a_block_of_rows_is_replayed_as_each_of_them_alone(block: list[tuple[str, list[Member], str, int]]) -> None:
    rows, keys, found = [], [], []
    for number, (content, members, kind, cached) in enumerate(block, 1):
        raw, key = write_object(members, "").encode(), bytes([number]) * 32
        text = f"{content}\n" if kind == "in more lines" else content
        completion = parse_completion(body_of(text))._replace(usage=Usage(10, 3, cached))
        stored = pack(key, completion, None if kind == "without keys" else Checks().parse(text))
        rows.append((number, raw, parse_json(raw)))
        keys.append(key if kind != "damaged" else bytes(32))
        found.append({"not found": None, "cut off": stored[:9]}.get(kind, stored))
    together, alone = Stats(), Stats()
    outcomes = Replay(Checks(), together).outcomes([*rows, ROW], [*keys, KEY], found)
    assert [each is None for each in outcomes] == [kind in MISSES for _, _, kind, _ in block]
    assert outcomes == [
        replay(Replay(Checks(), alone), row, key, stored) for row, key, stored in zip(rows, keys, found, strict=True)
    ]
    counted = [(stats.cached, stats.saved, stats.replaced) for stats in (together, alone)]
    assert counted[0] == counted[1]
