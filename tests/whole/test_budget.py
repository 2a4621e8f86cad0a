"""--budget: the run ends when so many tokens have been billed; what is in flight goes beyond them, at most."""

import json
import random
from collections.abc import Sequence

import pytest
from program import ASK, Programs, rows
from server import Request, Response, Server, completion, error

JOBS = 8
COUNT = 200


def usage(total: int) -> dict[str, int]:
    return {"prompt_tokens": total // 2, "completion_tokens": total - total // 2}


def billed(program: Programs) -> int:
    """The tokens that the last run was billed with."""
    tokens = json.loads((program.folder / "stats.json").read_text())["tokens"]["billed"]
    return int(tokens["prompt"] + tokens["completion"])


@pytest.mark.parametrize("seed", range(20))
def test_at_most_what_is_in_flight_goes_beyond_it(program: Programs, server: Server, seed: int) -> None:
    rng = random.Random(seed)
    costs = [rng.randint(50, 150) for _ in range(COUNT)]
    server.answer = lambda request: completion({"a": 1}, usage=usage(costs[int(request.prompt)]))
    run = program.run(*ASK, "-j", str(JOBS), "--budget", "10000", "--stats", "stats.json", input=rows(range(COUNT)))
    assert run.status == 3 and not run.errors
    assert all(word in run.said[0] for word in ("the 10000 tokens of --budget", "the same command"))
    assert 10_000 <= billed(program) == sum(costs[int(prompt)] for prompt in server.prompts)
    assert billed(program) < 10_000 + 150 + JOBS * 50  # each as much above the mean as can be
    assert len(run.lines) == len(server.requests)


def test_of_a_budget_that_one_request_uses_up_no_more_go(program: Programs, server: Server) -> None:
    run = program.run(*ASK, "-j", str(JOBS), "--budget", "10", input=rows(range(COUNT)))
    assert run.status == 3
    assert len(run.lines) == len(server.requests) == 1


def test_the_same_command_goes_on_and_what_is_cached_costs_nothing(program: Programs, server: Server) -> None:
    runs = [program.run(*ASK, "-j", "1", "--budget", "100", input=rows(range(25))) for _ in range(3)]
    assert [(run.status, len(run.lines)) for run in runs] == [(3, 10), (3, 20), (0, 25)]
    assert len(server.requests) == 25


def test_a_budget_that_the_last_row_uses_up_ends_nothing(program: Programs, server: Server) -> None:
    run = program.run(*ASK, "-j", "1", "--budget", "30", input=rows(range(3)))
    assert (run.status, run.stderr, len(run.lines)) == (0, b"", 3)


def test_answers_that_are_of_no_use_and_asking_again_count(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion("no JSON")
    run = program.run(*ASK, "-j", "1", "--budget", "35", input=rows(range(9)))
    assert run.status == 3
    assert (len(server.requests), len(run.errors)) == (4, 2)


@pytest.mark.parametrize("body", [b"", b',"usage":null', b',"usage":{"prompt_tokens":0,"completion_tokens":0}'])
def test_a_server_that_reports_no_usage_ends_the_run_at_once(program: Programs, server: Server, body: bytes) -> None:
    whole = b'{"choices":[{"message":{"content":"{\\"a\\":1}"},"finish_reason":"stop"}]%b}' % body
    server.answer = lambda request: Response(whole)
    run = program.run(*ASK, "-j", "1", "--budget", "1000", input=rows(range(9)))
    assert run.status == 3
    assert len(server.requests) == len(run.lines) == 1, "what was paid for is printed"
    assert "--budget can't be kept" in run.said[0]


def test_requests_that_fail_hold_nothing_back(program: Programs, server: Server) -> None:
    refused: list[str] = []

    def answer(request: Request) -> Response:
        if int(request.prompt) % 2 and request.prompt not in refused:
            refused.append(request.prompt)
            return error(429, "slow down", {"retry-after-ms": "1"})
        return error(400, "no") if request.prompt == "8" else completion({"a": 1})

    server.answer = answer
    run = program.run(*ASK, "-j", "4", "--budget", "1000", input=rows(range(20)))
    assert (run.status, len(run.lines), len(run.errors)) == (1, 19, 1)


@pytest.mark.parametrize("args", [("--budget", "0"), ("--budget", "1e6"), ("--budget", "-1")])
def test_a_budget_is_a_whole_number(program: Programs, args: Sequence[str]) -> None:
    run = program.run(*ASK, *args)
    assert run.status == 2 and "--budget" in run.said[0]
