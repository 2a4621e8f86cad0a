"""--to-batch and --from-batch: what the cache lacks goes through a provider's Batch API, the rest is asked live."""

import json
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from program import ASK, Programs, rows
from server import Server, completion, error

KEY = "ab" * 32
ADDED_KB_MOST = 6_000  # for 100 times as many rows


def body(content: str = '{"label": "spam"}', reason: str = "stop") -> str:
    """A completion as OpenAI's reference shows it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "logprobs": None}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1711652795, "model": "tiny"}
    return json.dumps({**whole, "choices": [{**choice, "finish_reason": reason}], "usage": usage})


def result(custom_id: str, answer: str | None = None) -> bytes:
    """A line of OpenAI's output file."""
    response = f'{{"status_code": 200, "request_id": "req_1", "body": {answer or body()}}}'
    return f'{{"id": "batch_req_1", "custom_id": "{custom_id}", "response": {response}, "error": null}}\n'.encode()


def requests(program: Programs, input: bytes, *args: str) -> list[Any]:
    """What --to-batch prints."""
    run = program.run(*ASK, "--to-batch", *args, input=input)
    assert run.status == 0
    return run.rows


def check_nothing_sent(server: Server) -> None:
    assert not server.requests


# What succeeded, as each provider writes it.
OPENAI = '{"id": "batch_req_1", "custom_id": "K", "response": {"status_code": 200, "request_id": "r", "body": B}, '
GOOD = {
    "OpenAI": OPENAI + '"error": null}',
    "Azure": '{"custom_id": "K", "response": {"body": B, "request_id": "r", "status_code": 200}, "error": null}',
    "Azure now": '{"custom_id":"K","error":null,"response":{"body":B,"request_id":"r","status_code":200},"id":"b"}',
    "vllm run-batch": '{"id":"vllm-1","custom_id":"K","response":{"status_code":200,"request_id":"vllm-batch-1",'
    '"body":B},"error":null}',
    "Mistral": '{"id": "batch-1", "custom_id": "K", "response": {"status_code": 200, "body": B}, "error": null}',
    "Together": '{"custom_id": "K", "response": {"status_code": 200, "request_id": "r", "body": B}}',
    "decoys": '{"x": "\\"body\\": {}", "custom_id": "K", "response": {"body": 1, "status_code": 200, "body": B}, '
    '"error": null}',
}


@pytest.mark.parametrize("line", GOOD.values(), ids=GOOD)
def test_a_completion_of_each_provider_answers_its_row(program: Programs, server: Server, line: str) -> None:
    (asked,) = requests(program, rows([1]))
    answer = body('{"n": 1.0}')[:-1] + ', "odd": [1e400, 1.0, 123456789012345678901234567890]}'
    load = program.run("--from-batch", input=line.replace("K", asked["custom_id"]).replace("B", answer).encode())
    assert (load.status, load.stdout) == (0, b"")
    assert load.said == ["llmfilter: 1 line: 1 answer stored, 0 already in the cache, 0 failed"]
    run = program.run(*ASK, "--response", "raw", input=rows([1]))
    assert run.lines == [b'{"id":1,"n": 1.0,"raw":%b}' % answer.encode()]
    check_nothing_sent(server)


# What is no answer: the line, the kind of its error, and words of the message.
NO_ANSWER: list[tuple[str, str, Sequence[str]]] = [
    (
        '{"id": "b", "custom_id": "K", "response": {"status_code": 400, "request_id": "r", "body": {"error": '
        '{"message": "too long", "type": "invalid_request_error", "param": null, "code": null}}}, "error": null}',
        "http",
        ["HTTP 400: too long"],
    ),
    (
        '{"id": "b", "custom_id": "K", "response": null, "error": {"code": "batch_expired", '
        '"message": "This request could not be executed before the completion window expired."}}',
        "server",
        ["batch_expired: This request could not be executed"],
    ),
    (
        '{"id": "b", "custom_id": "K", "response": null, "error": {"code": "batch_cancelled", "message": "no"}}',
        "server",
        ["batch_cancelled: no"],
    ),
    (
        '{"custom_id": "K", "response": {"body": {"error": {"code": "content_filter", "message": "policy"}}, '
        '"request_id": "r", "status_code": 400}, "error": null}',
        "filtered",
        ["policy"],
    ),
    ('{"error": {"code": "429", "message": "busy"}, "custom_id": "K", "response": null}', "server", ["429: busy"]),
    (
        '{"id":"v","custom_id":"K","response":{"status_code":400,"request_id":"v","body":null},"error":"too long"}',
        "http",
        ["HTTP 400: too long"],
    ),
    (
        '{"id":"v","custom_id":"K","response":{"status_code":400,"request_id":"v","body":null},"error":'
        '{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}}',
        "http",
        ["HTTP 400: too long"],
    ),
    ('{"id": "b", "custom_id": "K", "response": {"status_code": 422, "body": {"detail": "no"}}}', "http", ["422: no"]),
    ('{"custom_id": "K", "error": {"message": "bad", "code": "model_error"}}', "server", ["model_error: bad"]),
    (
        '{"custom_id": "K", "response": {"status_code": 401, "body": {"error": {"message": "no"}}}}',
        "http",
        ["HTTP 401: no"],
    ),
    ('{"custom_id": "K", "response": {"status_code": 200, "body": {}}}', "server", ["no choices"]),
    ('{"custom_id": "K", "response": {"status_code": 200, "body": null}}', "server", ["no completion"]),
    ('{"custom_id": "K", "response": [], "error": []}', "server", ["no completion"]),
    ('{"custom_id": "K", "response": {"status_code": "x"}, "error": 1e400}', "server", ["no completion"]),
    (GOOD["OpenAI"].replace("B", body('{"a": 1', "length")), "truncated", ["cut off"]),
    (GOOD["OpenAI"].replace("B", body("", "content_filter")), "filtered", ["filter"]),
    (GOOD["OpenAI"].replace("B", body("")), "server", ["empty"]),
    (GOOD["OpenAI"].replace("K", "request-1").replace("B", body()), "input", ["--to-batch", "custom_id"]),
    (GOOD["OpenAI"].replace("K", "z" * 64).replace("B", body()), "input", ["--to-batch"]),
    (GOOD["OpenAI"].replace('"K"', "1").replace("B", body()), "input", ["--to-batch"]),
    ('{"custom_id": "K", "method": "POST", "url": "/v1/chat/completions", "body": {}}', "input", ["neither"]),
    ('{"id": 1}', "input", ["neither"]),
    ("[]", "input", ["a JSON object is needed"]),
    ('{"custom_id": "K", "respon', "input", ["not JSON"]),
]


@pytest.mark.parametrize(("line", "kind", "words"), NO_ANSWER)
def test_each_other_line_is_one_error_line_and_costs_nothing_else(
    program: Programs, server: Server, line: str, kind: str, words: Sequence[str]
) -> None:
    (asked, other) = requests(program, rows([1, 2]))
    bad = line.replace("K", asked["custom_id"]).encode()
    load = program.run("--from-batch", input=b"\n" + bad + b"\r\n" + result(other["custom_id"]))
    assert load.status == 1
    (error,) = load.errors
    assert (error["line"], error["error"]) == (2, kind)
    assert all(word in error["message"] for word in words)
    assert bad in load.stderr or error["input"] == bad.decode()
    assert "1 answer stored, 0 already in the cache, 1 failed" in load.said[0]
    run = program.run(*ASK, "-k", input=rows([1, 2]))
    assert run.rows == [{"id": 1, "echo": "1"}, {"id": 2, "label": "spam"}]
    assert server.prompts == ["1"]


def test_the_lines_are_the_bodies_that_are_missing_each_once(program: Programs, server: Server) -> None:
    program.run(*ASK, input=rows([1]))
    run = program.run(*ASK, "--to-batch", input=rows([0, 1, 2, 0, 2]) + b"no record\n")
    bodies = [request.body for request in server.requests]
    assert [line["body"]["messages"][0]["content"] for line in run.rows] == ["0", "2"]
    assert all((line["method"], line["url"]) == ("POST", "/v1/chat/completions") for line in run.rows)
    assert all(len(line["custom_id"]) == 64 for line in run.rows)
    assert run.status == 1 and [error["error"] for error in run.errors] == ["input"]
    counts = "1 answered by the cache, 1 failed, 2 requests printed, 2 duplicates"
    assert run.said == [f"llmfilter: 6 rows: {counts}"]
    dry = program.run(*ASK, "-n", input=rows([0]))
    assert run.lines[0].endswith(b',"body":%b}' % dry.lines[0])
    assert bodies == [request.body for request in server.requests]


def test_no_key_and_no_server_are_needed(program: Programs) -> None:
    run = program.run(*ASK, "--to-batch", "-u", "https://api.example.com/v1", input=rows([1]))
    assert (run.status, len(run.lines)) == (0, 1)
    assert not program.cache.exists()


def test_equal_requests_are_printed_once_however_many_lines_are_between(program: Programs) -> None:
    ids = [*range(30_000), *range(30_000)]
    assert len(requests(program, rows(ids))) == 30_000


@pytest.mark.parametrize("is_kept", [True, False])
def test_nothing_is_left_behind_in_the_caches_folder(program: Programs, is_kept: bool) -> None:
    program.run(*ASK, input=rows([1]))
    if is_kept:
        run = program.start(*ASK, "--to-batch").write(rows(range(2))).read_lines(1)
        run.kill()
    else:
        requests(program, rows(range(3)))
    assert sorted(path.name for path in program.cache.iterdir()) == ["data.mdb", "lock.mdb"]


def test_what_came_back_in_any_order_is_replayed_and_the_rest_asked_live(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion({"label": "live"})
    asked = requests(program, rows(range(10)))
    results = [result(line["custom_id"]) for line in asked[:3] + asked[5:]]
    assert program.run("--from-batch", input=b"".join(reversed(results))).status == 0
    run = program.run(*ASK, "-k", input=rows(range(10)))
    assert [row["label"] for row in run.rows] == ["spam"] * 3 + ["live"] * 2 + ["spam"] * 5
    assert sorted(server.prompts) == ["3", "4"]


def test_an_answer_that_does_not_pass_is_asked_for_again_with_what_is_wrong(program: Programs, server: Server) -> None:
    (asked,) = requests(program, rows([1]))
    load = program.run("--from-batch", input=result(asked["custom_id"], body("no JSON")))
    assert load.status == 0, "only the ordinary run knows what an answer must be"
    again = program.run(*ASK, "--to-batch", input=rows([1]))
    assert (again.lines, "1 with an unusable answer" in again.said[0]) == ([], True)
    server.answer = lambda request: completion({"label": "better"})
    assert program.run(*ASK, input=rows([1])).rows == [{"id": 1, "label": "better"}]
    (request,) = server.requests
    assert [message["content"] for message in request.json["messages"]][:2] == ["1", "no JSON"]
    program.run("--from-batch", input=result(asked["custom_id"], body("no JSON")))
    assert program.run(*ASK, input=rows([1])).rows == [{"id": 1, "label": "better"}], "loaded twice"
    assert len(server.requests) == 1


def test_loading_twice_changes_nothing(program: Programs, server: Server) -> None:
    asked = requests(program, rows(range(5)))
    results = b"".join([result(line["custom_id"]) for line in asked])
    first = program.run("--from-batch", input=results + results)
    second = program.run("--from-batch", "--stats", "stats.json", input=results)
    assert first.said == ["llmfilter: 10 lines: 5 answers stored, 5 already in the cache, 0 failed"]
    assert second.said == ["llmfilter: 5 lines: 0 answers stored, 5 already in the cache, 0 failed"]
    stats = json.loads((program.folder / "stats.json").read_text())
    assert (stats["rows"], stats["answered"], stats["cached"], stats["requests"]) == (5, 5, 5, 0)
    assert stats["tokens"]["billed"] == {"prompt": 0, "cached_prompt": 0, "completion": 0}
    check_nothing_sent(server)


def test_a_kill_in_mid_load_costs_nothing_and_the_same_command_completes_it(program: Programs, server: Server) -> None:
    count = 20_000
    asked = requests(program, rows(range(count)))
    results = [result(line["custom_id"]) for line in asked]
    before = b"".join(results[: count // 2])
    run = program.start("--from-batch")
    run.write(before + b"broken\n", lambda: bool(run.errors))
    run.kill()
    whole = b"".join(results)
    again = program.run("--from-batch", input=whole)
    assert again.status == 0
    stored = int(again.said[0].partition(" lines: ")[2].partition(" answers")[0].replace(",", ""))
    assert 0 < stored < count, "some of it had been stored before the kill"
    run = program.run(*ASK, input=rows(range(count)))
    assert (run.status, len(run.lines)) == (0, count)
    check_nothing_sent(server)


def test_a_cache_that_takes_nothing_ends_the_load(program: Programs, server: Server) -> None:
    lines = b"".join(result(f"{each:064x}", body(f'{{"a": "{"x" * 9000}"}}')) for each in range(1000))
    run = program.run("--from-batch", input=lines, shell='ulimit -f 1024; exec "$@"')
    assert run.status == 3
    assert any("can't be stored" in line and "the same command" in line for line in run.said)


@pytest.mark.parametrize("mode", ["-n", "--to-batch", "--from-batch"])
def test_memory_is_flat(program: Programs, mode: str) -> None:
    used = []
    for count in (2_000, 200_000):
        run = program.start(*(ASK if mode != "--from-batch" else ()), mode, "-q", env={"LLMFILTER_CACHE": f"c{count}"})
        for part in parts(mode, count):
            run.write(part)
            run.forget()
        run.wait_asleep()
        used.append(run.memory_kb())
        assert run.finish().status == 0
    assert used[1] - used[0] < ADDED_KB_MOST


def parts(mode: str, count: int) -> Iterator[bytes]:
    for start in range(0, count, 2_000):
        some = range(start, start + 2_000)
        yield rows(some) if mode != "--from-batch" else b"".join(result(f"{each:064x}") for each in some)


# Usage

WRONG: list[tuple[Sequence[str], Sequence[str]]] = [
    ((*ASK, "--to-batch", "-n"), ["-n and --to-batch"]),
    ((*ASK, "--from-batch"), ["--from-batch", "give --prompt to the run after it"]),
    (("--from-batch", "--to-batch"), ["--from-batch", "give --to-batch to the run after it"]),
    (("--from-batch", "-n"), ["--from-batch", "give --dry-run to the run after it"]),
    (("--from-batch", "-k"), ["give --keep-order to the run after it"]),
    (("--from-batch", "-o", "a=1"), ["give --option to the run after it"]),
    (("--from-batch", "-f", "a"), ["give --fields to the run after it"]),
    (("--from-batch", "--no-cache"), ["--no-cache", "into the cache"]),
]


@pytest.mark.parametrize(("args", "words"), WRONG)
def test_what_means_nothing_together_is_refused(program: Programs, args: Sequence[str], words: Sequence[str]) -> None:
    run = program.run(*args, input=rows([1]))
    assert (run.status, run.stdout, len(run.said)) == (2, b"", 1)
    assert all(word in run.said[0] for word in words)


def test_ctrl_c_in_mid_load_keeps_what_was_read(program: Programs, server: Server) -> None:
    asked = requests(program, rows(range(2000)))
    results = [result(line["custom_id"]) for line in asked]
    run = program.start("--from-batch")
    run.write(b"".join(results[:1500]) + b"broken\n", lambda: bool(run.errors))
    run.signal(signal.SIGINT)
    run.wait()
    assert run.finish().status == -signal.SIGINT
    # What was read here may not be known there yet as written, and then that is waited for.
    (ended,) = [line for line in run.said if "waiting for the reader" not in line and "ended by" in line]
    assert "the same command" in ended
    again = program.run("--from-batch", input=b"".join(results))
    assert again.status == 0
    assert "0 failed" in again.said[0] and not again.said[0].startswith("llmfilter: 2,000 lines: 2,000 answers stored")


# The flex tier


def test_the_refusals_of_a_flex_tier_are_waited_out(program: Programs, server: Server) -> None:
    refusals = [error(429, "Resource Unavailable", code="resource_unavailable"), error(498, "capacity_exceeded")]
    server.answer = lambda request: refusals.pop() if refusals else completion({"a": 1})
    run = program.run(*ASK, "-o", "service_tier=flex", "--timeout", "900", "-r", "0", input=rows([1]))
    assert (run.status, run.rows) == (0, [{"id": 1, "a": 1}])
    assert {request.json["service_tier"] for request in server.requests} == {"flex"}
    assert len(server.requests) == 3
