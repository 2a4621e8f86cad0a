"""replay: a cached answer is, byte for byte, the line that was printed the first time."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import Member, line_members, objects, write_object

from llmfilter.answer import Checks
from llmfilter.completion import pack, read_completion
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
        line = splice(raw, record, *checks.read(fresh.content))
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


def test_what_another_version_has_stored_is_a_miss() -> None:
    body = body_of('{"a": 1}')
    stored = b"\xff" + pack(body, read_completion(body))[1:]
    assert Replay(Checks(), Stats()).line(stored, b'{"c":1}', {"c": 1}) is None
