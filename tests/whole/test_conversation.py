"""What is asked again, how often, and with what."""

import json
import signal
from typing import Any

import pytest
from program import ASK, Programs, rows
from server import Request, Response, Server, completion, error

BAD = completion("no JSON")
CUT = completion('{"a": ', finish_reason="length")
FAULT = completion("")  # no answer at all
GOOD = completion({"a": 1})
NO = error(400, "no")
BUSY = error(429, "slow down", {"retry-after-ms": "1"})


def play(server: Server, scripts: dict[str, list[Response]]) -> dict[str, list[Request]]:
    """Answer the requests of each row, which has its `id` in the first message, by a script; return them."""
    asked: dict[str, list[Request]] = {name: [] for name in scripts}

    def answer(request: Request) -> Response:
        name = request.json["messages"][0]["content"]
        asked[name].append(request)
        return scripts[name][len(asked[name]) - 1]

    server.answer = answer
    return asked


def test_faults_use_up_attempts_unusable_answers_use_up_reasks_and_each_question_starts_anew(
    program: Programs, server: Server
) -> None:
    scripts = {
        "good": [GOOD],
        "asked again": [BAD, GOOD],
        "asked again, in vain": [BAD, BAD],
        "sent again": [FAULT, GOOD],
        "sent again, in vain": [FAULT, FAULT],
        "sent again on either side": [FAULT, BAD, FAULT, GOOD],
        "a fault too many behind": [BAD, FAULT, FAULT],
        "cut off": [CUT],
        "refused for good": [NO],
        "no room": [BUSY, BUSY, BUSY, GOOD],
        "no room between": [FAULT, BUSY, BUSY, FAULT],
        "asked again and refused": [BAD, NO],
    }
    asked = play(server, scripts)
    run = program.run(*ASK, "-r", "1", "--reask", "1", "--stats", "stats.json", input=rows([*scripts]))
    assert {name: len(requests) for name, requests in asked.items()} == {
        name: len(script) for name, script in scripts.items()
    }
    errors = {line["input"]["id"]: (line["error"], line["attempts"]) for line in run.errors}
    assert errors == {
        "asked again, in vain": ("unparsable", 2),
        "sent again, in vain": ("server", 2),
        "a fault too many behind": ("unparsable", 3),
        "cut off": ("truncated", 1),
        "refused for good": ("http", 1),
        "no room between": ("server", 4),
        "asked again and refused": ("unparsable", 2),
    }
    assert {row["id"] for row in run.rows} == scripts.keys() - errors.keys()
    stats = json.loads((program.folder / "stats.json").read_text())
    assert (stats["requests"], stats["reasked"]) == (sum(map(len, scripts.values())), 5)


def messages(request: Request) -> list[tuple[Any, Any]]:
    return [(message["role"], message["content"]) for message in request.json["messages"]]


def test_the_model_is_shown_its_last_answer_and_all_its_faults_behind_the_first_question(
    program: Programs, server: Server
) -> None:
    asked = play(server, {"q": [completion('["é\\"]'), completion({"a": 0}), completion({"b": 1, "a": 2})]})
    run = program.run(*ASK, "--reask", "2", "-f", "a,b", input=rows(["q"]))
    assert run.rows == [{"id": "q", "a": 2, "b": 1}]
    first, second, third = map(messages, asked["q"])
    assert first == [("user", "q")]
    assert second[:2] == [*first, ("assistant", '["é\\"]')] and third[:2] == [*first, ("assistant", '{"a":0}')]
    assert [role for role, _ in second] == [role for role, _ in third] == ["user", "assistant", "user"]
    assert all(word in third[2][1] for word in ("can't be used", "b", "one JSON object"))
    first_body, second_body = (json.loads(request.body) for request in asked["q"][:2])
    assert {**second_body, "messages": 0} == {**first_body, "messages": 0}


def test_an_answer_that_was_won_by_asking_again_is_replayed_like_any_other(program: Programs, server: Server) -> None:
    asked = play(server, {"q": [BAD, GOOD]})
    runs = [program.run(*ASK, input=rows(["q"])) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout == b'{"id":"q","a":1}\n'
    assert len(asked["q"]) == 2


def test_who_waits_before_another_attempt_lets_others_have_the_slot(program: Programs, server: Server) -> None:
    play(server, {"first": [FAULT, GOOD], "second": [GOOD]})
    server.hold(lambda request: request.prompt == "second")
    run = program.start(*ASK, "-j", "1").write(rows(["first", "second"]))
    server.wait_for(2)
    server.release()
    assert run.finish().status == 0
    assert server.prompts == ["first", "second", "first"]


def test_once_the_run_stops_nothing_is_asked_again(program: Programs, server: Server) -> None:
    play(server, {"q": [BAD]})
    server.hold()
    run = program.start(*ASK).write(rows(["q"]))
    server.wait_for(1)
    run.signal(signal.SIGINT)
    run.read_said()
    server.release()
    run.finish()
    assert [(line["error"], line["raw"], line["attempts"]) for line in run.errors] == [("unparsable", "no JSON", 1)]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ((), "shorten the prompt, or give -o max_tokens=N"),
        (("-o", "max_tokens=5"), "cut off: raise -o max_tokens=N"),
        (("-o", "max_completion_tokens={id}"), "cut off: raise -o max_tokens=N"),
    ],
)
def test_an_answer_that_was_cut_off_says_what_can_be_done(
    options: tuple[str, ...], way: str, program: Programs, server: Server
) -> None:
    server.answer = lambda request: CUT
    run = program.run(*ASK, *options, input=rows([1]))
    (line,) = run.errors
    assert line["error"] == "truncated" and line["message"].endswith(way)


@pytest.mark.parametrize("content", ['[{"a": 1}]', "```json\n[1]\n```", [{"a": 1}]])
@pytest.mark.parametrize("options", [(), ("-f", "a")])
def test_an_answer_that_is_a_list_names_the_way_out(
    content: Any, options: tuple[str, ...], program: Programs, server: Server
) -> None:
    body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
    server.answer = lambda request: Response(json.dumps(body).encode())
    run = program.run(*ASK, *options, "--reask", "0", input=rows([1]))
    (line,) = run.errors
    assert line["error"] == "unparsable" and '{"items": [...]}' in line["message"]
    assert len(server.requests) == 1


def test_a_withheld_answer_without_a_message_is_asked_for_once(program: Programs, server: Server) -> None:
    withheld = {"choices": [{"finish_reason": "PROHIBITED_CONTENT", "message": None}], "usage": {"total_tokens": 9}}
    server.answer = lambda request: Response(json.dumps(withheld).encode())
    run = program.run(*ASK, input=rows([1]))
    assert [line["error"] for line in run.errors] == ["filtered"]
    assert len(server.requests) == 1


def test_extra_body_is_no_field(program: Programs, server: Server) -> None:
    run = program.run(*ASK, "-o", 'extra_body={"top_k": 5}', input=rows([1]))
    assert (run.status, len(server.requests)) == (2, 0)
    assert "give its fields themselves, like -o top_k=5" in run.said[0]
