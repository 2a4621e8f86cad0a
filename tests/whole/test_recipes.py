"""The README's lines of shell, run as they are written there: on one machine (test_hosts: on others)."""

import base64
import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

import pytest
from batch_api import BatchApi
from program import rows
from readme import find_line, read_block, runs
from server import PATIENCE_S, Request, Response, Server, completion, error
from shell import (
    Shell,
    check_asked_once,
    fat_rows,
    find,
    free_port,
    ids,
    needs,
    needs_jq,
    needs_parallel,
    point_to,
    wait_listening,
)

JOBS = 32  # requests in flight, unless -j says otherwise
TESTS = Path(__file__).parents[1]
SUBMIT, COLLECT = "job=", "api() "
RERUN = "grep '^{' errors.jsonl | jq -c '.input | objects' | llmfilter -p better.md"

needs_curl = needs(curl="curl", jq="jq")
needs_mlr = needs(mlr="miller")
needs_nginx = needs(nginx="nginx-light")


# As it is shown


@runs("head -3 tests/demo/", also=["cat tests/demo/"])
def test_the_demo(line: str, shell: Shell, server: Server) -> None:
    shell.link(TESTS)
    shown = read_block("llmfilter", "console")
    said = {row["text"]: row for row in map(json.loads, re.findall(r'^\{"id": .*', shown, re.MULTILINE))}

    def answer(request: Request) -> Response:
        row = said[request.prompt.split("Sentence: ")[-1].removesuffix("\nJSON:")]
        return completion(f'{{"year": {row["year"]}, "name": "{row["name"]}"}}')

    server.answer = answer
    prompt, run = shell.run(find_line("cat tests/demo/")), shell.run(line)
    assert shown == f"$ cat tests/demo/prompt.md\n{prompt.stdout.decode()}$ {line}\n{run.stdout.decode()}"


@runs("head -2 tests/demo/", also=["cat errors.jsonl"])
def test_rows_that_fail(line: str, shell: Shell, server: Server) -> None:
    shell.link(TESTS)
    shown = read_block("When rows fail", "console")
    server.answer = lambda request: completion('{"year": 1517', finish_reason="length")
    assert shell.run(line).status == 1
    errors = shell.run(find_line("cat errors.jsonl"))
    said = re.sub(r'(?<=In 1[45][0-9]{2} )[^"]*', "…", errors.stdout.decode())
    assert shown.splitlines() == [f"$ {line}", "$ cat errors.jsonl", *sorted(said.splitlines())]


# Runs of all kinds


@runs(
    "llmfilter -p prompt.md < data.jsonl > out.jsonl 2> errors.jsonl",
    "llmfilter --rpm 500 ",
    "llmfilter --budget 1000000 ",
    "llmfilter --price 0.15,0.60,0.075 --budget ",
    "llmfilter -o service_tier=flex ",
    "llmfilter --stream ",
    "cat data.jsonl | llmfilter ",
)
def test_a_whole_run(line: str, shell: Shell, server: Server) -> None:
    shell.write("data.jsonl", rows(range(5)))
    run = shell.run(line)
    assert (run.status, run.stderr) == (0, b"")
    assert ids(shell.read_rows("out.jsonl")) == list(range(5))
    assert all(request.json.get("stream", False) == ("--stream" in line) for request in server.requests)
    assert all(request.json.get("service_tier") == ("flex" if "flex" in line else None) for request in server.requests)


@runs("llmfilter --budget 1000000 ")
def test_the_budget_ends_a_run(line: str, shell: Shell, server: Server) -> None:
    usage = {"prompt_tokens": 900_000, "completion_tokens": 100_000, "total_tokens": 1_000_000}
    server.answer = lambda request: completion({}, usage=usage)
    shell.write("data.jsonl", rows(range(10 * JOBS)))
    run = shell.run(line)
    assert run.status == 3
    assert len(server.requests) <= JOBS


@runs("llmfilter --price 0.15,0.60,0.075 -p ")
def test_what_it_will_cost(line: str, shell: Shell, server: Server) -> None:
    shell.write("data.jsonl", rows(range(5)))
    run = shell.run(line)
    assert (run.status, server.requests) == (0, [])
    assert "the prompts will cost about 0.0000" in run.said[-1]


@runs("llmfilter -k ")
def test_the_order_of_the_input(line: str, shell: Shell, server: Server) -> None:
    server.hold(lambda request: request.prompt == "0")
    shell.write("data.jsonl", rows(range(5)))
    run = shell.start(line)
    server.wait_answered(4)
    server.release()
    assert run.finish().status == 0
    assert [row["id"] for row in shell.read_rows("out.jsonl")] == list(range(5))


@runs("llmfilter -p prompt.md < data.jsonl > out.jsonl 2> errors.jsonl")
def test_the_same_command_again_asks_for_what_failed(line: str, shell: Shell, server: Server) -> None:
    server.answer = lambda request: error(400, "no") if request.prompt == "1" else completion({})
    shell.write("data.jsonl", rows(range(5)))
    assert shell.run(line).status == 1
    assert len(shell.read_rows("out.jsonl")) == 4
    server.answer = lambda request: completion({})
    assert shell.run(line).status == 0
    assert ids(shell.read_rows("out.jsonl")) == list(range(5))
    assert len(server.requests) == 6


@runs("head -n 3 data.jsonl | llmfilter -p prompt.md")
def test_three_rows(line: str, shell: Shell, server: Server) -> None:
    shell.write("data.jsonl", rows(range(100)))
    assert ids(shell.run(line).rows) == [0, 1, 2]
    assert len(server.requests) == 3


@needs_jq
@runs("head -n 1 data.jsonl | llmfilter -p prompt.md -n | jq .", "head -3 data.jsonl | llmfilter -p prompt.md -n")
def test_requests_are_shown_and_not_sent(line: str, shell: Shell, server: Server) -> None:
    shell.write("data.jsonl", rows(range(5)))
    run = shell.run(line)
    assert run.status == 0
    assert b'"content"' in run.stdout
    assert not server.requests


@runs("llmfilter -p prompt.md -n ")
def test_how_much_there_is_to_ask(line: str, shell: Shell, server: Server) -> None:
    shell.write("data.jsonl", rows(range(5)))
    run = shell.run(line)
    assert (run.status, run.stdout) == (0, b"")
    assert "5 rows" in run.said[0]
    assert "tokens" in "".join(run.said)
    assert not server.requests


@runs("kill -USR1 ")
def test_how_far_it_is(line: str, shell: Shell, server: Server) -> None:
    server.hold()
    run = shell.start("exec llmfilter -p prompt.md")
    run.write(rows(range(3)))
    server.wait_for(3)
    assert shell.run(line.replace("PID", f"{run.pid}")).status == 0
    run.read_said()
    server.release()
    assert run.finish().status == 0


@runs("llmfilter --schema answer.json ", "llmfilter -m MODEL --schema ")
def test_answers_that_fit_a_schema(line: str, shell: Shell, server: Server) -> None:
    """The first answer does not; it is asked for again."""
    answers = iter([{"label": 1}, {"label": "spam"}])
    server.answer = lambda request: completion(next(answers))
    shell.write("answer.json", b'{"type": "object", "properties": {"label": {"type": "string"}}}')
    for name in ("data.jsonl", "in.jsonl"):
        shell.write(name, rows([1]))
    assert shell.run(line).status == 0
    assert shell.read_rows("out.jsonl") == [{"id": 1, "label": "spam"}]
    assert server.requests[0].json["response_format"]["type"] == "json_schema"


@runs("llmfilter --text --as fr -p translate.md < data.jsonl", "llmfilter --text --as fr -p translate.md < in.jsonl")
def test_answers_of_plain_text(line: str, shell: Shell, server: Server) -> None:
    server.answer = lambda request: completion("bonjour")
    shell.write("translate.md", b"Translate: {text}")
    for name in ("data.jsonl", "in.jsonl"):
        shell.write(name, b'{"text": "hello"}\n')
    assert shell.run(line).status == 0
    assert shell.read_rows("out.jsonl") == [{"text": "hello", "fr": "bonjour"}]


@runs("llmfilter --text -p 'Translate into ")
@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_a_prompt_without_a_file(line: str, shell: Shell, server: Server, name: str) -> None:
    if not find(name):
        pytest.skip(f"{name} is not installed")
    server.answer = lambda request: completion("bonjour")
    shell.write("data.jsonl", b'{"text": "hello"}\n')
    assert shell.run(line, shell=name).status == 0
    assert shell.read_rows("out.jsonl") == [{"text": "hello", "answer": "bonjour"}]
    assert server.prompts == ["Translate into French: hello"]


@runs("llmfilter -m SMALL --as small ")
def test_two_models_side_by_side(line: str, shell: Shell, server: Server) -> None:
    server.answer = lambda request: completion({"model": request.json["model"]})
    shell.write("data.jsonl", rows([1]))
    assert shell.run(line).status == 0
    found = {"id": 1, "small": {"model": "SMALL"}, "big": {"model": "BIG"}}
    assert shell.read_rows("out.jsonl") == [found]


@runs("echo ")
def test_a_record_that_is_a_conversation(line: str, shell: Shell, server: Server) -> None:
    (row,) = shell.run(line).rows
    assert row["echo"] == "Name a colour, as JSON."


@runs("./label.md ", also=["#!/usr/bin/env "])
def test_a_prompt_that_is_a_command(line: str, shell: Shell, server: Server) -> None:
    shell.write("label.md", find_line("#!/usr/bin/env ").encode() + b"\nLabel {id}\n")
    (shell.folder / "label.md").chmod(0o755)
    shell.write("mails.jsonl", rows([1]))
    assert shell.run(line).status == 0
    assert shell.read_rows("labelled.jsonl") == [{"id": 1, "echo": "Label 1"}]
    assert server.requests[0].json["model"] == "MODEL"


@runs("llmfilter -u http://localhost:8000/v1 -j 256 ")
def test_a_server_of_this_machine(line: str, shell: Shell, server: Server) -> None:
    shell.environ |= {"OPENAI_BASE_URL": None, "OPENAI_MODEL": None}
    server.hold(lambda request: request.method == "POST")
    shell.write("in.jsonl", rows(range(300)))
    run = shell.start(point_to(server, line))
    server.wait_for(1 + 256)  # the first one asks for the model
    server.release()
    assert run.finish().status == 0
    assert ids(shell.read_rows("out.jsonl")) == list(range(300))


@runs("rm -r ")
def test_the_cache_is_emptied(line: str, shell: Shell, server: Server) -> None:
    shell.write("data.jsonl", rows([1]))
    for count in (1, 2):
        assert shell.run("llmfilter -p prompt.md < data.jsonl").status == 0
        assert len(server.requests) == count
        assert shell.run(line).status == 0
        assert not shell.cache.exists()


# With other tools


@needs_mlr
@runs("mlr -S --icsv ")
def test_csv_in(line: str, shell: Shell, server: Server) -> None:
    """What a table holds stays the text that it is, also where JSON would have no such number."""
    shell.write("data.csv", b'id,zip,text\r\n1,00712,"a ""quote"",\nand two lines"\r\n2,0xff,\r\n')
    run = shell.run(line)
    assert (run.status, run.stderr) == (0, b"")
    found = [{"id": "1", "zip": "00712", "text": 'a "quote",\nand two lines'}, {"id": "2", "zip": "0xff", "text": ""}]
    assert sorted(shell.read_rows("out.jsonl"), key=str) == [{**row, "echo": row["id"]} for row in found]


@needs_mlr
@runs("llmfilter -p prompt.md < data.jsonl | mlr ")
def test_csv_out(line: str, shell: Shell, server: Server) -> None:
    """In one table, also where answers have other keys, lists or objects."""
    answers = {
        "1": {"label": "a, b", "sure": 0.5},
        "2": {"sure": 1, "label": '"', "tags": ["x", "y"]},
        "3": {"label": "c", "tags": []},
        "4": {"who": {"name": "d"}},
    }
    server.answer = lambda request: completion(answers[request.prompt])
    shell.write("data.jsonl", rows([1, 2, 3, 4]))
    assert shell.run(line.replace("llmfilter", "llmfilter -k")).status == 0
    table = (shell.folder / "out.csv").read_text()
    assert [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(table.splitlines())] == [
        {"id": "1", "label": "a, b", "sure": "0.5"},
        {"id": "2", "label": '"', "sure": "1", "tags.1": "x", "tags.2": "y"},
        {"id": "3", "label": "c", "tags": "[]"},
        {"id": "4", "who.name": "d"},
    ]


@needs_jq
@runs("jq -Rc ")
def test_lines_of_text_in(line: str, shell: Shell, server: Server) -> None:
    shell.write("prompt.md", b"{text}")
    shell.write("notes.txt", b'one "note"\ntwo\n')
    assert shell.run(line).status == 0
    assert sorted(row["echo"] for row in shell.read_rows("out.jsonl")) == ['one "note"', "two"]


@needs_jq
@runs("jq -c '.[]' ")
def test_an_array_in_and_out(line: str, shell: Shell, server: Server) -> None:
    shell.write("data.json", json.dumps([{"id": 1}, {"id": 2}], indent=2).encode())
    assert shell.run(line).status == 0
    found = json.loads((shell.folder / "out.json").read_text())
    assert sorted(found, key=str) == [{"id": 1, "echo": "1"}, {"id": 2, "echo": "2"}]


@needs_jq
@runs("jq -c 'select")
def test_jq_before_and_after(line: str, shell: Shell, server: Server) -> None:
    server.answer = lambda request: completion({"label": f"label of {request.prompt}"})
    records = [{"id": each, "lang": "de" if each % 2 else "en", "text": "t"} for each in range(6)]
    shell.write("data.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    run = shell.run(line)
    assert (run.status, run.stderr) == (0, b"")
    assert sorted(run.lines) == [f'{each},"label of {each}"'.encode() for each in (0, 2, 4)]


@runs("llmfilter -p prompt.md < data.jsonl | head ")
def test_head_ends_the_run_with_141_and_nothing_is_lost(line: str, shell: Shell, server: Server) -> None:
    count = 2000
    server.hold(lambda request: int(request.prompt) >= 100)
    shell.write("data.jsonl", rows(range(count)))
    run = shell.start(line + '; echo "${PIPESTATUS[0]}"', shell="bash").read_lines(3)
    server.release()
    run.finish()
    assert len(run.lines) == 4
    assert run.lines.pop() == b"141"
    assert run.stderr == b""
    assert len(server.requests) < count
    again = shell.run("llmfilter -p prompt.md < data.jsonl")
    assert ids(again.rows) == list(range(count))
    check_asked_once(server, count)


@runs("split ")
def test_split_feeds_several_processes_that_write_a_file_each(line: str, shell: Shell, server: Server) -> None:
    count = 4 * JOBS
    server.hold()
    shell.write("data.jsonl", rows(range(count)))
    run = shell.start(line)
    server.wait_for(count)  # all at once: no single process has so many in flight
    server.release()
    run.finish()
    assert (run.status, run.stderr) == (0, b"")
    parts = [shell.read_rows(f"part.a{letter}.out") for letter in "abcd"]
    assert [len(part) for part in parts] == [JOBS] * 4
    assert ids([row for part in parts for row in part]) == list(range(count))
    check_asked_once(server, count)


@runs("split ")
def test_split_waits_for_all_parts_where_a_row_fails(line: str, shell: Shell, server: Server) -> None:
    server.answer = lambda request: error(400, "no") if request.prompt == "0" else completion({})
    server.hold(lambda request: request.prompt != "0")
    shell.write("data.jsonl", rows(range(20)))
    run = shell.start(line)
    server.wait_for(20)
    server.wait_answered(1)
    server.release()
    run.finish()
    assert run.status == 0
    assert [error["line"] for error in run.errors] == [1]
    parts = [shell.read_rows(f"part.a{letter}.out") for letter in "abcd"]
    assert ids([row for part in parts for row in part]) == list(range(1, 20))


@needs_jq
@runs("jq -c '.unit ")
def test_a_field_that_some_records_lack(line: str, shell: Shell, server: Server) -> None:
    shell.write("prompt.md", b"{id}{unit}")
    shell.write("data.jsonl", b'{"id":1,"unit":"m"}\n{"id":2}\n{"id":3,"unit":null}\n')
    assert shell.run(line).status == 0
    assert sorted(server.prompts) == ["1m", "2", "3"]


@needs_jq
@runs("jq -c '. + {n: ")
def test_records_without_an_id_come_back_in_their_order(line: str, shell: Shell, server: Server) -> None:
    server.hold(lambda request: request.prompt == "0")
    shell.write("data.jsonl", rows(range(5)))
    run = shell.start(line)
    server.wait_answered(4)
    server.release()
    assert run.finish().status == 0
    assert shell.read_rows("out.jsonl") == [{"id": each, "echo": str(each)} for each in range(5)]


@needs_jq
@runs("grep '^{' errors.jsonl | jq -c 'select(.raw)")
def test_what_was_paid_for_is_rescued_from_the_error_lines(line: str, shell: Shell, server: Server) -> None:
    answers = {"1": {"lable": "spam"}, "2": "prose", "3": "[1]", "4": {"label": "ham"}}
    server.answer = lambda request: completion(answers[request.prompt])
    shell.write("data.jsonl", rows([1, 2, 3, 4]) + b"no record\n")
    command = "llmfilter --reask 0 -f label -p prompt.md < data.jsonl > out.jsonl 2> errors.jsonl"
    assert shell.run(command).status == 1
    assert shell.run(line).status == 0
    assert shell.read_rows("out.jsonl") == [{"id": 4, "label": "ham"}, {"id": 1, "lable": "spam"}]


@needs_jq
@needs(make="make")
def test_pandas_writes_the_records_and_reads_the_answers(shell: Shell, server: Server) -> None:
    pandas = pytest.importorskip("pandas")
    there, back = read_block("make and pandas", "python").splitlines()
    days = pandas.to_datetime(["2024-01-02", None])
    df = pandas.DataFrame({"id": ["007", "0xff"], "n": [2**53 + 1, 2], "text": ["坏/x", None], "date": days})
    names = {"pd": pandas, "json": json, "df": df, "open": lambda name: (shell.folder / name).read_text().splitlines()}
    exec(there.replace("data.jsonl", str(shell.folder / "data.jsonl")), names)
    server.answer = lambda request: completion({"said": request.prompt, "big": 2**70, "list": [{"a": None}]})
    assert shell.run("llmfilter -k -p '{text} {date}' < data.jsonl > out.jsonl").status == 0
    exec(back, names)
    answers = names["answers"]
    assert answers.id.tolist() == ["007", "0xff"] and answers.n.tolist() == [2**53 + 1, 2]
    assert answers.said.tolist() == ["坏/x 2024-01-02T00:00:00.000", "null null"]
    assert answers.big.tolist() == [2**70] * 2 and answers.list.tolist() == [[{"a": None}]] * 2


@pytest.mark.parametrize(("failing", "status"), [(1, 0), (2, 2)])
def test_make_takes_one_failed_row_in_a_hundred(shell: Shell, server: Server, failing: int, status: int) -> None:
    server.answer = lambda request: error(400, "no") if int(request.prompt) < failing else completion({})
    shell.write("Makefile", read_block("make and pandas", "make").encode())
    shell.write("data.jsonl", rows(range(100)))
    assert shell.run("make labels.jsonl > made").status == status
    assert (shell.folder / "labels.jsonl").exists() == (status == 0)
    if status == 0:
        assert [row["id"] for row in shell.read_rows("labels.jsonl")] == list(range(failing, 100))
        assert shell.run("make -q labels.jsonl").status == 0
    server.answer = lambda request: completion({})
    assert shell.run("touch data.jsonl; make labels.jsonl > made").status == 0
    assert len(server.requests) == 100 + failing


@needs_jq
@runs("tail -n +1 -f app.jsonl | jq ")
def test_some_lines_of_a_file_that_grows_come_out_while_tail_runs(line: str, shell: Shell, server: Server) -> None:
    shell.write("app.jsonl", b'{"id":0,"level":"error"}\n')
    run = shell.start(line).read_lines(1)
    for each in (1, 2):
        with (shell.folder / "app.jsonl").open("ab") as growing:
            growing.write(b'{"id":9,"level":"info"}\n{"id":%d,"level":"error"}\n' % each)
        run.read_lines(each + 1)
    assert ids(run.rows) == [0, 1, 2]
    os.killpg(run.pid, signal.SIGINT)
    run.finish()


@runs("tail -n +1 -f app.jsonl | llmfilter ")
def test_a_record_that_a_file_grows_by_comes_out_while_tail_runs(line: str, shell: Shell, server: Server) -> None:
    shell.write("app.jsonl", rows([0, 1]))
    run = shell.start(line).read_lines(2)
    for each in (2, 3):
        with (shell.folder / "app.jsonl").open("ab") as growing:
            growing.write(rows([each]))
        run.read_lines(each + 1)
    assert ids(run.rows) == [0, 1, 2, 3]
    os.killpg(run.pid, signal.SIGINT)
    run.finish()
    assert "ended by SIGINT" in run.said[-1]


@needs_jq
@runs(RERUN, f"{RERUN} >> ")
def test_what_failed_runs_again_with_another_prompt(line: str, shell: Shell, server: Server) -> None:
    server.answer = lambda request: error(400, "no") if request.prompt in ("1", "3") else completion({"done": 1})
    shell.write("data.jsonl", rows(range(5)) + b"no record\n")
    shell.write("better.md", b"better {id}")
    assert shell.run("llmfilter -p prompt.md < data.jsonl > out.jsonl 2> errors.jsonl").status == 1
    run = shell.run(line)
    assert run.status == 0
    assert ids(shell.read_rows("out.jsonl") + run.rows) == list(range(5))
    assert server.prompts[-2:] in (["better 1", "better 3"], ["better 3", "better 1"])


@needs_parallel
@runs("parallel --pipe --round-robin ")
def test_parallel_feeds_several_processes_on_one_cache(line: str, shell: Shell, server: Server) -> None:
    count = 450
    server.hold()
    shell.write("data.jsonl", fat_rows(count))
    run = shell.start(line)
    server.wait_for(4 * JOBS)
    server.release()
    run.finish()
    assert (run.status, run.stderr) == (0, b"")
    assert ids(shell.read_rows("out.jsonl")) == list(range(count))
    check_asked_once(server, count)
    assert shell.run(line).status == 0
    assert ids(shell.read_rows("out.jsonl")) == list(range(count))
    check_asked_once(server, count)


@needs_jq
@needs_parallel
@runs("parallel --pipe --round-robin ")
def test_parallel_shares_a_small_file_and_each_process_has_its_counters(
    line: str, shell: Shell, server: Server
) -> None:
    server.answer = lambda request: error(400, "no") if request.prompt == "7" else completion({})
    shell.write("data.jsonl", fat_rows(60))
    shell.run(line.replace("llmfilter", "llmfilter --stats st.{#}.json"))
    for counter, sum_ in (("rows", 60), ("failed", 1)):
        assert shell.run(f"jq -s 'map(.{counter}) | add' st.*.json").stdout == b"%d\n" % sum_
    (shell.folder / "st.1.json").unlink()
    assert 0 < int(shell.run("jq -s 'map(.rows) | add' st.*.json").stdout) < 60


@needs_parallel
@runs("parallel --pipe --round-robin ")
def test_ctrl_c_lets_parallel_finish_what_is_paid_for(line: str, shell: Shell, server: Server) -> None:
    """A server that takes longer than the 0.3 s that parallel waits unless told, before it kills."""
    count = 600
    server.hold(lambda request: int(request.prompt) >= 200)
    shell.write("data.jsonl", fat_rows(count))
    run = shell.start(line)
    server.wait_for(200 + 3 * JOBS)  # parallel deals out unevenly
    os.killpg(run.pid, signal.SIGINT)
    Timer(1.0, server.release).start()
    run.finish()
    assert len(server.requests) < count
    assert shell.run(line).status == 0
    assert ids(shell.read_rows("out.jsonl")) == list(range(count))
    check_asked_once(server, count)


@needs_jq
@runs("llmfilter --text --as label ")
def test_the_probability_of_a_label(line: str, shell: Shell, server: Server) -> None:
    def answer(request: Request) -> Response:
        assert request.json["logprobs"] is True
        document = json.loads(completion("spam").body)
        document["choices"][0]["logprobs"] = {"content": [{"token": "sp", "logprob": -0.5}, {"logprob": -0.25}]}
        return Response(json.dumps(document).encode())

    server.answer = answer
    shell.write("data.jsonl", rows([1]))
    run = shell.run(line)
    (row,) = run.rows
    assert (row["id"], row["label"], round(row["p"], 6)) == (1, "spam", round(math.exp(-0.75), 6))
    assert row.keys() == {"id", "label", "p"}


@needs_jq
@runs("jq -c 'range")
def test_several_samples_of_each_row(line: str, shell: Shell, server: Server) -> None:
    server.answer = lambda request: completion({"said": request.json["seed"]})
    shell.write("data.jsonl", rows([1, 2]))
    assert shell.run(line).status == 0
    found = sorted((row["id"], row["seed"], row["said"]) for row in shell.read_rows("out.jsonl"))
    assert found == [(each, seed, seed) for each in (1, 2) for seed in range(5)]


@needs_jq
@runs("jq -sc 'group_by")
def test_the_label_that_most_samples_have(line: str, shell: Shell) -> None:
    votes = [(1, "b"), (2, "x"), (1, "a"), (2, None), (1, "a"), (2, "x"), (1, "c"), (2, ["x"])]
    lines = [{"id": each, "text": "t", "label": label} for each, label in votes]
    shell.write("out.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    assert shell.run(line).rows == [{"id": 1, "text": "t", "label": "a"}, {"id": 2, "text": "t", "label": "x"}]


@needs_jq
@runs("ls *.png | ")
def test_pictures_become_labels_without_the_picture(line: str, shell: Shell, server: Server) -> None:
    pictures = {f"{name}.png": b"\x89PNG\r\n\x1a\n" + os.urandom(70_000) for name in ("cat", "a dog")}
    shell.write("prompt.md", b"What is this? As JSON.")
    for name, content in pictures.items():
        shell.write(name, content)

    def answer(request: Request) -> Response:
        text, picture = request.prompt
        assert "JSON" in text["text"]
        head, _, data = picture["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        (name,) = [name for name, content in pictures.items() if content == base64.b64decode(data)]
        return completion({"label": name.removesuffix(".png")})

    server.answer = answer
    run = shell.run(line)
    assert (run.status, run.stderr) == (0, b"")
    found = sorted(shell.read_rows("labels.jsonl"), key=str)
    assert found == [{"file": f"{each}.png", "label": each} for each in ("a dog", "cat")]


# Half price


@needs_curl
@runs(COLLECT)
def test_a_batch_is_handed_in_and_taken_back(line: str, shell: Shell, server: Server) -> None:
    api = BatchApi(expires={"3"}, refuses={"5"})
    server.answer = api.answer
    shell.environ["OPENAI_API_KEY"] = BatchApi.KEY
    shell.write_command("sleep", 'echo "$1" >> slept')
    shell.write("data.jsonl", rows([*range(8), 0, 1]))
    shell.run(find_line(SUBMIT))
    assert len((shell.folder / "ids").read_text().split()) == 1
    run = shell.run(line)
    assert (run.status, run.stderr) == (0, b"")
    assert ids(shell.read_rows("out.jsonl")) == [0, 0, 1, 1, *range(2, 8)]
    errors = [line for line in (shell.folder / "errors.jsonl").read_text().splitlines() if line.startswith("{")]
    assert sorted(json.loads(line)["error"] for line in errors) == ["http", "server"]
    assert api.asked_live == ["3", "5"]
    assert set((shell.folder / "slept").read_text().split()) == {"60"}


@needs_curl
@runs(SUBMIT)
def test_files_of_50000_lines_are_handed_in_one_by_one(line: str, shell: Shell, server: Server) -> None:
    api = BatchApi()
    server.answer = api.answer
    shell.environ["OPENAI_API_KEY"] = BatchApi.KEY
    shell.write_command("sleep", "")
    shell.write("data.jsonl", rows(range(8)))
    assert shell.run(line.replace("-l 50000", "-l 3")).status == 0
    assert len((shell.folder / "ids").read_text().split()) == 3
    assert shell.run(find_line(COLLECT)).status == 0
    assert ids(shell.read_rows("out.jsonl")) == list(range(8))
    assert not api.asked_live


@runs("llmfilter -p prompt.md --to-batch < data.jsonl > batch.jsonl; vllm ")
def test_vllm_runs_a_batch_without_a_server(line: str, shell: Shell, server: Server) -> None:
    """What stands in for vLLM writes what its run-batch writes; the model is what the file names."""
    script = shell.folder / "vllm.py"
    script.write_bytes((TESTS / "vllm_batch.py").read_bytes())
    shell.write_command("vllm", f'exec {sys.executable} {script} "$@"')
    shell.write("data.jsonl", rows(range(3)))
    run = shell.run(line)
    assert run.said[-1] == "llmfilter: 3 lines: 2 answers stored, 0 already in the cache, 1 failed"
    again = shell.run("llmfilter -k -p prompt.md < data.jsonl")
    assert [row["echo"] for row in again.rows] == ["batch 0", "1", "batch 2"]
    assert server.prompts == ["1"]


# Several servers


@needs_nginx
def test_behind_nginx_a_server_that_dies_loses_no_row(shell: Shell, server: Server) -> None:
    count = 400
    with ExitStack() as life:
        dying = life.enter_context(Server())
        with Nginx(shell.folder, [server, dying]) as url:
            server.hold()
            dying.hold()
            shell.write("data.jsonl", rows(range(count)))
            run = shell.start(f"llmfilter -u {url} --stats stats.json -p prompt.md < data.jsonl")
            for each in (server, dying):
                each.wait_for(JOBS // 2)
            life.close()
            server.release()
            run.finish()
    assert (run.status, run.stderr) == (0, b"")
    assert ids(run.rows) == list(range(count))
    (stats,) = shell.read_rows("stats.json")
    assert (stats["requests"], stats["retries"]) == (count, 0), "nginx sends them to the other one"
    assert len(server.requests) == count - JOBS // 2 + len(dying.requests) == count


class Nginx:
    """The README's nginx, on a free port before these servers."""

    def __init__(self, folder: Path, servers: list[Server]) -> None:
        port = free_port(["127.0.0.1"])
        conf = read_block("Several servers of one model", "nginx")
        for name, server in zip(("gpu1:8000", "gpu2:8000"), servers, strict=True):
            conf = conf.replace(name, f"127.0.0.1:{server.port}")
        conf = conf.replace("listen 127.0.0.1:8000", f"listen 127.0.0.1:{port}")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {folder}/nginx;\n" for kind in kinds)
        whole = f"daemon off;\npid {folder}/nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{conf}}}\n"
        (folder / "nginx.conf").write_text(whole)
        self._url = f"http://127.0.0.1:{port}/v1"
        self._port = port
        self._command = [find("nginx") or "", "-e", f"{folder}/nginx.log", "-c", f"{folder}/nginx.conf"]

    def __enter__(self) -> str:
        self._nginx = subprocess.Popen(self._command)
        wait_listening(self._port)
        return self._url

    def __exit__(self, *_: object) -> None:
        self._nginx.terminate()
        self._nginx.wait(PATIENCE_S)
