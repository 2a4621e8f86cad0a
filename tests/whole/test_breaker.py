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
    for word in (*words, "the first unfinished line is "):
        assert word in run.said[0]
    assert ("the same command on the same input goes on" in run.said[0]) == ("(0 rows answered" not in run.said[0])


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
    assert "the first unfinished line is 101 " in run.said[0]
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
    "CSV": (("id,text\n" + "".join(f'{record["id"]},"{record["text"]}"\n' for record in RECORDS)).encode(), "mlr -S "),
    "UTF-16": (AS_LINES.encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
    "UTF-16 without BOM": (AS_LINES.encode("utf-16-le"), "iconv -f UTF-16 -t UTF-8"),
    "Latin-1": (AS_LINES.encode("latin-1"), "iconv -f ENCODING -t UTF-8 (uchardet FILE"),
}


@pytest.mark.parametrize("looks", LOOKS)
def test_an_input_that_is_no_jsonl_ends_the_run_with_its_way_out(looks: str, server: Server, program: Programs) -> None:
    data, way = LOOKS[looks]
    run = program.run(*ASK, input=data)
    assert (run.status, run.errors, server.requests) == (3, [], [])
    (line,) = run.said
    assert line.startswith("llmfilter: stdin is ") and way in line and "the first unfinished line is 1 " in line
    assert "the same command" not in line  # it would end in the same way


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
    check_ended(run, "revoked", "the first unfinished line is 8")
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


# Money: counted at the server


def test_a_forgotten_text_option_ends_the_run_after_32_answers(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion("It is spam.")
    run = program.run(*ASK, "-j", "4", input=rows(range(2000)))
    assert run.status == 3
    assert "none of the first 32 answers can be used" in run.said[-1] and "give --text" in run.said[-1]
    assert len(server.requests) <= 32 + 4


def test_a_typo_in_fields_is_paid_once(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion({"label": "spam"})
    run = program.run(*ASK, "-j", "4", "-f", "lable", input=rows(range(500)))
    assert run.status == 3
    assert "they lack the key `lable`; they have: label" in run.said[-1]
    asked = {each.prompt for each in server.requests if len(each.json["messages"]) == 1}
    assert len(server.requests) <= 32 + 4
    server.requests.clear()
    assert program.run(*ASK, "-f", "label", input=rows(sorted(map(int, asked)))).status == 0
    assert not server.requests, "an object is an answer, whatever -f says"


def test_an_answer_without_a_field_is_kept_and_not_what_the_model_says_to_that(
    program: Programs, server: Server
) -> None:
    server.answer = lambda request: completion({"label": 1} if len(request.json["messages"]) == 1 else {"sorry": 1})
    assert len(program.run(*ASK, "-f", "lable", input=rows(range(3))).errors) == 3
    server.requests.clear()
    assert [row["label"] for row in program.run(*ASK, "-f", "label", input=rows(range(3))).rows] == [1, 1, 1]
    assert not server.requests


def test_one_token_that_was_asked_for_is_whole(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion("Yes", finish_reason="length")
    ask = [*ASK, "--text", "-o", "max_tokens=1", "--response", "r"]
    for _ in range(2):
        run = program.run(*ask, input=rows(range(3)))
        assert (run.status, {row["answer"] for row in run.rows}) == (0, {"Yes"})
    assert len(server.requests) == 3
    run = program.run(*ASK, "--text", "-o", "max_tokens=2", input=rows([0]))
    assert [error["error"] for error in run.errors] == ["truncated"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!doctype html><title>Welcome</title>", "a web page"),
        (b'{"model":"x","message":{"role":"assistant","content":"{}"},"done":true}', "Ollama's own API"),
        (b'{"result":{"response":"{}"},"success":true}', "Cloudflare's own API"),
        (b'{"generated_text":"{}"}', "a text generation API"),
        (b"{}", "another API's answer"),
        (b'{"choices":[{"text":"{}","finish_reason":"stop"}],"usage":{"prompt_tokens":9}}', "text completions"),
        (Response(b"\x0b\x02\x80{}\x03", headers={"Content-Encoding": "br"}), "compressed (br)"),
    ],
)
def test_an_answer_that_is_no_completion_is_asked_for_three_times_in_all(
    body: bytes | Response, words: str, program: Programs, server: Server
) -> None:
    server.answer = lambda request: Response(body) if isinstance(body, bytes) else body
    run = program.run(*ASK, "-j", "1", input=rows(range(200)))
    assert run.status == 3
    assert f"the server's first 3 answers are not chat completions but {words}" in run.said[-1]
    assert len(server.prompts) == len(set(server.prompts)) == 3


def test_a_field_that_the_model_refuses_ends_the_run_at_the_first_row(program: Programs, server: Server) -> None:
    server.answer = lambda request: error(400, "Unsupported value", param="temperature", code="unsupported_value")
    run = program.run(*ASK, "-j", "1", input=rows(range(100)))
    assert (run.status, len(server.requests)) == (3, 1)
    assert "-o temperature=null" in run.said[-1] and "-o reasoning_effort=none" in run.said[-1]


@pytest.mark.parametrize("status", [204, 301, 405, 410, 413, 501])
def test_whatever_every_row_is_refused_with_ends_the_run(status: int, program: Programs, server: Server) -> None:
    server.answer = lambda request: Response(b"", status, {"Location": "https://elsewhere.test/v1"})
    run = program.run(*ASK, "-j", "1", input=rows(range(600)))
    assert (run.status, len(server.requests)) == (3, 32)


def test_a_finish_reason_that_nobody_knows_is_said_once(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion({"a": 1}, finish_reason="odd\x1b[1m")
    run = program.run(*ASK, input=rows(range(9)))
    assert (run.status, len(run.rows)) == (0, 9)
    assert len(run.said) == 1 and "finish_reason 'odd [1m'" in run.said[0]


def test_a_re_ask_that_is_refused_keeps_the_answer(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion("no JSON") if len(request.json["messages"]) == 1 else error(400, "long")
    run = program.run(*ASK, input=rows([0]))
    (line,) = run.errors
    assert (line["error"], line["raw"], line["attempts"]) == ("unparsable", "no JSON", 2)


def test_groqs_refusal_of_its_models_answer_is_an_unusable_answer(program: Programs, server: Server) -> None:
    bad = error(400, "Failed to validate JSON", code="json_validate_failed", failed_generation='{"a": ')
    server.answer = lambda request: bad if len(request.json["messages"]) == 1 else completion({"a": 1})
    run = program.run(*ASK, input=rows([0]))
    assert (run.status, run.rows) == (0, [{"id": 0, "a": 1}])
    assert server.requests[1].json["messages"][1] == {"role": "assistant", "content": '{"a": '}
