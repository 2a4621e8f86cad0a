"""Signals: the first one finishes what is paid for, a later one stops at once."""

import os
import pty
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from program import ASK, Programs, rows
from server import PATIENCE_S, Server, completion, echo, error

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_finishes_what_is_in_flight(program: Programs, server: Server, number: signal.Signals) -> None:
    server.hold()
    run = program.start(*ASK, "-j", "2", "--stats", "stats.json")
    run.fill(rows(range(5)), server.thread_id)
    run.signal(number)
    run.read_said()
    assert run.said == [
        f"llmfilter: {number.name}: finishing 2 requests, already paid for; a second signal stops at once"
    ]
    server.release()
    run.finish()
    assert run.status == -number
    assert sorted(row["id"] for row in run.rows) == [0, 1]
    assert sorted(server.prompts) == ["0", "1"]
    assert run.said[1:] == [
        f"llmfilter: ended by {number.name}; the first unfinished line is 3 (2 rows answered, 0 failed); "
        "the same command on the same input goes on from there"
    ]
    again = program.run(*ASK, "-k", input=rows(range(5)))
    assert [row["id"] for row in again.rows] == list(range(5))
    assert sorted(server.prompts) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_later_signal_stops_at_once(program: Programs, server: Server, second: signal.Signals) -> None:
    server.hold(lambda request: request.prompt != "0")
    run = program.start(*ASK, "-j", "2")
    run.write(rows(range(3))).read_lines(1)
    server.wait_for(3)
    run.wait_asleep(server.thread_id)
    run.signal(signal.SIGINT)
    run.read_said()
    run.stop_at_once(second).finish()
    assert run.status == -second
    assert [row["id"] for row in run.rows] == [0]
    assert "the first unfinished line is 2 (1 row answered, 0 failed)" in run.said[1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_at_the_same_time_is_the_same_event(
    program: Programs, server: Server, number: signal.Signals
) -> None:
    """As a terminal that closes sends SIGHUP, GNU timeout SIGTERM, and `kill PID; kill -- -PGID`."""
    server.hold()
    run = program.start(*ASK, "-j", "2")
    run.fill(rows(range(2)), server.thread_id)
    run.signal(number)
    run.read_said()
    run.signal(number)
    run.wait_asleep(server.thread_id)
    server.release()
    run.finish()
    assert run.status == -number
    assert sorted(row["id"] for row in run.rows) == [0, 1]


def test_gnu_timeout_that_signals_its_child_and_then_its_group_costs_no_answer(
    program: Programs, server: Server
) -> None:
    server.hold()
    run = program.start(*ASK, "-j", "2", shell='exec timeout 600 "$@"')
    run.write(rows(range(2)))
    server.wait_for(2)
    run.signal(signal.SIGTERM)
    run.read_said()
    server.release()
    run.finish()
    assert sorted(row["id"] for row in run.rows) == [0, 1]


def test_kill_of_the_process_and_of_its_group_is_one_event(program: Programs, server: Server) -> None:
    server.hold()
    run = program.start(*ASK, "-j", "2")
    run.fill(rows(range(2)), server.thread_id)
    os.kill(run.pid, signal.SIGTERM)
    os.killpg(run.pid, signal.SIGTERM)
    run.read_said()
    server.release()
    run.finish()
    assert sorted(row["id"] for row in run.rows) == [0, 1]


def test_a_terminal_that_closes_costs_no_answer(program: Programs, server: Server) -> None:
    """The kernel sends SIGHUP to the foreground, and bash once more to its job."""
    server.hold()
    program.write("rows.jsonl", rows(range(2)))
    alive, held = os.pipe()
    os.set_inheritable(held, True)
    shell, terminal = pty.fork()
    if not shell:
        os.chdir(program.folder)
        os.execve(shutil.which("bash") or "bash", ["bash", "--norc", "-i"], program.environ)
    os.close(held)
    command = shlex.join([*program.command, *ASK, "-j", "2"])
    os.write(terminal, f"{command} < rows.jsonl > out.jsonl 2> errors.jsonl\n".encode())
    server.wait_for(2)
    os.close(terminal)
    os.waitpid(shell, 0)
    with selectors.DefaultSelector() as selector:
        selector.register(alive, selectors.EVENT_READ)
        errors = program.folder / "errors.jsonl"
        deadline = time.monotonic() + PATIENCE_S
        while b"finishing 2 requests" not in errors.read_bytes():
            assert time.monotonic() < deadline
            assert not selector.select(0.01), "the program goes on for what is paid for"
        server.release()
        assert selector.select(PATIENCE_S), "it ends"
    os.close(alive)
    assert len((program.folder / "out.jsonl").read_bytes().splitlines()) == 2
    assert program.run(*ASK, input=rows(range(2))).status == 0
    assert len(server.requests) == 2


def test_a_second_sighup_never_ends_at_once(program: Programs, server: Server) -> None:
    server.hold()
    launch = program.write(
        "launch.py",
        "import sys, llmfilter.cli, llmfilter.signals\n"
        "llmfilter.signals.SAME_EVENT_S = 0.0\nsys.exit(llmfilter.cli.main())",
    )
    run = program.start(*ASK, "-j", "2", command=[sys.executable, launch])
    run.fill(rows(range(2)), server.thread_id)
    for _ in range(3):
        run.signal(signal.SIGHUP)
        run.wait_asleep(server.thread_id)
    server.release()
    run.finish()
    assert run.status == -signal.SIGHUP
    assert sorted(row["id"] for row in run.rows) == [0, 1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_another_stop_is_what_the_program_dies_of(
    program: Programs, server: Server, number: signal.Signals
) -> None:
    server.answer = lambda request: error(401, "who are you?") if request.prompt == "1" else echo(request)
    server.hold(lambda request: request.prompt == "0")
    run = program.start(*ASK, "-j", "2")
    run.fill(rows(range(2)), server.thread_id)
    run.signal(number)
    run.wait_asleep(server.thread_id)
    server.release()
    run.finish()
    assert run.status == -number
    assert [row["id"] for row in run.rows] == [0]
    assert "refuses all requests" in run.said[-1]


def test_a_stderr_that_nobody_reads_does_not_keep_the_second_signal(program: Programs) -> None:
    run = program.start(*ASK)
    run.fill(b'{"id":0}\n' + b"no JSON\n" * 1_000_000)
    run.signal(signal.SIGINT)
    run.wait_asleep()
    run.stop_at_once(signal.SIGINT)
    assert run.status == -signal.SIGINT


def test_stopped_at_once_it_names_no_line_behind_one_that_was_not_written(program: Programs, server: Server) -> None:
    run = program.start(*ASK, "-k")
    run.fill(b"".join(b'{"id":%d,"pad":"%b"}\n' % (each, b"p" * 1000) for each in range(5000)), server.thread_id)
    run.signal(signal.SIGINT)  # all is answered, but nobody reads the answers
    run.wait_asleep(server.thread_id)
    run.stop_at_once(signal.SIGINT).finish()
    assert run.status == -signal.SIGINT
    named = re.search(r"the first unfinished line is (\d+)", run.said[-1])
    assert named
    assert int(named[1]) <= len(run.lines) + 1


def test_a_signal_abandons_what_waits_to_be_sent_again(program: Programs, server: Server) -> None:
    limit = error(429, "slow down", {"Retry-After": "600"})
    server.answer = lambda request: limit if request.prompt == "2" else echo(request)
    server.hold(lambda request: request.prompt != "2")
    run = program.start(*ASK, "-j", "3")
    run.fill(rows(range(3)), server.thread_id)
    run.signal(signal.SIGINT)
    run.read_said()
    assert "finishing 2 requests" in run.said[0]
    server.release()
    run.finish()
    assert run.status == -signal.SIGINT
    assert sorted(row["id"] for row in run.rows) == [0, 1]
    assert run.said[1:] == [
        "llmfilter: ended by SIGINT; the first unfinished line is 3 (2 rows answered, 0 failed); "
        "the same command on the same input goes on from there"
    ]


def test_a_signal_ends_a_run_that_waits_for_input(program: Programs, server: Server) -> None:
    run = program.start(*ASK)
    run.write(rows([1])).read_lines(1)
    run.wait_asleep(server.thread_id)
    run.signal(signal.SIGINT)
    run.read_said()  # stdin is still open
    run.finish()
    assert run.status == -signal.SIGINT
    ended = "llmfilter: ended by SIGINT; the first unfinished line is 2 (1 row answered, 0 failed)"
    assert run.said[-1].startswith(ended)


def test_after_a_signal_a_broken_pipe_is_no_news(program: Programs, server: Server) -> None:
    server.hold()
    run = program.start(*ASK)
    run.fill(rows(range(2)), server.thread_id)
    run.signal(signal.SIGINT)
    run.read_said()
    run.close_stdout()  # the neighbours in the pipe got the same Ctrl-C
    server.release()
    run.finish()
    assert run.status == -signal.SIGINT
    assert program.run(*ASK, input=rows(range(2))).status == 0
    assert len(server.requests) == 2


def test_with_a_row_held_back_by_k_a_signal_still_prints_what_is_paid_for(program: Programs, server: Server) -> None:
    limit = error(429, "slow down", {"Retry-After": "600"})
    server.answer = lambda request: limit if request.prompt == "0" else echo(request)
    run = program.start(*ASK, "-k")
    run.fill(rows(range(5)), server.thread_id)
    assert not run.stdout
    run.signal(signal.SIGINT)
    run.finish()
    assert [row["id"] for row in run.rows] == [1, 2, 3, 4]
    assert run.status == -signal.SIGINT
    assert "the first unfinished line is 1 (4 rows answered, 0 failed)" in run.said[-1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    program: Programs, server: Server, number: signal.Signals
) -> None:
    server.hold()
    name = number.name.removeprefix("SIG")
    run = program.start(*ASK, shell=f'trap "" {name}; exec "$@"')
    run.fill(rows(range(3)), server.thread_id)
    run.signal(number)
    run.wait_asleep(server.thread_id)
    server.release()
    run.finish()
    assert (run.status, len(run.rows), run.said) == (0, 3, [])


# Prints what $? is behind each turn; ended by the signal, no turn follows and nothing is printed.
LOOP = 'for turn in a b c; do "$@" < in.jsonl > out.$turn; echo $turn $?; done'


def test_ctrl_c_on_a_terminal_ends_a_shells_loop(program: Programs, server: Server) -> None:
    program.write("in.jsonl", rows(range(3)))
    server.hold()
    terminal, end = pty.openpty()
    bash = ["setsid", "--ctty", "bash", "-c", LOOP, "bash", *program.command, *ASK, "-j", "2"]
    loop = subprocess.Popen(bash, cwd=program.folder, env=program.environ, stdin=end, stdout=end, stderr=end)
    os.close(end)
    server.wait_for(2)
    os.write(terminal, b"\x03")  # the terminal sends SIGINT to all that run in it
    shown = read_until(terminal, b"finishing 2 requests")
    server.release()
    shown += read_until(terminal, None)
    os.close(terminal)
    assert loop.wait(PATIENCE_S) == -signal.SIGINT
    assert b"ended by SIGINT" in shown
    assert not re.search(rb"[abc] [0-9]+\r", shown)
    assert (program.folder / "out.a").read_bytes().count(b"\n") == 2
    assert not (program.folder / "out.b").exists()


def read_until(terminal: int, wanted: bytes | None) -> bytes:
    """What a terminal shows until it has shown this; None: until its end."""
    shown = b""
    while wanted is None or wanted not in shown:
        try:
            shown += os.read(terminal, 1 << 16)
        except OSError:  # as Linux tells that nobody has it open any more
            assert wanted is None, shown
            break
    return shown


@pytest.mark.parametrize("number", SIGNALS)
def test_a_shell_sees_128_and_the_signals_number(program: Programs, server: Server, number: signal.Signals) -> None:
    server.hold()
    named = ["sh", "-c", 'echo $$ > pid; exec "$@"', "sh", *program.command]
    run = program.start(*ASK, shell='"$@"; echo $?', command=named)
    run.write(rows([1]))
    server.wait_for(1)
    os.kill(int((program.folder / "pid").read_text()), number)
    run.read_said()
    server.release()
    run.finish()
    assert run.lines[-1] == b"%d" % (128 + number)


def test_with_k_a_stop_does_not_wait_for_a_line_that_never_comes(program: Programs, server: Server) -> None:
    """The first row backs off while those behind it hold more than what may wait for its line."""
    later = error(503, "no room", {"Retry-After": "300"})
    server.answer = lambda request: later if request.prompt == "0" else completion({"fat": "x" * 300_000})
    run = program.start(*ASK, "-k", "-j", "8").write(rows(range(8)))
    server.wait_answered(8)
    run.signal(signal.SIGINT)
    run.finish()
    assert run.status == -signal.SIGINT
    assert [row["id"] for row in run.rows] == list(range(1, 8))
    assert "the first unfinished line is 1" in run.said[-1]
