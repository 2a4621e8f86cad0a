"""replay: a cached answer is, byte for byte, the line that was printed the first time."""

import json
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import Member, line_members, objects, write_object

from llmfilter.answer import Checks
from llmfilter.completion import Completion, pack, read_completion
from llmfilter.errors import RowError
from llmfilter.record import parse_json, splice
from llmfilter.replay import Replay
from llmfilter.stats import Stats

EACH_CHECKS = [Checks(), Checks(fields=["a"]), Checks(key="b"), Checks(is_text=True)]
contents = st.one_of(
    objects,
    objects.map("<think>x</think>\n{}".format),
    st.sampled_from(["{}", "[]", "plain", '{"a":1}{"a":2}', '```json\n{"a": 1}\n```', '{"a":1,"a":2}', '{"a":1e400}']),
)


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
    record, body, stats = parse_json(raw), body_of(content, ascii_only), Stats()
    fresh = read_completion(body)
    try:
        line = splice(raw, record, *checks.parse(fresh.content))
    except RowError:
        line = None
    assert Replay(checks, stats).line(pack(body, fresh), raw, record) == line
    counted = (1, 1, 5, 3) if line else (0, 0, 0, 0)
    assert (stats.answered, stats.cached, stats.saved_prompt, stats.saved_completion) == counted


@pytest.mark.parametrize("size", range(60))
def test_what_is_cut_off_is_a_miss(size: int) -> None:
    body = body_of('{"a": 1}')
    stored = pack(body, read_completion(body))[:size]
    assert Replay(Checks(), Stats()).line(stored, b'{"c":1}', {"c": 1}) is None


def test_what_is_stored_can_always_be_read() -> None:
    """If this fails, everybody pays again for what is in their caches."""
    body = b'{"choices":[{"message":{"content":"{\\"a\\":1}"},"finish_reason":"stop"}]}'
    first = b"\x01" + struct.pack("<IIII", 17 + 34, 17 + 45, 5, 3) + body
    second = b"\x02" + struct.pack("<HIIII", 19 + 5, 24 + 34, 24 + 45, 5, 3) + b'["a"]' + body
    assert pack(body, Completion('{"a":1}', 5, 3)) == second
    for stored in (first, second):
        for checks, line in ((Checks(), b'{"c":1,"a":1}\n'), (Checks(key="b"), b'{"c":1,"b":{"a":1}}\n')):
            assert Replay(checks, Stats()).line(stored, b'{"c":1}', {"c": 1}) == line


def test_what_a_later_version_has_stored_is_a_miss() -> None:
    body = body_of('{"a": 1}')
    stored = b"\x03" + pack(body, read_completion(body))[1:]
    assert Replay(Checks(), Stats()).line(stored, b'{"c":1}', {"c": 1}) is None


@given(st.integers(0, 2000), st.integers(0, 255), st.sampled_from(EACH_CHECKS), st.sampled_from(["12345", '{"a": 1}']))
def test_damage_never_ends_the_run(at: int, byte: int, checks: Checks, content: str) -> None:
    body = body_of(content)
    stored = bytearray(pack(body, read_completion(body)))
    stored[at % len(stored)] = byte
    line = Replay(checks, Stats()).line(bytes(stored), b'{"c":1}', {"c": 1})
    assert line is None or line.startswith(b'{"c":')


@pytest.mark.parametrize("keys", [b"5", b"[5]", b"[[1]]", b"{}", b'"a"', b"[", b"null", b'["a"]', b""])
@pytest.mark.parametrize("content", [b"5", b"[]", b"null", b'"'])
def test_foreign_keys_and_contents_are_a_miss(keys: bytes, content: bytes) -> None:
    end = 19 + len(keys)
    stored = b"\x02" + struct.pack("<HIIII", end, end, end + len(content), 5, 3) + keys + content
    assert Replay(Checks(), Stats()).line(stored, b'{"c":1}', {"c": 1}) is None
