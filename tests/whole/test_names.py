"""Names and inputs as data has them, on the program: what goes out to the server, and what is said about it."""

import json
import shutil

import pytest
from program import ASK, Programs, rows
from server import Server, completion

RECORD = {
    **{"Review Text": "a", "factual?": "b", "@timestamp": "c", "1st": "d", "price (USD)": "e", "_id.$oid": "f"},
    **{"评论": "g", "prénom": "h", "user.name": "i", "items": [{"name": "j"}], "first-name": "k", "text": "l"},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name, value in RECORD.items() if isinstance(value, str)],
        *[("items.0.name", "j"), (" text ", "l"), (" Review Text ", "a")],
    ],
)
def test_any_column_can_be_named(name: str, value: str, program: Programs, server: Server) -> None:
    program.write("p.md", f"<{{{name}}}>")
    run = program.run("--text", "-p", "p.md", input=json.dumps(RECORD, ensure_ascii=False).encode())
    assert (run.status, run.said) == (0, [])
    assert server.prompts == [f"<{value}>"]


def test_the_whole_record_goes_in_as_it_stands(program: Programs, server: Server) -> None:
    program.write("p.md", "{.}")
    raw = b'{"a" : 1.0, "b":12345678901234567890123}'
    assert program.run("--text", "-p", "p.md", input=raw).status == 0
    assert server.prompts == [raw.decode()]


@pytest.mark.parametrize(
    ("prompt", "sent", "said"),
    [
        ("{text} {Review Txt}", "l {Review Txt}", "did you mean {Review Text}?"),
        ("{text} {{text}}", "l {text}", "write {text} for the field"),
        ('{text} {{"label": 1}}', 'l {{"label": 1}}', "doubled braces"),
        ('{text} {"label": 1} \\d{3}', 'l {"label": 1} \\d{3}', None),
    ],
)
def test_what_silently_stays_text_is_said_once(
    prompt: str, sent: str, said: str | None, program: Programs, server: Server
) -> None:
    program.write("p.md", prompt)
    run = program.run("--text", "-p", "p.md", input=(json.dumps(RECORD).encode() + b"\n") * 3)
    assert run.status == 0
    assert set(server.prompts) == {sent}
    assert [said in line for line in run.said] == [True] if said else run.said == []


def test_a_missing_field_names_the_way_out_for_text_in_braces(program: Programs) -> None:
    program.write("p.md", r"\frac{a}{b}")
    run = program.run("--text", "-p", "p.md", input=rows([1]))
    assert "for the text {a} itself write {{a}}" in run.errors[0]["message"]


@pytest.mark.parametrize(
    ("line", "way"),
    [
        (b'{"a": NaN}', "jq -c ."),
        (b"{'a': None}", "ast.literal_eval"),
        (b'{"a": 1},', "comma"),
        (b'{"a": 1} {"a": 2}', "several objects on one line"),
        (b"\x28\xb5\x2f\xfdxx", "zstdcat"),
        (b"BZh91AY&SYxx", "bzcat"),
        (b"\xfd7zXZ\x00xx", "xzcat"),
        (b"PK\x03\x04xx", "unzip -p"),
        (b"PAR1xx", "pandas.read_parquet"),
        (b"id,text", "mlr -S --icsv"),
        (b"id\ttext", "mlr -S --itsv"),
    ],
)
def test_what_an_input_is_instead_is_said_with_what_makes_records_of_it(
    line: bytes, way: str, program: Programs, server: Server
) -> None:
    run = program.run(*ASK, input=line + b"\n")
    said = run.said[-1] if run.said else run.errors[0]["message"]
    assert way in said
    assert not server.requests


@pytest.mark.parametrize(
    "data",
    [
        b"[\n" + b'  {"id": 1},\n' * 20_000 + b"]\n",
        b'{\n  "id": 1,\n' + b'  "a": 1,\n' * 20_000 + b"}\n",
        b"id,text\n" + b"1,hello\n" * 20_000,
    ],
    ids=["array", "object", "CSV"],
)
def test_a_file_of_another_kind_ends_in_one_sentence(data: bytes, program: Programs, server: Server) -> None:
    run = program.run(*ASK, input=data)
    assert run.status == 3
    assert len(run.said) == 1 and not run.errors
    assert "goes on" not in run.said[0]


def test_a_prompt_that_is_no_file_is_the_prompt_itself(program: Programs, server: Server) -> None:
    assert program.run("-p", "Translate: {text}", input=b'{"text":"x"}').status == 0
    assert server.prompts == ["Translate: x"]
    run = program.run("-p", "prompt.txt", input=b'{"text":"x"}')
    assert run.status == 2 and "name a field in braces" in run.said[0]


def test_s_takes_the_place_of_a_system_turn(program: Programs, server: Server) -> None:
    raw = b'{"messages":[{"role":"system","content":"old"},{"role":"user","content":"q"}]}'
    assert program.run("-s", "new", input=raw).status == 0
    assert [turn["content"] for turn in server.requests[0].json["messages"]] == ["new", "q"]


def test_a_null_is_said_once_with_its_line(program: Programs, server: Server) -> None:
    program.write("p.md", "{a}")
    run = program.run("--text", "-p", "p.md", input=b'{"a":1}\n{"a":null}\n{"a":null}\n')
    assert run.status == 0
    assert len(run.said) == 1 and "line 2" in run.said[0] and "jq -c" in run.said[0]


@pytest.mark.skipif(not shutil.which("mlr"), reason="miller is not here")
def test_from_csv_to_csv_in_chinese(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion({"情感": "正面" if "好" in request.prompt else "负面"})
    program.write("in.csv", "编号,评论 文本\n1,很好\n2,太差\n")
    program.write("p.md", "评论：{评论 文本}")
    shell = 'mlr -S --icsv --ojsonl cat in.csv | "$@" | mlr --ijsonl --ocsv flatten then unsparsify > out.csv'
    run = program.run("-k", "-p", "p.md", "-s", "JSON", shell=shell)
    assert (run.status, run.said) == (0, [])
    assert server.prompts == ["评论：很好", "评论：太差"]
    assert (program.folder / "out.csv").read_text("utf-8") == "编号,评论 文本,情感\n1,很好,正面\n2,太差,负面\n"
