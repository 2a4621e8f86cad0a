"""Whatever a server says in an error: each row ends in one line that is printable, bounded and without a secret."""

import json
import random
from collections.abc import Callable
from typing import Any

from program import ASK, Programs, rows
from server import Request, Response, Server, completion

ROWS = 5_000
KEY = "sk-fuzz-0123456789-abcdefghij"
# Of what waits for room or ends the run there are tests elsewhere; of 204 and 304 no body is read.
ELSEWHERE = {204, 304, 401, 402, 407, 429, 498, 503, 529}
STATUSES = [200, *(each for each in range(201, 600) if each not in ELSEWHERE), 999]
LINE_BYTES_MAX = 10_000
SHAPES: list[Callable[[Any], Any]] = [
    lambda words: {"error": {"message": words, "type": words, "code": words, "param": words}},
    lambda words: {"error": words},
    lambda words: [{"error": {"message": words}}],
    lambda words: {"object": "error", "message": words, "type": "x", "code": 400},
    lambda words: {"detail": [{"loc": ["body", words], "msg": words}, words]},
    lambda words: {"detail": words},
    lambda words: {"error": {"message": words, "innererror": {"code": words}}, "choices": None},
    lambda words: {"choices": words},
    lambda words: {"choices": [{"message": words, "finish_reason": words}], "usage": words},
    lambda words: {"choices": [{"message": {"content": words, "refusal": words}, "finish_reason": "stop"}]},
    lambda words: {words if isinstance(words, str) else "error": words},
    lambda words: words,
]


def make_words(rng: random.Random) -> Any:
    """Words that no server should send, mostly text."""
    pieces = [
        "busy ",
        "\ud800",
        "\udfff\ud83d",
        "\x1b[31m\x1b]0;title\x07",
        "\r\nllmfilter: forged\n",
        "\x00\x7f\x85\x9b\u2028",
        KEY,
        f"Bearer {KEY}",
        KEY[:12],
        "é😀",
        "<html><body><h1>Bad</h1>",
        '{"error": ',
        " " * 600,
        "x" * 490,
    ]
    if rng.random() < 0.8:
        return "".join(rng.choices(pieces, k=rng.randrange(6)))
    odd: list[Any] = [None, True, -1, 1e308, 10**30, [], {}, [[]], [None, {"msg": KEY}], {"message": [KEY]}, [1] * 99]
    return rng.choice(odd)


def make_body(rng: random.Random) -> bytes:
    document = rng.choice(SHAPES)(make_words(rng))
    text = json.dumps(document, ensure_ascii=rng.random() < 0.7).replace("sk-", rng.choice(["sk-", "sk-", "s\\u006b-"]))
    body = text.encode("utf-8", "surrogatepass")
    match rng.randrange(12):
        case 0:
            return body[: rng.randrange(len(body) + 1)]
        case 1:
            return body.replace(b" ", b"\x1b", 1) + KEY.encode()
        case 2:
            return b"<!DOCTYPE html><h1>" + body + b"</h1>"
        case 3:
            return rng.randbytes(rng.randrange(200))
        case 4:
            return body + b" " * rng.choice([70_000, 200_000])
        case 5:
            return KEY.encode() * 40
    return body


def make_reply(rng: random.Random) -> Response:
    """A status of any sort, 200 most often of all, and such a body."""
    headers = {"Content-Type": rng.choice(["application/json", "text/html", "x"])}
    if rng.random() < 0.3:
        headers["Location"] = f"http://elsewhere/?key={KEY}"
    return Response(make_body(rng), rng.choice(STATUSES) if rng.random() < 0.7 else 200, headers)


def test_whatever_a_server_says_each_row_ends_in_one_clean_line(server: Server, program: Programs) -> None:
    def answer(request: Request) -> Response:
        if request.prompt == "first":
            return completion({"n": 1})
        return make_reply(random.Random(request.prompt))

    server.answer = answer
    environ = {"OPENAI_API_KEY": KEY}
    run = program.start(*ASK, "-r", "0", "--reask", "0", "-j", "64", "--no-cache", env=environ)
    run.write(rows(["first"]), lambda: len(run.lines) == 1)  # from here on it is known not to refuse everything
    run.finish(rows(range(ROWS)))
    assert run.status == 1 and run.said == []
    ended = [row["id"] for row in run.rows[1:]] + [line["input"]["id"] for line in run.errors]
    assert sorted(ended) == list(range(ROWS))
    assert len(run.errors) > ROWS * 0.9
    for line in run.stderr.split(b"\n")[:-1]:
        check_line(line)


def check_line(line: bytes) -> None:
    assert len(line) <= LINE_BYTES_MAX
    message = json.loads(line)["message"]
    assert message.isprintable() or "\ufffd" in message, line
    assert not any(byte < 0x20 or byte == 0x7F for byte in line), line
    assert not any(0x80 <= ord(char) < 0xA0 for char in line.decode()), line
    assert KEY not in line.decode() and KEY not in json.dumps(json.loads(line)), line
