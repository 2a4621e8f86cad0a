"""record: JSON as bytes, parsed to be read and spliced to be written."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import Member, Num, exact, line_blanks, line_members, objects, refuse, values, write_object

from llmfilter.jsontext import dump_text, members, object_end, one_line, parse_json, splice

# What JSON is made of, and what looks like it.
PIECES = ["{", "}", "[", "]", ":", ",", '"', '"a"', "1", "-", "0", ".5", "1.", "e5", "01", "+1", "true", "nul", "NaN"]
PIECES += ["Infinity", " ", "\n", "\\", "\\u12", '"\\ud800"', "\x00", "\x0b", "\ufeff", "'", "1e400", "é", "9" * 5000]


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_int=Num, parse_float=Num, parse_constant=refuse)
    except ValueError:
        return False
    return True


def is_taken(text: str | bytes) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def splice_texts(raw: str, answer: str) -> str:
    line = splice(raw.encode(), parse_json(raw), answer.encode(), parse_json(answer))
    assert line.endswith(b"\n")
    return line[:-1].decode()


# Parsing


@settings(deadline=None, max_examples=150)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_valid_json_parses_as_with_pythons_json(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert parse_json(text) == parse_json(text.encode()) == json.loads(text) == value


@settings(deadline=None, max_examples=150)
@given(values)
def test_everything_that_is_json_is_taken(text: str) -> None:
    assert is_taken(text)
    assert is_taken(text.encode())


@settings(deadline=None, max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(max_size=5))
def test_what_is_not_json_is_refused(text: str) -> None:
    assert is_taken(text) == is_taken(text.encode()) == is_json(text)


@pytest.mark.parametrize(
    "odd", ["1e400", "-1e400", "1e99999999999999999999", "9" * 5000, '"\\ud800"', "12345678901234567890123"]
)
def test_json_that_orjson_refuses_is_taken_all_the_same(odd: str) -> None:
    value = parse_json(f'{{"odd": {odd}, "text": "é", "flag": true}}'.encode())
    assert list(value) == ["odd", "text", "flag"]
    assert (value["text"], value["flag"]) == ("é", True)


@pytest.mark.parametrize(
    "text", [b'{"a": "\xff"}', '{"a":1}'.encode("utf-16"), '{"a":1}'.encode("utf-32-le"), b"\xed\xa0\x80"]
)
def test_bytes_that_are_not_utf8_are_refused(text: bytes) -> None:
    assert not is_taken(text)


def test_the_message_says_where_parsing_stopped() -> None:
    with pytest.raises(ValueError, match="line 2 column 6"):
        parse_json(b'{"a": 1,\n "b" 2}')


@pytest.mark.parametrize("odd", ["1", "1e400", '"\\ud800"', '"]]\\"[[[{"'])
@pytest.mark.parametrize("opening", ["[", '{"a\\"[":'])
def test_1024_levels_are_taken_and_no_more_whoever_parses_them(odd: str, opening: str) -> None:
    def nest(depth: int) -> str:
        return opening * depth + odd + ("]" if opening == "[" else "}") * depth

    assert is_taken(nest(1_024))
    for depth in (1_025, 5_000, 100_000):
        with pytest.raises(ValueError, match=r"^it is nested too deeply$"):
            parse_json(nest(depth).encode())


def test_the_recursion_limit_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.setrecursionlimit", None)
    assert is_taken("[1e400]")
    assert not is_taken("[1e400")


# Bytes


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
@example("\ud800 😀 \x00\x7f\u2028")
def test_any_text_becomes_json_in_utf8_that_reads_back(text: str) -> None:
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # two halves that meet join
    assert json.loads(dump_text(text).decode()) == whole


@settings(deadline=None, max_examples=150)
@given(values)
def test_one_line_takes_line_breaks_away_and_nothing_else(text: str) -> None:
    line = one_line(text)
    assert b"\n" not in line
    assert b"\r" not in line
    assert exact(line) == exact(text)
    assert re.sub("[ \t]", "", line.decode()) == re.sub("[ \t\r\n]", "", text)


@settings(deadline=None, max_examples=150)
@given(line_members, line_blanks)
def test_the_members_of_an_object_come_as_they_stand(drawn: list[Member], blank: str) -> None:
    found = members(write_object(drawn, blank).encode())
    assert found == [(each.key, each.key_text.encode(), each.value_text.encode()) for each in drawn]


def test_an_objects_end_is_found_in_any_text() -> None:
    assert object_end('see {"a": "}"}} there', 4) == 14
    assert object_end("see {that}", 4) == -1
    assert object_end("[" * 100_000, 0) == -1


# Splicing


@settings(deadline=None, max_examples=150)
@given(line_members, line_members, line_blanks, line_blanks)
def test_a_line_is_the_merge_and_untouched_members_keep_their_bytes(
    record: list[Member], answer: list[Member], blank: str, answer_blank: str
) -> None:
    raw, answer_text = write_object(record, blank), write_object(answer, answer_blank)
    line = splice_texts(raw, answer_text)
    assert "\n" not in line
    merge = exact(raw) | exact(answer_text)
    assert exact(line) == merge
    assert list(exact(line)) == list(merge)
    at = 0
    for member in record:
        if member.key not in exact(answer_text):
            at = line.index(member.key_text, at) + len(member.key_text)
            at = line.index(member.value_text, at) + len(member.value_text)


@pytest.mark.parametrize(
    ("raw", "answer", "line"),
    [
        ('{"id": 12345678901234567890123, "x": 1.0}', '{"y":2}', '{"id": 12345678901234567890123, "x": 1.0,"y":2}'),
        ('{"id": 12345678901234567890123, "x": 1.0}', '{"x": 2}', '{"id": 12345678901234567890123, "x": 2}'),
        ('{"n": 1e400, "s": "\\ud800\\u00e9"}', '{"m":1E400}', '{"n": 1e400, "s": "\\ud800\\u00e9","m":1E400}'),
        ('{ "a": 1\t}', '{ "b":2 }', '{ "a": 1\t, "b":2 }'),
        ("{ }", '{"a":1}', '{"a":1}'),
        ('{"a": 1}', "{ }", '{"a": 1}'),
        ("{}", "{}", "{}"),
        ('{"\\u0061": 1, "b": 2}', '{"a":3}', '{"\\u0061": 3, "b": 2}'),
        ('{"a": {"a": 1}}', '{"b":{"a":2}}', '{"a": {"a": 1},"b":{"a":2}}'),
        ('{"a": 1}', '{"a":2,"b":3,"a":4}', '{"a": 4,"b":3}'),
    ],
)
def test_lines(raw: str, answer: str, line: str) -> None:
    assert splice_texts(raw, answer) == line


@pytest.mark.parametrize("answer", ['{"y":9}', '{"x":9}'])
def test_a_records_own_duplicate_keys_come_through(answer: str) -> None:
    assert splice_texts('{"a":1,"a":2,"x":0}', answer).startswith('{"a":1,"a":2,"x":')


@pytest.mark.parametrize("depth", [100, 500, 1_023])
def test_whatever_nesting_is_taken_can_be_spliced(depth: int) -> None:
    raw = '{"deep":' + "[" * depth + "]" * depth + ',"x":1}'
    assert splice_texts(raw, '{"x":2}') == raw.replace('"x":1', '"x":2')
    raw = raw.replace("[]", "[1e400]")
    assert splice_texts(raw, '{"x":2}') == raw.replace('"x":1', '"x":2')


@settings(deadline=None, max_examples=100)
@given(objects)
def test_an_answer_written_over_many_lines_fits_into_one(answer: str) -> None:
    text = one_line(answer).decode()
    assert exact(splice_texts('{"id":1}', text)) == {"id": Num("1")} | exact(answer)


@pytest.mark.parametrize(
    ("raw", "answer", "line"),
    [
        (b'{"q" : "ws" , "b" : 1}', b'{"b":2}', b'{"q" : "ws" , "b" : 2}'),
        (b'{ "b" : 1 , "q" : 1.0 }', b'{"b":2,"c":3}', b'{ "b" : 2 , "q" : 1.0 ,"c":3}'),
        (b'{"b":1, "q":2, "b" : 3}', b'{"b":4}', b'{"b":4, "q":2}'),
        (b'{"b":1}', b'{"b":{"x": [1, 2]}}', b'{"b":{"x": [1, 2]}}'),
    ],
)
def test_the_white_space_of_members_that_stay_comes_through(raw: bytes, answer: bytes, line: bytes) -> None:
    assert splice(raw, parse_json(raw), answer, parse_json(answer)) == line + b"\n"
