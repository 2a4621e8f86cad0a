"""Whatever comes with status 200: each row gets an answer or one clean error line; the cache gives the same again."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from program import ASK, Programs
from server import Request, Response, Server, completion
from test_error_bodies import KEY, check_line

ROWS = 5_000
FOLDER = Path(__file__).parents[1] / "unit" / "api" / "bodies"
CASES = [
    case.rpartition("\n>>> ")
    for path in sorted(FOLDER.glob("*.txt"))
    for case in re.split(r"^=== ", path.read_text("utf-8"), flags=re.MULTILINE)[1:]
    if case.split("\n")[1] == "HTTP 200" and "insufficient_quota" not in case  # which ends a run
]
GOLDEN = [given.partition("\n\n")[2].encode() for given, _, _ in CASES]
ANSWERS = [body for body, (_, _, outcome) in zip(GOLDEN, CASES, strict=True) if outcome.startswith("answer")]
ODD: list[Any] = [
    None, True, 0, -1, 1e308, 2**64, 10**30, "", " ", "x", [], {}, [[]], [None], "stop", "length", "{}", '{"n": 1}',
    '{"a": "\\ud800"}', '{"n": 1e400}', '{"n": 1, "n": 2}', "\ud800", "\x1b[31m\x9b\n", "x\u2028y\x85", "[" * 1500,
    '{"a":' * 1100, "</think>", '<think>{"n": 1}</think>', '```json\n{"n": 1}\n```', KEY, f'{{"key": "{KEY}"}}',
]  # fmt: skip
TOKENS = [*b'{}[]",:\\', 0, 0x1B, 0x7F, 0x9B, 0xC2, 0xED, 0xFF, *b"0e-n"]


def nodes(document: Any) -> list[tuple[Any, Any]]:
    """All places in a document, as container and key."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(document, dict | list):
        for key in list(document) if isinstance(document, dict) else range(len(document)):
            pairs += [(document, key), *nodes(document[key])]
    return pairs


def change_node(rng: random.Random, body: bytes) -> bytes:
    """Another value somewhere, the content most of all; or none."""
    try:
        document = json.loads(body)
    except ValueError:
        return body
    places = nodes(document)
    if not places:
        return body
    contents = [place for place in places if place[1] == "content"]
    holder, key = rng.choice(contents if contents and rng.random() < 0.5 else places)
    if rng.random() < 0.1:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD)
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def change_bytes(rng: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(changed) + 1)
        changed[at : at + rng.randrange(3)] = bytes(rng.choices(TOKENS, k=rng.randrange(3)))
    return bytes(changed)


def cut(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def repeat(rng: random.Random, body: bytes) -> bytes:
    start = rng.randrange(len(body) + 1)
    piece = body[start : start + rng.randrange(200)]
    return body[:start] + piece * rng.randrange(2, 5) + body[start:]


CHANGES: list[Callable[[random.Random, bytes], bytes]] = [*[change_node] * 6, change_bytes, cut, repeat]


def make_body(rng: random.Random) -> bytes:
    body = rng.choice(GOLDEN if rng.random() < 0.4 else ANSWERS)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        body = rng.choice(CHANGES)(rng, body)
    return body


def answer(request: Request) -> Response:
    """Depends on the conversation alone."""
    messages = request.json["messages"]
    if messages[0]["content"] == "first":
        return completion({"n": 1})
    return Response(make_body(random.Random(f"{messages[0]['content']} {len(messages)}")))


def test_whatever_is_in_a_completion_each_row_ends_in_one_clean_line(server: Server, program: Programs) -> None:
    server.answer = answer
    ask = [*ASK, "-r", "0", "-j", "64"]
    run = program.start(*ask, env={"OPENAI_API_KEY": KEY})
    run.write(record("first"), lambda: len(run.lines) == 1)  # from here on it is known not to refuse everything
    run.finish(b"".join(map(record, range(ROWS))))
    assert run.status == 1
    answered = [row["id"] for row in run.rows[1:]]
    assert sorted(answered + [line["input"]["id"] for line in run.errors]) == list(range(ROWS))
    assert ROWS / 10 < len(answered) < ROWS * 0.9
    about_ends = [line for line in run.said if "finish_reason" in line]
    assert 0 < len(about_ends) == len(set(about_ends)) <= 3
    (said,) = [line for line in run.said if line not in about_ends]
    assert "the answer has replaced the record's 'label'" in said
    for line in run.stderr.split(b"\n")[:-1]:
        if line.startswith(b"{"):
            check_line(line)
    asked = len(server.requests)
    again = program.run(*ask, env={"OPENAI_API_KEY": KEY}, input=b"".join(map(record, answered)))
    assert again.status == 0 and len(server.requests) == asked
    assert sorted(again.lines) == sorted(run.lines[1:])


def is_paid_answer(body: bytes) -> bool:
    """Whether something was billed that nobody calls broken: no error, some content, an end that a model may have."""
    try:
        document = json.loads(body.decode())
        choice = document["choices"][0]
        content = choice["message"]["content"]
        reason = choice["finish_reason"]
    except (ValueError, LookupError, TypeError):
        return False
    is_whole = not document.get("error") and not choice.get("error") and isinstance(content, str) and content.strip()
    return bool(is_whole and document.get("usage") and (reason is None or reason in ("stop", "length", "x", "{}")))


def test_what_was_billed_is_never_asked_for_again_unchanged(server: Server, program: Programs) -> None:
    replies: dict[bytes, list[bytes]] = {}

    def note(request: Request) -> Response:
        response = answer(request)
        replies.setdefault(request.body, []).append(response.body)
        return response

    server.answer = note
    run = program.start(*ASK, "-r", "1", "-j", "64", env={"OPENAI_API_KEY": KEY})
    run.write(record("first"), lambda: len(run.lines) == 1)
    run.finish(b"".join(map(record, range(1_000))))
    paid = [bodies for bodies in replies.values() if is_paid_answer(bodies[0])]
    assert len(paid) > 100 and any(len(bodies) > 1 for bodies in replies.values())
    assert not [bodies for bodies in paid if len(bodies) > 1]


def record(each: object) -> bytes:
    """With a key that some answers have too."""
    return b'{"id":%b,"label":0}\n' % json.dumps(each).encode()
