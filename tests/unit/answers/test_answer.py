"""answer: the model's content → one JSON object that passed its checks, or a refusal; never a guess."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import exact, objects

from llmfilter.answers.checks import Checks
from llmfilter.answers.content import extract, parse_text
from llmfilter.answers.reasoning import TAGS
from llmfilter.answers.schema import Schema
from llmfilter.errors import RowError

OBJECT = b'{"a":1}'

PIECES = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ":",
    ",",
    "```",
    "```json\n",
    "<think>",
    "</think>",
    '{"a": 1}',
    "[1]",
    "\n",
    " ",
    "x",
    "\\",
]
noise = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=6).map("".join)
calm = st.text(st.characters(codec="utf-8", exclude_characters='{}[]"<'), max_size=20)


@st.composite
def fenced(draw: st.DrawFn) -> tuple[str, str]:
    """An object, and the same in a fence or without one."""
    text = draw(objects)
    return text, draw(st.sampled_from(["{}", "```json\n{}\n```", "```\n{}\n```", "~~~JSON\r\n{}\r\n~~~"])).replace(
        "{}", text
    )


@settings(deadline=None, max_examples=500)
@given(
    fenced(),
    st.one_of(st.just(""), noise.map("<think>{}</think>".format), noise.map("{}</think>".format)),
    noise.filter(lambda text: "<think>" not in text),
    noise.filter(lambda text: "</think>" not in text),
)
@example(("{}", "{}"), "", '{"a":"', '"}')
@example(('{"b":2}', '{"b":2}'), '<think>draft: {"a":1}</think>', "", "")
@example(('{"b":2}', '{"b":2}'), '<think>{"a":"</think>', "", "")
@example(('{"x":"</think>"}', '{"x":"</think>"}'), "", "{" * 64, '{"a":1}')
def test_the_object_comes_back_or_is_refused_whatever_stands_around_it(
    drawn: tuple[str, str], think: str, before: str, after: str
) -> None:
    """What comes back is that object, or, if the text around it makes it part of a larger one, the larger."""
    text, fenced_text = drawn
    wanted = extract(text)[0]
    try:
        found, value = extract(think + before + fenced_text + after)
    except RowError as error:
        assert error.kind == "unparsable"
        assert error.raw == think + before + fenced_text + after
        return
    assert isinstance(value, dict)
    assert wanted in found
    if "{" not in before + think or "}" not in after:
        assert found == wanted


@settings(deadline=None, max_examples=200)
@given(
    fenced(),
    st.one_of(
        st.just(""),
        noise.filter(lambda text: "</think>" not in text).map(" \n<think>{}</think>\n".format),
        calm.map("{}</think>\n".format),
    ),
    calm,
    calm,
)
def test_the_object_comes_back_from_an_ordinary_wrapping(
    drawn: tuple[str, str], think: str, before: str, after: str
) -> None:
    text, fenced_text = drawn
    found, value = extract(think + before + fenced_text + after)
    assert found == extract(text)[0]
    assert exact(found) == exact(text)
    assert list(value) == list(exact(text))


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ('{"a":1}', OBJECT),
        (' \n{"a":1}\u00a0\n', OBJECT),
        ('```json\n{"a":1}\n```', OBJECT),
        ('Sure!\n```\n{"a":1}\n```\nAnything else?', OBJECT),
        ('<think>{"b": 2}? No.</think>{"a":1}', OBJECT),
        ('Let me see.\n</think>\n\n{"a":1}', OBJECT),
        ('<think>x</think>\n```json\n{"a":1}\n```', OBJECT),
        ('{"a":"</think>"}', b'{"a":"</think>"}'),
        ('<think>x</think>{"a":"</think>{}"}', b'{"a":"</think>{}"}'),
        ('It is {"a":"</think>"}.', b'{"a":"</think>"}'),
        ('{"a":"```json\\n{}\\n```"}', b'{"a":"```json\\n{}\\n```"}'),
        ('{"a":"[]"}', b'{"a":"[]"}'),
        ('{"a":1} // done', OBJECT),
        ("{}", b"{}"),
        ("{\n  \"a\": [\n    1.0,\n    1e400\n  ]\n}", b'{"a": [1.0,1e400]}'),
        ('{"n": 12345678901234567890123, "e": "\\u00e9"}', b'{"n": 12345678901234567890123, "e": "\\u00e9"}'),
        ('{"a":"\ud800"}', b'{"a":"\\ud800"}'),
    ],
)  # fmt: skip
def test_an_object_is_taken_with_its_bytes(content: str, answer: bytes) -> None:
    assert extract(content)[0] == answer


@pytest.mark.parametrize(
    "content",
    [
        "",
        " ",
        "I can't tell.",
        "null",
        '"spam"',
        "3.14",
        "[]",
        '[{"a":1}]',
        '```json\n[{"a":1}]\n```',
        'Both: {"a":1} and {"a":2}',
        '{"a":1}\n{"a":2}',
        '[1, 2: {"a":1}',
        '<|channel|>analysis<|message|>{"a":1}',
        '[THINK]{"a":1}',
        "<think>hm</think>",
        "<think>hm</think>[1]",
        '<think>perhaps {"a":1}',
        '<think>perhaps {"a":1}</think>',
        '<think>x</think> {"b":2} </think> {"a":1}',
        '{"a":1',
        '{"a":1}}',
        "{'a':1}",
        '{"a":1,}',
        '{"a":NaN}',
        '{"a":-Infinity}',
        '{"a":"line\nbreak"}',
        "{a}",
        "{" * 100_000,
        '{"a":' * 100_000,
        '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=lambda content: content[:40],
)
def test_what_is_not_one_object_is_unparsable_and_kept(content: str) -> None:
    with pytest.raises(RowError) as caught:
        extract(content)
    assert (caught.value.kind, caught.value.raw) == ("unparsable", content)


# Text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Bonjour !", "Bonjour !"),
        ("  indented\n", "  indented\n"),
        ('{"a":1}', '{"a":1}'),
        ("```\ncode\n```", "```\ncode\n```"),
        ("<think>hm</think>Bonjour", "Bonjour"),
        ("\n<think>\nhm\n</think>\n\nBonjour", "Bonjour"),
        ("hm, I'd say\n</think>\n\nBonjour", "Bonjour"),
        ("The tag </think> ends a block.", "The tag </think> ends a block."),
        ("<think>a</think>Write </think> here", "Write </think> here"),
        ("It starts with <think>.", "It starts with <think>."),
        ("\ud800", "\ud800"),
    ],
)
def test_text_loses_its_think_block_only(content: str, text: str) -> None:
    assert parse_text(content) == text
    line, value = Checks(is_text=True).parse(content)
    assert json.loads(line) == {"answer": text}
    assert list(value) == ["answer"]


@pytest.mark.parametrize(
    "content", ["<think>hm</think>", "<think>hm</think> \n", "<think>hm", "\n<think>hm", "hm\n</think>\n"]
)
def test_reasoning_alone_is_no_text_and_is_kept(content: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_text(content)
    assert (caught.value.kind, caught.value.raw) == ("unparsable", content)


# Checks

SCHEMA = Schema(
    json.dumps({
        "type": "object",
        "properties": {"n": {"type": "integer"}, "x": {"type": "number"}, "s": {"type": "string"}},
        "required": ["n"],
    }).encode(),
    "s.json",
)  # fmt: skip


@pytest.mark.parametrize(
    ("checks", "answer", "keys"),
    [
        (Checks(), '{"b":1.0, "a":2,"c":3}', ["b", "a", "c"]),
        (Checks(fields=["a", "b"]), '{"b":1.0,"a":2}', ["a", "b"]),
        (Checks(fields=["b"]), '{"b":1.0}', ["b"]),
        (Checks(fields=["b", "b"]), '{"b":1.0}', ["b"]),
        (Checks(key="out"), '{"out":{"b":1.0, "a":2,"c":3}}', ["out"]),
        (Checks(fields=["c"], key="é"), '{"é":{"c":3}}', ["é"]),
    ],
)
def test_an_answer_goes_in_as_asked(checks: Checks, answer: str, keys: list[str]) -> None:
    text, value = checks.parse('```json\n{"b":1.0, "a":2,"c":3}\n```')
    assert text.decode() == answer
    assert sorted(value) == sorted(keys)


def test_a_text_goes_under_the_given_key() -> None:
    assert Checks(key="fr", is_text=True).parse("Oui")[0] == b'{"fr":"Oui"}'


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        (Checks(fields=["a", "z", "n"]), "the key 'z' is missing; the key 'n' is missing"),
        (Checks(SCHEMA), '"n" is a required property'),
        (Checks(SCHEMA, ["z"]), "the key 'z' is missing; \"n\" is a required property"),
        (Checks(fields=list("123456789")), "; ".join(f"the key '{each}' is missing" for each in "12345")),
    ],
)
def test_an_answer_that_fails_its_checks_is_invalid_with_up_to_five_faults(checks: Checks, message: str) -> None:
    with pytest.raises(RowError) as caught:
        checks.parse('so: {"a":1}')
    assert (caught.value.kind, caught.value.message, caught.value.raw) == ("invalid", message, 'so: {"a":1}')


@pytest.mark.parametrize(
    "content",
    [
        '{"n":5}',
        '{"n":5.0}',
        '{"n":12345678901234567890123}',
        '{"n":5,"x":1e400}',
        '{"n":5,"s":"\\ud83d"}',
        '{"n":5,"s":"\ud83d"}',
        '{"n":' + "9" * 5000 + "}",
    ],
    ids=lambda content: ascii(content)[:30],
)
def test_numbers_stay_numbers_for_the_schema(content: str) -> None:
    assert Checks(SCHEMA).parse(content)[0] == content.encode("utf-8", "backslashreplace")


def test_a_number_is_no_string_for_the_schema() -> None:
    with pytest.raises(RowError, match="/s"):
        Checks(SCHEMA).parse('{"n":5,"s":6,"x":1e400}')


@pytest.mark.parametrize("key", ["n", "deep"])
@pytest.mark.parametrize("depth", [100, 300, 1_000])
def test_nesting_never_breaks_the_check(key: str, depth: int) -> None:
    assert is_invalid_or('{"n":5}', f'{{"n":5,"{key}":{"[" * depth + "]" * depth}}}')


def test_a_lone_surrogate_in_a_key_never_breaks_the_check() -> None:
    assert is_invalid_or('{"n":5}', '{"n":5,"\\ud83d":0}')


def is_invalid_or(answer: str, content: str) -> bool:
    try:
        return Checks(SCHEMA, ["n"]).parse(content)[0] == answer.encode()
    except RowError as error:
        return error.kind in {"unparsable", "invalid"}


# Keys


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"a":1,"a":2}', b'{"a":2}'),
        ('{"a":1,"b":2.0,"a":{"c":1,"c":2}}', b'{"a":{"c":1,"c":2},"b":2.0}'),
        ('{"a" : 1, "\\u0061" : 2}', b'{"\\u0061":2}'),
        ('{"b":"\\u003a","a":1,"a":2}', b'{"b":"\\u003a","a":2}'),
        ('{"b":"::\\":","a":"http://x:1/","a":[{"x":1}]}', b'{"b":"::\\":","a":[{"x":1}]}'),
        ('{"a":1,"a":"\\ud800"}', b'{"a":"\\ud800"}'),
        ('{"a":1,"a":1e400}', b'{"a":1e400}'),
        ('```json\n{"a":1,\n "a":2}\n```', b'{"a":2}'),
        ('{"b":"\\u003a", "a":2}', b'{"b":"\\u003a", "a":2}'),
    ],
)
def test_of_a_key_that_comes_twice_the_last_value_counts(content: str, text: bytes) -> None:
    assert extract(content)[0] == text


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", ":", '"']), objects), max_size=5))
def test_each_key_of_an_answer_comes_once(pairs: list[tuple[str, str]]) -> None:
    content = "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in pairs) + "}"
    text, value = extract(content)
    keys = [key for key, _ in json.loads(text, object_pairs_hook=list, parse_int=str)]
    assert keys == list(value) == list(dict(pairs))


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("lable", '{"label":1,"b":2}', "; did you mean 'label'?"),
        ("z", '{"label":1}', ""),
        ("label", "{}", ""),
        ("abcd", '{"abc\\ud800\\u001b":1}', r"; did you mean 'abc\ud800\x1b'?"),
    ],
)
def test_a_key_that_was_meant_is_named(name: str, content: str, hint: str) -> None:
    with pytest.raises(RowError) as caught:
        Checks(fields=[name]).parse(content)
    assert caught.value.message == f"the key {name!r} is missing{hint}"


REASONING = {
    **{f"{opening}…": f"{opening}Draft: {{x}} [1{closing}" for opening, closing in TAGS.items()},
    "harmony": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>",
    "harmony, swallowed": "Hm.<|end|><|start|>assistant<|channel|>final<|message|>",
    "harmony, commentary": "<|channel|>commentary<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>",
    "harmony, bare": "analysisHm.assistantfinal",
}


@pytest.mark.parametrize("before", REASONING.values(), ids=REASONING.keys())
def test_reasoning_is_no_part_of_a_text_or_an_object(before: str) -> None:
    assert parse_text(before + "Spam, I'd say.") == "Spam, I'd say."
    assert parse_text(before + "\nSpam.<|im_end|>") == "Spam."
    assert extract(before + '{"a":1}<|return|>')[0] == OBJECT
    whole = json.dumps({"a": before + "x"}, ensure_ascii=False)
    assert extract(whole)[0].decode() == whole, "within a string it is data"


@pytest.mark.parametrize("opening", [*TAGS, "<|channel|>analysis<|message|>"])
def test_reasoning_and_nothing_else_is_no_answer(opening: str) -> None:
    for parse in (parse_text, extract):
        with pytest.raises(RowError, match=r"no answer|not one JSON object") as caught:
            parse(opening + 'perhaps {"a":1}')
        assert caught.value.kind == "unparsable"


@pytest.mark.parametrize(
    "text", ["analysis of the market", "analysis: assistant", "In [THINK] we trust", "a </think> b", "x <|im_end|> y"]
)
def test_a_text_that_merely_looks_like_it_is_untouched(text: str) -> None:
    assert parse_text(text) == text


@settings(deadline=None)
@given(objects)
def test_a_whole_object_is_never_searched_for_reasoning(text: str) -> None:
    assert extract(text)[1] == extract(f"<think>{{</think>{text}<|im_end|>")[1]
