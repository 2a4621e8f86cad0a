"""What ends a run: the server refuses every row, or it has no chance."""

import asyncio
import gzip
import json
import random

import pytest
from program import ASK, Program, Programs, rows
from server import Reply, Request, Response, Server, completion, echo, error

MANY = rows(range(500))
QUOTA = error(429, "You exceeded your current quota", type="insufficient_quota", code="insufficient_quota")


def check_ended(run: Program, *words: str) -> None:
    """One plain line says why, where and how to go on."""
    assert run.status == 3
    assert len(run.said) == 1
    for word in (*words, "stopped at line ", "the same command"):
        assert word in run.said[0]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (error(401, "Incorrect API key"), ["Incorrect API key", "OPENAI_API_KEY"]),
        (error(402, "Insufficient Balance"), ["Insufficient Balance", "credit"]),
        (QUOTA, ["exceeded your current quota", "credit"]),
        (Response(b'{"error":{"message":"none left","code":"insufficient_quota"},"choices":null}'), ["none left"]),
    ],
    ids=["401", "402", "insufficient_quota", "insufficient_quota with 200"],
)  # fmt: skip
def test_no_key_and_no_credit_end_the_run_at_any_time(
    reply: Response, words: list[str], server: Server, program: Programs
) -> None:
    server.answer = lambda request: echo(request) if int(request.prompt) < 100 else reply
    run = program.run(*ASK, "-j", "4", input=MANY)
    check_ended(run, *words)
    assert sorted(row["id"] for row in run.rows) == list(range(100))  # those in flight are finished
    assert len(server.requests) <= 100 + 4
    assert "stopped at line 101," in run.said[0]
    server.answer = echo
    again = program.run(*ASK, input=MANY)
    assert again.status == 0 and len(again.lines) == 500
    asked = [request.prompt for request in server.requests if request.prompt]
    assert all(asked.count(str(row["id"])) == 1 for row in run.rows)  # what was printed is not asked again


def test_a_single_403_is_its_rows_error(server: Server, program: Programs) -> None:
    server.answer = lambda request: error(403, "blocked by firewall") if request.prompt == "0" else echo(request)
    run = program.run(*ASK, "-j", "1", input=rows(range(50)))
    assert run.status == 1 and len(run.lines) == 49
    assert [line["status"] for line in run.errors] == [403]


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_32_refused_rows_before_any_success_end_the_run(status: int, server: Server, program: Programs) -> None:
    server.answer = lambda request: error(status, "not like this")
    run = program.run(*ASK, "-j", "1", input=MANY)
    check_ended(run, "first 32 rows", "not like this")
    assert len(server.requests) == 32


RECORDS = [{"id": each, "text": f"é{each}"} for each in range(500)]
AS_LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
LOOKS = {
    "objects over several lines": ("\n".join(json.dumps(record, indent=2) for record in RECORDS).encode(), "jq -c ."),
    "an array over several lines": (json.dumps(RECORDS, indent=2).encode(), "jq -c '.[]'"),
    "an array of lines": (b"[\n" + AS_LINES.replace("}\n", "},\n").encode() + b"]", "jq -c '.[]'"),
    "gzip": (gzip.compress(random.Random(1).randbytes(20_000)), "zcat"),
    "CSV": (("id,text\n" + "".join(f'{record["id"]},"{record["text"]}"\n' for record in RECORDS)).encode(), "mlr"),
    "UTF-16": (AS_LINES.encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
    "UTF-16 without BOM": (AS_LINES.encode("utf-16-le"), "iconv -f UTF-16 -t UTF-8"),
    "Latin-1": (AS_LINES.encode("latin-1"), "iconv -f LATIN1 -t UTF-8"),
}


@pytest.mark.parametrize("looks", LOOKS)
def test_an_input_that_is_no_jsonl_ends_the_run_with_its_way_out(looks: str, server: Server, program: Programs) -> None:
    data, way = LOOKS[looks]
    run = program.run(*ASK, input=data)
    check_ended(run, "none of the first 32 rows can be sent", "the line is not ", way)
    assert len(run.errors) == 32 and not server.requests


def test_a_field_that_no_record_has_ends_the_run(server: Server, program: Programs) -> None:
    program.write("text.md", "{text}")
    run = program.run("-p", "text.md", input=MANY)
    check_ended(run, "none of the first 32 rows can be sent", "the record has no field text; it has: id", "prompt")
    assert len(run.errors) == 32 and not server.requests


def test_rows_that_cannot_be_sent_end_no_run_that_has_sent_one(server: Server, program: Programs) -> None:
    run = program.run(*ASK, input=b"no JSON\n" * 31 + rows([1]) + b"no JSON\n" * 100)
    assert (run.status, len(run.errors), len(run.rows)) == (1, 131, 1)


def test_after_a_success_refused_rows_are_their_own_errors(server: Server, program: Programs) -> None:
    server.answer = lambda request: echo(request) if request.prompt == "0" else error(400, "not like this")
    run = program.run(*ASK, "-j", "1", input=rows(range(100)))
    assert run.status == 1 and len(run.errors) == 99


def test_a_cache_hit_is_a_success(server: Server, program: Programs) -> None:
    assert program.run(*ASK, input=rows([0])).status == 0
    server.answer = lambda request: error(400, "not like this")
    run = program.run(*ASK, "-j", "1", input=rows(range(100)))
    assert run.status == 1 and len(run.errors) == 99 and len(run.lines) == 1


def test_a_missing_model_ends_the_run_at_once(server: Server, program: Programs) -> None:
    server.answer = lambda request: error(404, "no such model", code="model_not_found")
    check_ended(program.run(*ASK, "-j", "1", input=MANY), "no such model", "-m")
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_ends_the_run(server: Server, program: Programs) -> None:
    run = program.run(*ASK, "-r", "1", "-u", "http://127.0.0.1:1/v1", input=MANY)
    check_ended(run, "cannot connect to 127.0.0.1:1", "-u")


def test_a_retry_after_beyond_ten_minutes_ends_the_run(server: Server, program: Programs) -> None:
    server.answer = lambda request: error(429, "daily limit", {"Retry-After": "86400"})
    check_ended(program.run(*ASK, input=MANY), "86400 s", "daily limit")


def test_what_is_in_flight_is_finished_into_the_cache(server: Server, program: Programs) -> None:
    def answer(request: Request) -> Reply:
        return error(401, "revoked") if request.prompt == "7" else echo(request)

    server.answer = answer
    server.hold(lambda request: request.prompt != "7")
    run = program.start(*ASK, "-j", "8").write(rows(range(20)))
    server.wait_for(8)
    server.wait_answered(1)  # the 401
    server.release()
    run.finish()
    check_ended(run, "revoked", "stopped at line 8")
    assert sorted(row["id"] for row in run.rows) == list(range(7))
    assert len(server.requests) == 8


def test_a_loading_model_is_waited_out(server: Server, program: Programs) -> None:
    seen: list[str] = []

    def answer(request: Request) -> Reply:
        seen.append(request.prompt)
        loading = error(503, "Loading model", type="unavailable_error", code=503)
        return loading if seen.count(request.prompt) == 1 else echo(request)

    server.answer = answer
    run = program.run(*ASK, "-r", "0", "--stats", "s.json", input=rows(range(5)))
    assert run.status == 0 and len(run.lines) == 5
    assert json.loads((program.folder / "s.json").read_text())["retries"] == 5


def test_a_rate_limit_uses_no_attempt_up(server: Server, program: Programs) -> None:
    seen: list[str] = []

    def answer(request: Request) -> Reply:
        seen.append(request.prompt)
        limited = error(429, "slow down", {"retry-after-ms": "1"})
        return limited if seen.count(request.prompt) <= 2 else completion({"n": 1})

    server.answer = answer
    run = program.run(*ASK, "-r", "0", input=rows(range(2)))
    assert run.status == 0 and len(run.lines) == 2 and len(seen) == 6


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_with_8_slots_loses_no_row_and_hardly_refuses(status: int, server: Server, program: Programs) -> None:
    jobs, slots, busy = 64, 8, 0
    verdicts = []

    async def answer(request: Request) -> Reply:
        nonlocal busy
        verdicts.append(busy < slots)
        if busy == slots:
            return error(status, "no room now")
        busy += 1
        await asyncio.sleep(0.02)  # what an answer takes: without it no two would ever meet
        busy -= 1
        return echo(request)

    server.answer = answer
    run = program.run(*ASK, "-j", str(jobs), "-r", "0", input=rows(range(1000)))
    assert run.status == 0 and len(run.lines) == 1000
    later = verdicts[jobs:]  # after the first burst
    assert later.count(False) <= 0.06 * len(later)
