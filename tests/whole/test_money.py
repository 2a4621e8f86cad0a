"""--price: what a run costs, beside a sum by hand; and --budget in money."""

import json
import random
from typing import Any

import pytest
from program import ASK, Programs, rows
from server import Request, Response, Server, completion, error

IN, OUT, CACHED = 2.0, 8.0, 0.5
PRICE = ("--price", f"{IN},{OUT},{CACHED}")
COUNT = 1000


def usage_of(number: int) -> dict[str, Any]:
    """Tokens in one of three dialects, a part of the prompt from the server's cache."""
    rng = random.Random(number)
    prompt, answer = rng.randint(50, 500), rng.randint(1, 100)
    cached, reasoning = rng.randint(0, prompt), rng.randint(0, 50)
    if number % 3 == 0:
        return {"prompt_tokens": prompt, "completion_tokens": answer, "prompt_cache_hit_tokens": cached}
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "prompt_tokens_details": {"cached_tokens": cached}}
    return usage if number % 3 == 1 else usage | {"total_tokens": prompt + answer + reasoning}


def cost_of(usage: dict[str, Any]) -> float:
    """The sum by hand."""
    details = usage.get("prompt_tokens_details", {})
    cached = details.get("cached_tokens", usage.get("prompt_cache_hit_tokens", 0))
    answer = usage.get("total_tokens", usage["prompt_tokens"] + usage["completion_tokens"]) - usage["prompt_tokens"]
    return float(((usage["prompt_tokens"] - cached) * IN + cached * CACHED + answer * OUT) / 1e6)


def stats_of(program: Programs) -> Any:
    return json.loads((program.folder / "stats.json").read_text())


def test_a_thousand_rows_cost_what_a_sum_by_hand_says(program: Programs, server: Server) -> None:
    """With cached tokens, replays, answers that are asked for again, faults, and rows that fail for ever."""
    given: list[dict[str, Any]] = []
    saved: list[dict[str, Any]] = []
    faulty: set[str] = set()

    def answer(request: Request) -> Response:
        first = request.json["messages"][0]["content"]
        number, is_again = int(first), len(request.json["messages"]) > 1
        if number % 50 == 7:
            return error(400, "no")  # billed with nothing
        if number % 11 == 0 and first not in faulty:
            faulty.add(first)
            return error(500, "once", {"retry-after-ms": "1"})
        usage = usage_of(number + COUNT * is_again)
        given.append(usage)
        usable = is_again if number % 10 == 3 else number % 40 != 9  # at once, after one more, or never
        if usable:
            saved.append(usage)
        return completion({"a": number} if usable else "no JSON", usage=usage)

    server.answer = answer
    first = program.run(*ASK, *PRICE, "--stats", "stats.json", input=rows(range(COUNT // 2)))
    assert first.status == 1
    before = stats_of(program)
    assert before["cost"] == pytest.approx(sum(map(cost_of, given)))
    assert before["cost_saved"] == 0
    expected, replayed = sum(map(cost_of, given)), list(saved)
    given.clear()
    program.run(*ASK, *PRICE, "--stats", "stats.json", input=rows(range(COUNT)))
    after = stats_of(program)
    assert after["cached"] == len(replayed) and after["reasked"] > 0 and after["failed"] > 0
    assert after["cost"] == pytest.approx(sum(map(cost_of, given)))
    assert after["cost_saved"] == pytest.approx(sum(map(cost_of, replayed)))
    assert expected > 0


@pytest.mark.parametrize("cached", [(), (f"{CACHED}",)], ids=["IN,OUT", "IN,OUT,CACHED"])
def test_cached_tokens_cost_what_others_do_where_no_price_of_theirs_is_given(
    program: Programs, server: Server, cached: tuple[str, ...]
) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 60}}
    server.answer = lambda request: completion({"a": 1}, usage=usage)
    price = ",".join([f"{IN}", f"{OUT}", *cached])
    program.run(*ASK, "--price", price, "--stats", "stats.json", input=rows([1]))
    stats = stats_of(program)
    assert stats["cost"] == pytest.approx((40 * IN + 60 * (CACHED if cached else IN) + 10 * OUT) / 1e6)
    assert stats["tokens"]["billed"] == {"prompt": 100, "cached_prompt": 60, "completion": 10}


def test_with_a_price_a_budget_is_money(program: Programs, server: Server) -> None:
    usage = {"prompt_tokens": 10_000, "completion_tokens": 10_000}
    server.answer = lambda request: completion({"a": 1}, usage=usage)
    run = program.run(*ASK, *PRICE, "-j", "1", "--budget", "0.35", input=rows(range(9)))
    assert run.status == 3
    assert len(run.lines) == 4  # at 0.1 each
    assert "the --budget of 0.35 is used up" in run.said[0]


def test_a_dry_run_tells_what_prompts_cost_and_what_answers_have_cost_so_far(program: Programs, server: Server) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 1000}
    server.answer = lambda request: completion({"a": 1}, usage=usage)
    said = program.run(*ASK, *PRICE, "-n", input=rows(range(100))).said
    assert said[1:] == [
        "llmfilter: about 700 prompt tokens, at 4 bytes of text each",
        "llmfilter: the prompts will cost about 0.001400",
    ]
    program.run(*ASK, input=rows(range(20)))
    *_, prompts, whole = program.run(*ASK, *PRICE, "-n", input=rows(range(100))).said
    assert prompts == "llmfilter: the prompts will cost about 0.001120"
    assert whole == (
        "llmfilter: the answers will have about 80k tokens, and everything will cost about 0.6411, "
        "judging by 20 answers in the cache"
    )
    assert program.run(*ASK, "-n", input=rows(range(100))).said[-1] == (
        "llmfilter: the answers will have about 80k tokens, judging by 20 answers in the cache"
    )
    judged = program.run(*ASK, *PRICE, "-n", "--budget", "0.001", input=rows(range(100))).said[-1]
    assert "0.001: the prompts alone use it up after about " in judged


def test_asked_by_a_signal_a_run_tells_its_cost(program: Programs, server: Server) -> None:
    import signal

    server.hold(lambda request: request.prompt != "0")
    run = program.start(*ASK, "--price", "1000,1000", "-j", "2")
    run.write(rows(range(5)), lambda: len(run.lines) == 1)
    server.wait_for(3)
    run.signal(signal.SIGUSR1)
    run.read_said()
    assert "1 row, cost 0.0100, " in run.said[0]


def test_stats_tell_what_made_the_answers_and_no_secret(program: Programs, server: Server) -> None:
    import hashlib

    program.write("schema.json", '{"type": "object"}')
    url = server.url + "?api-version=1&api-key=hunter2hunter2"
    environ = {"OPENAI_API_KEY": "sk-abcdefgh1234"}
    typed = ["-u", url, "-H", "X-Team: blue", "-o", "user=sk-abcdefgh1234", "-o", "seed=7", "--schema", "schema.json"]
    program.run(*ASK, *typed, "-s", "Be brief.", *PRICE, "--stats", "stats.json", input=rows([1]), env=environ)
    text = (program.folder / "stats.json").read_text()
    assert "sk-abc" not in text and "hunter2" not in text and "blue" not in text
    run = json.loads(text)["run"]
    assert set(run) == {"version", "model", "url", "prompt", "system", "schema", "options", "started"}
    assert run["url"].startswith(server.url + "/chat/completions?api-version=1")
    assert run["prompt"] == hashlib.sha256(b"{id}").hexdigest()
    assert run["schema"] == hashlib.sha256(b'{"type": "object"}').hexdigest()
    assert run["system"] == hashlib.sha256(b"Be brief.").hexdigest()
    assert run["options"]["option"] == ["user=[masked]", "seed=7"]
    assert run["options"]["header"] == ["X-Team"]
    assert run["started"].endswith("Z")


@pytest.mark.parametrize(
    "args",
    [
        *[("--price", each) for each in ("1", "1,2,3,4", "a,b", "-1,2", "nan,1", "inf,1", "")],
        ("--budget", "0.5"),
    ],
)
def test_what_is_no_price_is_refused(program: Programs, args: tuple[str, ...]) -> None:
    run = program.run(*ASK, *args)
    assert run.status == 2
    assert "price" in run.said[0]
