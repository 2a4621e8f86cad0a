"""rows, prompt: a block of lines gives what each line gives alone."""

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from llmfilter.errors import RowError, attempt
from llmfilter.input.fields import Field
from llmfilter.input.reader import Overlong
from llmfilter.input.records import parse_record, parse_records
from llmfilter.input.request import Prompt
from llmfilter.input.template import Template

SOUND = [b'{"a":"x","n":1,"messages":[{"role":"user","content":"hi"}]}', b'{"a":"","n":-0.0,"messages":[{}]}']
ODD = [b'{"a":"\\ud800","n":1e400,"messages":[{}]}', b'{"a":1,"a":[2.0],"n":"","messages":[{"x":1E5}]}']
UNFIT = [b"{}", b'{"a":"x"}', b'{"a":"x","n":1,"messages":[]}', b'{"b":"x","messages":7}']
FAULTY = [b"hello", b'{"a":', b"[]", b'"a"', b"7", b"null", b'{"a":"\xff"}', b'{"a":NaN}']
OVERLONG: list[bytes] = [Overlong(SOUND[0]), Overlong(b'{"a":"xxx'), Overlong(b"  ")]

lines = st.one_of([st.sampled_from(kind) for kind in (SOUND, ODD, UNFIT, FAULTY, OVERLONG, [b""])])
# A block that has one odd line at most takes another way than one that has many.
blocks = st.lists(lines, max_size=6) | st.tuples(st.lists(st.sampled_from(SOUND), max_size=6), lines).flatmap(
    lambda block: st.permutations([*block[0], block[1]])
)
prompts = st.sampled_from(
    [
        Prompt(Template("Say {a}"), None, "m", {}),
        Prompt(Template("{a}: {n}"), Template("As {a}"), "m", {"seed": Field("n")}),
        Prompt(None, None, "m", {"seed": 1}),
    ]
)


def comparable(outcomes: list[Any]) -> list[Any]:
    return [(each.kind, each.message) if isinstance(each, RowError) else each for each in outcomes]


@given(blocks)
@example([])
@example(SOUND)
@example([*SOUND, OVERLONG[0]])
def test_the_records_of_a_block_are_those_of_its_lines(block: list[bytes]) -> None:
    assert comparable(parse_records(block)) == comparable([attempt(parse_record, line) for line in block])


@given(blocks, prompts)
def test_the_requests_of_a_block_are_those_of_its_records_and_what_was_wrong_stays_so(
    block: list[bytes], prompt: Prompt
) -> None:
    records = [attempt(parse_record, line) for line in block]
    bodies = prompt.bodies(records, block)
    assert len(bodies) == len(block)
    for record, raw, body in zip(records, block, bodies, strict=True):
        if isinstance(record, RowError):
            assert body is record
        else:
            assert comparable([body]) == comparable([attempt(prompt.body, record, raw)])
