"""Signals: the first one finishes what is paid for, the second one stops at once."""

import re
import signal

import pytest
from program import ASK, Programs, rows
from server import Server, echo, error

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_finishes_what_is_in_flight(program: Programs, server: Server, number: signal.Signals) -> None:
    server.hold()
    run = program.start(*ASK, "-j", "2", "--stats", "stats.json")
    run.fill(rows(range(5)), server.thread_id)
    run.signal(number)
    run.read_said()
    assert run.said == [f"llmfilter: {number.name}: finishing 2 requests, which are paid for; once more stops at once"]
    server.release()
    run.finish()
    assert run.status == -number
    assert sorted(row["id"] for row in run.rows) == [0, 1]
    assert sorted(server.prompts) == ["0", "1"]
    assert run.said[1:] == [
        f"llmfilter: ended by {number.name}; stopped at line 3, the first that is left (2 rows answered, 0 failed): "
        "the same command on the same input goes on from there"
    ]
    again = program.run(*ASK, "-k", input=rows(range(5)))
    assert [row["id"] for row in again.rows] == list(range(5))
    assert sorted(server.prompts) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_stops_at_once(program: Programs, server: Server, second: signal.Signals) -> None:
    server.hold(lambda request: request.prompt != "0")
    run = program.start(*ASK, "-j", "2")
    run.write(rows(range(3))).read_lines(1)
    server.wait_for(3)
    run.wait_asleep(server.thread_id)
    run.signal(signal.SIGINT)
    run.read_said()
    run.signal(second)
    run.finish()
    assert run.status == -second
    assert [row["id"] for row in run.rows] == [0]
    assert "stopped at line 2, the first that is left (1 row answered, 0 failed)" in run.said[1]


def test_a_stderr_that_nobody_reads_does_not_keep_the_second_signal(program: Programs) -> None:
    run = program.start(*ASK)
    run.fill(b'{"id":0}\n' + b"no JSON\n" * 1_000_000)
    run.signal(signal.SIGINT)
    run.wait_asleep()
    run.signal(signal.SIGINT)
    run.wait()
    assert run.status == -signal.SIGINT


def test_stopped_at_once_it_names_no_line_behind_one_that_was_not_written(program: Programs, server: Server) -> None:
    run = program.start(*ASK, "-k")
    run.fill(b"".join(b'{"id":%d,"pad":"%b"}\n' % (each, b"p" * 1000) for each in range(5000)), server.thread_id)
    run.signal(signal.SIGINT)  # all is answered, but nobody reads the answers
    run.wait_asleep(server.thread_id)
    run.signal(signal.SIGINT)
    run.finish()
    assert run.status == -signal.SIGINT
    named = re.search(r"stopped at line (\d+)", run.said[-1])
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
        "llmfilter: ended by SIGINT; stopped at line 3, the first that is left (2 rows answered, 0 failed): "
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
    ended = "llmfilter: ended by SIGINT; stopped at line 2, the first that is left (1 row answered, 0 failed)"
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
    assert "stopped at line 1, the first that is left (4 rows answered, 0 failed)" in run.said[-1]


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
