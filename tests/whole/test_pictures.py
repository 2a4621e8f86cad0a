"""--image: the pictures that a record names go along, behind the text; what can't be sent is that row's error."""

import base64
import json
import os
from typing import Any

import pytest
from program import Programs
from server import Request, Response, Server, completion

PICTURES = {
    "a.png": (b"\x89PNG\r\n\x1a\n", "image/png"),
    "b.JPG": (b"\xff\xd8\xff\xe0", "image/jpeg"),
    "c": (b"GIF89a", "image/gif"),
    "d.webp": (b"RIFF\0\0\0\0WEBP", "image/webp"),
}
ASK = ("-p", "look.md", "--image", "file")


@pytest.fixture
def pictures(program: Programs) -> dict[str, str]:
    """Files, and the URL that each becomes; the prompt has no placeholder, as most about pictures."""
    program.write("look.md", "What is this?")
    urls = {}
    for name, (magic, kind) in PICTURES.items():
        content = magic + os.urandom(3000)
        program.write(name, content)
        urls[name] = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return urls


def lines(*files: Any) -> bytes:
    return b"".join(json.dumps({"file": file}).encode() + b"\n" for file in files)


def shown(request: Request) -> list[str]:
    """The pictures in a request, which stand behind its text."""
    text, *pictures = request.prompt
    assert text == {"type": "text", "text": "What is this?"}
    assert all(part["type"] == "image_url" for part in pictures)
    return [part["image_url"]["url"] for part in pictures]


def test_each_kind_of_picture_goes_along_and_the_record_stays(
    program: Programs, server: Server, pictures: dict[str, str]
) -> None:
    run = program.run(*ASK, "-k", "-f", "echo", input=lines(*pictures))
    assert sorted(url for request in server.requests for url in shown(request)) == sorted(pictures.values())
    assert [row["file"] for row in run.rows] == list(pictures)
    assert program.run(*ASK, "-k", "-f", "echo", input=lines(*pictures)).stdout == run.stdout
    assert len(server.requests) == 4, "what was asked is in the cache"
    program.write("c", b"GIF87a and something else")
    program.run(*ASK, input=lines("c"))
    assert len(server.requests) == 5, "another picture under the same name is another request"


def test_urls_and_lists_are_taken_as_they_are(program: Programs, server: Server, pictures: dict[str, str]) -> None:
    urls = ["https://example.org/a.png", "data:image/png;base64,AAAA"]
    program.run(*ASK, input=lines([*urls, "a.png"]))
    assert shown(server.requests[0]) == [*urls, pictures["a.png"]]


def test_what_cannot_be_sent_is_that_row_s_error(program: Programs, server: Server, pictures: dict[str, str]) -> None:
    program.write("text.png", "no picture")
    with open(program.folder / "large.png", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate((20 << 20) + 1)
    os.mkfifo(program.folder / "pipe.png")
    files = [
        "a.png",
        "gone.png",
        "text.png",
        "large.png",
        "pipe.png",
        "/etc/passwd",
        ".",
        "a\0b",
        "",
        7,
        [],
        None,
        ["a.png", 1],
    ]
    run = program.run(*ASK, "-k", input=lines(*files) + b'{"other":1}\n')
    assert run.status == 1 and len(run.lines) == len(server.requests) == 1
    assert [(error["line"], error["error"]) for error in run.errors] == [
        *((line, "input") for line in range(2, 9)),
        *((line, "template") for line in range(9, 15)),
    ]
    said = [error["message"] for error in run.errors]
    assert said[0] == "the picture gone.png: No such file or directory"
    assert said[1] == "the picture text.png: not a PNG, JPEG, GIF or WebP picture"
    assert "20 MiB" in said[2]
    assert "root" not in run.stderr.decode().replace("/root", "")


def test_a_dry_run_shows_it_shortened_and_a_batch_has_it_whole(
    program: Programs, server: Server, pictures: dict[str, str]
) -> None:
    dry = program.run(*ASK, "-n", input=lines("a.png"))
    assert len(dry.lines[0]) < 400 and b"data:image/png;base64,iVBORw0KGg" in dry.lines[0]
    batch = program.run(*ASK, "--to-batch", input=lines("a.png"))
    assert batch.rows[0]["body"]["messages"][0]["content"][1]["image_url"]["url"] == pictures["a.png"]


def test_it_stands_behind_a_system_prompt_and_is_shown_again_when_asked_again(
    program: Programs, server: Server, pictures: dict[str, str]
) -> None:
    def answer(request: Request) -> Response:
        return completion({"a": 1} if len(request.json["messages"]) == 4 else "no JSON")

    server.answer = answer
    assert program.run(*ASK, "-s", "Be brief.", input=lines("a.png")).status == 0
    system, user, *_ = server.requests[1].json["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"][1]["image_url"]["url"] == pictures["a.png"]


def test_without_a_prompt_it_is_refused(program: Programs, server: Server) -> None:
    run = program.run("--image", "file", input=lines("a.png"))
    assert run.status == 2 and "--image" in run.said[0] and not server.requests


def test_memory_is_bounded_whatever_the_pictures_number(program: Programs, server: Server) -> None:
    program.write("look.md", "What is this? {n}")
    program.write("a.png", b"\x89PNG\r\n\x1a\n" + os.urandom(4 << 20))
    server.answer = lambda request: completion({"a": 1})
    server.hold()
    run = program.start(*ASK, "-j", "2")
    run.write(b"".join(b'{"n":%d,"file":"a.png"}\n' % n for n in range(20)))
    server.wait_for(2)
    run.wait_asleep()
    assert run.memory_kb() < 150_000
    server.release()
    assert run.finish().status == 0
