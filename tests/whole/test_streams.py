"""stdin, stdout and stderr of every kind, in every state that a shell can hand them over in."""

import os
import pty
import socket
import sys

import pytest
from program import ASK, Programs, rows
from server import PATIENCE_S, Request, Response, Server, completion

from llmfilter.input.reader import LINE_BYTES_MAX, SHOWN_BYTES

ANSWERS = [{"id": each, "echo": str(each)} for each in range(3)]


# Lines.


def test_an_overlong_line_is_one_error_line_whatever_its_beginning(program: Programs) -> None:
    data = b" " * 2000 + b'{"id":"' + b"x" * LINE_BYTES_MAX + b'"}\n'
    run = program.run(*ASK, input=data + rows(range(1)))
    assert [error["line"] for error in run.errors] == [1]
    assert "64 MiB" in run.errors[0]["message"]
    assert len(run.errors[0]["input"]) <= SHOWN_BYTES
    assert run.rows == ANSWERS[:1]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + rows(range(3)).replace(b"\n", b"\r\n").removesuffix(b"\r\n"),
        b"\n \n\t\r\n" + rows(range(3)).replace(b"\n", b"  \n\n") + b"  ",
    ],
    ids=["BOM, CRLF, no final newline", "empty lines, white space"],
)
def test_lines_may_be_written_in_other_ways(program: Programs, data: bytes) -> None:
    run = program.run(*ASK, "-k", input=data)
    assert (run.status, run.rows, run.stderr) == (0, ANSWERS, b"")


def test_empty_lines_count_in_line_numbers(program: Programs) -> None:
    run = program.run(*ASK, input=b"\n\r\n7\n\n\n8")
    assert [error["line"] for error in run.errors] == [3, 6]


def test_each_of_several_files_may_begin_with_a_mark(program: Programs) -> None:
    for name in ("a", "b"):
        program.write(name, b"\xef\xbb\xbf" + rows(range(1)))
    run = program.run(*ASK, shell='cat a b | "$@"')
    assert (run.status, run.rows, run.stderr) == (0, ANSWERS[:1] * 2, b"")


# What stdin may be.


def test_stdin_may_be_a_file(program: Programs) -> None:
    program.write("data.jsonl", rows(range(3)))
    run = program.run(*ASK, "-k", shell='exec "$@" < data.jsonl')
    assert (run.status, run.rows) == (0, ANSWERS)


@pytest.mark.parametrize("source", ["/dev/null", "empty"])
def test_no_input_is_no_failure(program: Programs, server: Server, source: str) -> None:
    program.write("empty", "")
    run = program.run(*ASK, shell=f'exec "$@" < {source}')
    assert (run.status, run.stdout, run.stderr) == (0, b"", b"")
    assert not server.requests


def test_stdin_and_stdout_may_be_one_socket(program: Programs) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        run = program.start(*ASK, "-k", stdin=theirs.fileno(), stdout=theirs.fileno())
        theirs.close()
        ours.settimeout(PATIENCE_S)
        ours.sendall(rows(range(3)))
        ours.shutdown(socket.SHUT_WR)
        run.finish()
        assert ours.makefile("rb").read().count(b"\n") == 3
    assert run.status == 0


def test_stdin_may_be_a_terminal(program: Programs) -> None:
    ours, theirs = pty.openpty()
    try:
        run = program.start(*ASK, "-k", stdin=theirs)
        os.write(ours, rows(range(2)))
        run.read_lines(2)  # each row is answered as soon as it is typed
        os.write(ours, rows([2]) + b"\x04")  # Ctrl-D
        run.finish()
    finally:
        os.close(ours)
        os.close(theirs)
    assert (run.status, run.rows) == (0, ANSWERS)
    assert run.said == ["llmfilter: reading records from the terminal, one a line; Ctrl-D ends them"]


def test_each_row_is_answered_as_soon_as_it_comes(program: Programs) -> None:
    run = program.start(*ASK)
    for count in range(1, 4):  # as `tail -f` writes them
        run.write(rows([count - 1])).read_lines(count)
    assert run.finish().rows == ANSWERS


def test_stdin_and_stdout_may_be_non_blocking(program: Programs, server: Server) -> None:
    (stdin, our_stdin), (our_stdout, stdout) = os.pipe(), os.pipe()
    os.set_blocking(stdin, False)
    os.set_blocking(stdout, False)
    count = 5000  # fits into a pipe as records, but not as answers
    run = program.start(*ASK, stdin=stdin, stdout=stdout)
    os.close(stdout)
    run.wait_asleep(server.thread_id)  # there is nothing to read yet
    with open(our_stdin, "wb", buffering=0) as pipe:
        pipe.write(rows([1] * count))
    server.wait_for(1)
    run.wait_asleep(server.thread_id)  # the pipe behind it is full
    with open(our_stdout, "rb") as out:
        assert out.read() == b'{"id":1,"echo":"1"}\n' * count
    run.finish()
    assert (run.status, run.stderr) == (0, b"")
    assert not os.get_blocking(stdin)  # it is shared: nobody may change it
    os.close(stdin)


# Closed descriptors, and those that can't be used.


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ('exec "$@" <&-', "stdin is closed: give records, like < data.jsonl"),
        ('exec "$@" >&-', "stdout is closed: give it somewhere to go, like > out.jsonl"),
        ('exec "$@" <&- >&-', "stdin is closed: give records, like < data.jsonl"),
        (
            'exec "$@" < data.jsonl >> data.jsonl',
            "stdin and stdout are the same file, which > empties before it can be read: write to another one",
        ),
        (
            'exec "$@" 0<> data.jsonl 1>&0',
            "stdin and stdout are the same file, which > empties before it can be read: write to another one",
        ),
    ],
)
def test_streams_that_make_no_sense_are_refused(program: Programs, server: Server, shell: str, said: str) -> None:
    program.write("data.jsonl", rows(range(3)))
    run = program.run(*ASK, shell=shell)
    assert (run.status, run.said, run.stdout) == (2, [f"llmfilter: {said}"], b"")
    assert not server.requests
    assert (program.folder / "data.jsonl").read_bytes() == rows(range(3))
    assert not program.cache.exists()


def test_without_stderr_it_works_and_nothing_else_takes_its_place(program: Programs, server: Server) -> None:
    for _ in range(2):
        run = program.run(*ASK, "-k", input=b"no record\n" + rows(range(3)), shell='exec "$@" 2>&-')
        assert (run.status, run.rows) == (1, ANSWERS)
    assert len(server.requests) == 3  # an error line would have spoilt the cache


def test_all_closed_it_ends_with_status_2(program: Programs) -> None:
    run = program.run(*ASK, shell='exec "$@" <&- >&- 2>&-')
    assert run.status == 2


def test_a_stdin_that_cannot_be_read_ends_the_run(program: Programs) -> None:
    run = program.run(*ASK, shell='exec "$@" 0> written')
    assert run.status == 3
    assert run.said == [
        "llmfilter: stdin can't be read: Bad file descriptor; "
        "the first unfinished line is 1 (0 rows answered, 0 failed)"
    ]


def test_a_full_disk_under_stdout_ends_the_run(program: Programs) -> None:
    run = program.run(*ASK, input=rows(range(3)), shell='exec "$@" > /dev/full')
    assert run.status == 3
    assert len(run.said) == 1
    assert "can't be written: No space left on device; the first unfinished line is 1" in run.said[0]


def test_a_full_disk_under_stderr_ends_the_run(program: Programs) -> None:
    run = program.run(*ASK, "-k", input=rows(range(3)) + b"no record\n", shell='exec "$@" 2> /dev/full')
    assert run.status == 3


def test_a_reader_that_has_enough_ends_the_run_quietly(program: Programs, server: Server) -> None:
    server.hold()
    run = program.start(*ASK, "-j", "3")
    run.write(rows(range(3)))
    first = server.wait_for(3)[0]
    run.close_stdout()
    server.release(first)
    server.wait_answered(1)
    run.wait_asleep(server.thread_id)
    run.fill(rows(range(3, 10)), server.thread_id)
    assert len(server.requests) == 3  # nothing more is sent …
    server.release()
    run.finish()
    assert (run.status, run.stderr) == (141, b"")
    again = program.run(*ASK, "-k", input=rows(range(3)))
    assert again.rows == ANSWERS
    assert len(server.requests) == 3  # … and what came back is in the cache


def test_head_ends_the_run_with_status_141(program: Programs) -> None:
    run = program.run(*ASK, input=rows(range(300)), shell='{ "$@"; echo $? >&2; } | head -1')
    assert len(run.rows) == 1
    assert run.stderr == b"141\n"


def test_a_reader_of_the_errors_that_has_enough_ends_the_run_in_the_same_way(program: Programs) -> None:
    data = b"no record\n" + rows(range(300))
    run = program.run(*ASK, input=data, shell='{ "$@" 2>&1 >out; echo $? >&2; } | true')
    assert run.stderr == b"141\n"


# Short of threads: one plain line.


def test_where_no_thread_can_be_started_one_line_says_so(program: Programs) -> None:
    nobody = 54321
    program.write(
        "launch.py",
        "import os, resource, sys, uvloop\n"
        "import llmfilter.cli, llmfilter.job, llmfilter.pipeline, llmfilter.session\n"
        "import llmfilter.output.error_lines, llmfilter.output.progress\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
        f"os.geteuid() or os.setuid({nobody})\n"  # root may have any number
        "sys.exit(llmfilter.cli.main())\n",
    )
    record = b'{"messages":[{"role":"user","content":"hi"}]}\n'
    run = program.run("--no-cache", "-n", input=record, command=[sys.executable, "launch.py"])
    assert (run.status, run.stdout) == (2, b"")
    assert run.said == ["llmfilter: no thread can be started: raise ulimit -u or -v, or end other programs"]


# Order.


def test_rows_go_out_as_they_are_answered(program: Programs, server: Server) -> None:
    server.hold()
    run = program.start(*ASK, "-j", "8")
    run.write(rows(range(8)))
    for count, request in enumerate(sorted(server.wait_for(8), key=hash), start=1):
        server.release(request)
        run.read_lines(count)
        assert run.rows[-1]["echo"] == request.prompt
    assert run.finish().status == 0


def test_with_k_rows_go_out_in_input_order(program: Programs, server: Server) -> None:
    def answer(request: Request) -> Response:
        return completion("no JSON" if request.prompt == "5" else {"label": request.prompt})

    server.answer = answer
    server.hold()
    run = program.start(*ASK, "-k", "-j", "8", "--reask", "0")
    run.write(b"\n" + rows(range(4)) + b"\nno record\n" + rows(range(4, 8)))
    for count, request in enumerate(sorted(server.wait_for(8), key=hash), start=1):
        server.release(request)
        server.wait_answered(count)
    run.read_lines(7)  # though there may be more input
    run.finish()
    assert [row["id"] for row in run.rows] == [0, 1, 2, 3, 4, 6, 7]
    assert [error["line"] for error in run.errors] == [7, 9]


def test_with_k_a_full_window_behind_rows_that_share_an_answer_comes_out(program: Programs, server: Server) -> None:
    server.hold(lambda request: request.prompt == "same")
    run = program.start(*ASK, "-k", "-j", "4")
    behind = b"".join(b'{"id":%d,"pad":"%b"}\n' % (each, b"p" * 100_000) for each in range(40))
    run.fill(rows(["same"] * 3) + behind, server.thread_id)
    server.release()
    run.finish(run.rest)
    assert [row["id"] for row in run.rows] == ["same"] * 3 + list(range(40))


def test_error_lines_and_answers_in_one_pipe_stay_whole(program: Programs, server: Server) -> None:
    program.run(*ASK, input=rows([1]))
    run = program.start(*ASK, shell='exec "$@" 2>&1')
    run.fill((b'{"name":"%b"}\n' % (b"n" * 999) + rows([1])) * 2000, server.thread_id)  # until the pipe is full
    run.finish(run.rest)
    assert {line[:8] for line in run.lines} == {b'{"line":', b'{"id":1,'}
    assert len(run.lines) == 4000
