"""What a user sees on a terminal: the bar, error lines above it, the summary; and what a file gets instead."""

import asyncio
import json
import os
import pty
import re
import select
import shlex
import signal
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Self

import pytest
from program import ASK, Program, Programs, rows
from server import PATIENCE_S, Request, Response, Server, completion, echo, error

ROWS_HIGH = 24
# What a program may write to move about and to paint: ECMA-48's control sequences.
CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")
COLOUR = re.compile(r"\x1b\[[0-9;]*[34][0-9][0-9;]*m")
ON_TERMINAL = 'exec "$@" 2>"$TERMINAL"'
BAR = "in flight"


class Terminal:
    """A terminal of some width: `raw` is all that was written to it, `screen` what a user sees in the end."""

    def __init__(self, columns: int = 80) -> None:
        self._ours, self._theirs = pty.openpty()
        self.path = os.ttyname(self._theirs)
        self.raw = ""
        self._changed = threading.Condition()
        self._end_seen, self._end = os.pipe()
        self._thread = threading.Thread(target=self._read)
        self.resize(columns)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._end)
        self._thread.join()
        for fd in (self._end_seen, self._theirs, self._ours):  # who still has it open is hung up
            os.close(fd)

    def resize(self, columns: int) -> None:
        termios.tcsetwinsize(self._theirs, (ROWS_HIGH, columns))
        self.columns = columns

    def stop(self) -> None:
        """As Ctrl-S does: what writes to it waits."""
        termios.tcflow(self._theirs, termios.TCOOFF)

    def go_on(self) -> None:
        """As Ctrl-Q does."""
        termios.tcflow(self._theirs, termios.TCOON)

    def type(self, keys: str) -> None:
        """As somebody at its keyboard does."""
        os.write(self._ours, keys.encode())

    def wait(self, words: str) -> Self:
        """Returns once the words are on the screen."""
        return self.wait_until(lambda screen: any(words in line for line in screen))

    def wait_until(self, is_reached: Callable[[list[str]], bool]) -> Self:
        """Returns once the screen is so."""
        with self._changed:
            reached = self._changed.wait_for(lambda: is_reached(self.screen), PATIENCE_S)
        assert reached, f"waited {PATIENCE_S:g} s; on the screen are {self.screen}"
        return self

    @property
    def screen(self) -> list[str]:
        """The lines that are to be seen; one that is wider than the terminal counts as one."""
        return ["".join(line) for line in self._draw() if "".join(line).strip()]

    @property
    def frames(self) -> list[str]:
        """Everything that was ever drawn on one line, in order."""
        return [text for text in re.split(r"[\r\n]+", CONTROL.sub("", self.raw)) if text.strip()]

    def _read(self) -> None:
        data = b""
        while self._end_seen not in select.select([self._ours, self._end_seen], [], [])[0]:
            data += os.read(self._ours, 1 << 16)
            with self._changed:
                self.raw = re.sub("\x1b[=>]", "", data.decode(errors="replace"))  # less sets keys
                self._changed.notify_all()

    def _draw(self) -> list[list[str]]:
        """The lines of the screen, which never scrolls here."""
        lines: list[list[str]] = [[]]
        row = column = 0
        place = 0
        while place < len(self.raw):
            control = CONTROL.match(self.raw, place)
            if control:
                place = control.end()
                count = int(control[1]) if control[1].isdigit() else 1
                if control[2] == "A":
                    row -= count
                elif control[2] == "K":
                    lines[row] = []
                else:
                    assert control[2] in "mhl", f"{control[0]!r} is not known here"
                continue
            character = self.raw[place]
            place += 1
            if character == "\r":
                column = 0
            elif character == "\n":
                row += 1
                lines += [[] for _ in range(row + 1 - len(lines))]
            else:
                assert character.isprintable(), f"{character!r} on the screen"
                lines[row] += [" "] * (column + 1 - len(lines[row]))
                lines[row][column] = character
                column += 1
        return lines


@pytest.fixture
def open_terminal() -> Iterator[Callable[[int], Terminal]]:
    """Opens terminals of the width that is asked for."""
    with ExitStack() as stack:

        def open_one(columns: int = 80) -> Terminal:
            return stack.enter_context(Terminal(columns))

        yield open_one


@pytest.fixture
def program(open_terminal: Callable[[], Terminal], program: Programs) -> Programs:
    """The programs end before the terminals do."""
    return program


@pytest.fixture
def terminal(open_terminal: Callable[[], Terminal]) -> Terminal:
    """A terminal of 80 columns."""
    return open_terminal()


def start(program: Programs, terminal: Terminal, *args: str, shell: str = ON_TERMINAL, **environ: str) -> Program:
    """Starts the program with its stderr on the terminal; stdin and stdout are pipes."""
    environ = {"TERM": "xterm-256color", "TERMINAL": terminal.path, **environ}
    return program.start(*ASK, *args, shell=shell, env=environ)


def outlast_the_start(program: Programs, open_terminal: Callable[[], Terminal], server: Server) -> None:
    """Returns when a program that shows a bar has shown it, and so any started before would have."""
    terminal = open_terminal()
    witness = start(program, terminal, "--no-cache")
    witness.write(rows(["witness"]))
    terminal.wait(BAR)
    witness.kill()


INTERRUPT, SUSPEND = "\x03", "\x1a"  # Ctrl-C, Ctrl-Z
TO_FILES = "< data.jsonl > out.jsonl 2> errors.jsonl"


def open_shell(program: Programs, terminal: Terminal, *args: str) -> Terminal:
    """Starts an interactive shell on the terminal, which knows `ask`; returns the terminal."""
    program.write("rc", 'PS1="$ "\nPATH=.:$PATH\n')
    command = shlex.join([*program.command, *ASK, *args])
    program.write("ask", f'#!/bin/sh\nexec {command} "$@"\n')
    (program.folder / "ask").chmod(0o755)
    bash = ["bash", "--noediting", "--rcfile", "rc", "-i"]
    environ = {"TERM": "xterm-256color", "TERMINAL": terminal.path}
    program.start(shell='exec setsid -c -w "$@" <"$TERMINAL" >"$TERMINAL" 2>&1', command=bash, env=environ)
    return terminal.wait("$ ")


# The bar


@pytest.mark.parametrize("columns", [80, 120])
def test_a_bar_shows_how_far_the_run_is_on_one_line_of_the_terminal(
    program: Programs, server: Server, open_terminal: Callable[[int], Terminal], columns: int
) -> None:
    terminal = open_terminal(columns)
    server.hold(lambda request: int(request.prompt) >= 25)
    program.write("data.jsonl", rows(range(100)))
    run = start(program, terminal, "-j", "4", shell=f"{ON_TERMINAL} < data.jsonl")
    run.read_lines(25)
    terminal.wait("25 rows")
    assert len(terminal.screen) == 1
    bar = terminal.screen[0]
    assert len(bar) < columns
    for words in ("25%", " left", "rows/s", "4 in flight"):
        assert words in bar
    assert ("tokens" in bar) is (columns == 120), "what is less important gives way"
    server.release()
    run.finish()
    assert BAR not in "".join(terminal.screen)


def test_without_a_file_the_bar_counts(program: Programs, server: Server, terminal: Terminal) -> None:
    server.hold(lambda request: request.prompt != "0")
    run = start(program, terminal)
    run.write(rows(range(3)), lambda: len(run.lines) == 1)
    terminal.wait("1 row")
    assert re.fullmatch(r"1 row · [\d.]+ rows/s · 2 in flight · 10 tokens", terminal.screen[0].strip())


def test_the_bar_names_the_limit_that_was_found(program: Programs, server: Server, terminal: Terminal) -> None:
    server.answer = lambda request: error(429, "slow down", {"Retry-After": "500"})
    start(program, terminal).write(rows(range(3)))
    terminal.wait("limit 1 at a time")


def test_the_bar_counts_what_failed_and_what_the_cache_gave(
    program: Programs, server: Server, open_terminal: Callable[[int], Terminal]
) -> None:
    program.run(*ASK, input=rows(range(5)))
    server.hold(lambda request: request.prompt == "9")
    terminal = open_terminal(120)
    start(program, terminal).write(rows(range(5)) + b"no record\n" + rows([9]))
    terminal.wait("6 rows")
    assert "1 failed" in terminal.screen[-1]
    assert "5 from cache" in terminal.screen[-1]


def test_error_lines_stand_whole_above_the_bar(program: Programs, server: Server, terminal: Terminal) -> None:
    records = [{"id": each, "text": "[bold]no :smile: markup[/] " + "long " * 40} for each in range(3)]
    server.answer = lambda request: error(400, "[red]no[/red]") if request.prompt != "9" else echo(request)
    server.hold()
    run = start(program, terminal)
    run.write(b"".join(json.dumps(record).encode() + b"\n" for record in records) + rows([9, 10]))
    terminal.wait(BAR)
    server.release(*[request for request in server.wait_for(5) if request.prompt != "10"])
    terminal.wait("4 rows")
    *errors, bar = terminal.screen
    assert BAR in bar
    assert [line[:42] for line in sorted(errors)] == [
        f'line {each}: http: HTTP 400: [red]no[/red]: {{"i' for each in (1, 2, 3)
    ]
    assert all(len(line) == 79 and line.endswith("…") for line in errors)
    assert all(str(record)[:10].replace("'", '"') in " ".join(errors) for record in records)
    server.release()
    run.finish()
    assert terminal.wait("tokens billed").screen[:3] == errors, "the bar has gone, the errors are still there"


def test_the_bar_follows_the_terminals_width(
    program: Programs, server: Server, open_terminal: Callable[[int], Terminal]
) -> None:
    terminal = open_terminal(120)
    server.hold()
    run = start(program, terminal, "-j", "4")
    run.write(rows(range(4)))
    terminal.wait("tokens")
    terminal.resize(30)
    server.release(server.wait_for(4)[0])
    run.read_lines(1)
    terminal.wait_until(lambda screen: terminal.frames[-1].startswith("1 row"))
    assert len(terminal.frames[-1]) < 30


def test_a_stopped_terminal_stops_no_request(
    program: Programs, server: Server, terminal: Terminal, open_terminal: Callable[[], Terminal]
) -> None:
    terminal.stop()
    server.hold(lambda request: request.prompt != "witness")
    run = start(program, terminal)
    run.write(rows([1]))
    server.wait_for(1)
    server.hold(lambda request: request.prompt == "witness")
    outlast_the_start(program, open_terminal, server)
    server.release(server.requests[0])
    run.write(rows([2, 3]), lambda: len(run.lines) == 3)
    terminal.go_on()
    run.finish()
    assert run.status == 0


@pytest.mark.parametrize(
    "line",
    [
        "ask < data.jsonl | jq -c . > out",
        "ask < data.jsonl 2> errors | cat > out",
        "ask < data.jsonl | cat | jq -c . > out",
        "sh -c 'ask < data.jsonl | cat > out'",
        "ask < data.jsonl | ask --as again > out",
        "ask < data.jsonl 2> errors | ask --as again 2> errors.2 > out",
    ],
    ids=["jq", "2>", "two programs", "a script that waits", "two filters", "two filters 2>"],
)
def test_in_a_pipe_that_ends_in_a_file_there_is_one_bar(
    program: Programs, server: Server, terminal: Terminal, line: str
) -> None:
    server.hold(lambda request: request.prompt == "2")
    program.write("data.jsonl", rows(range(3)))
    shell = open_shell(program, terminal)
    shell.type(f"{line}; echo status $?\n")
    shell.wait(BAR)
    assert sum(BAR in line for line in shell.screen) == 1
    server.release()
    shell.wait("status 0")
    assert BAR not in "".join(shell.screen)
    assert len((program.folder / "out").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "after",
    ["jq -c .", "cat", "cat 2> errors", "head -n 3", "less -FX", "tee /dev/tty > out", "ask --as again"],
)
def test_nothing_is_drawn_over_what_another_program_of_the_pipe_prints(
    program: Programs, server: Server, terminal: Terminal, open_terminal: Callable[[], Terminal], after: str
) -> None:
    server.hold(lambda request: request.prompt == "2")
    program.write("data.jsonl", rows(range(3)))
    shell = open_shell(program, terminal)
    shell.type(f"ask < data.jsonl | {after}; echo status $?\n")
    server.wait_for(3)
    server.hold(lambda request: request.prompt == "witness")
    outlast_the_start(program, open_terminal, server)
    server.release()
    shell.wait("status 0")
    assert BAR not in shell.raw
    assert sum('"id"' in line for line in shell.screen) == 3


def test_the_last_words_wait_for_the_program_that_prints(program: Programs, server: Server, terminal: Terminal) -> None:
    program.write("data.jsonl", rows(range(3)))
    shell = open_shell(program, terminal)
    for line, said in (("ask -n < data.jsonl", "to be sent"), ("ask < data.jsonl | cat", "3 answered")):
        shell.type(f"{line} | (cat > out; echo printed)\n")
        shell.wait(said)
        words = [line for line in shell.screen if said in line or line == "printed"]
        assert words[-2] == "printed", "before what is said"


def test_of_two_filters_in_a_pipe_each_says_which_it_is(program: Programs, server: Server, terminal: Terminal) -> None:
    program.write("data.jsonl", rows([1]) + b"no record\n")
    server.answer = lambda request: completion({"a": 1}) if len(server.requests) == 1 else error(400, "no")
    shell = open_shell(program, terminal)
    shell.type("ask < data.jsonl | ask --no-cache > out; echo status $?\n")
    shell.wait("status 1")
    shown = "\n".join(shell.screen)
    assert "llmfilter 1: line 2: input" in shown
    assert "llmfilter 2: line 1: http" in shown
    assert "llmfilter 1: 2 rows" in shown and "llmfilter 2: 1 row " in shown


def test_what_is_said_of_the_run_stands_on_the_screen_too(
    program: Programs, server: Server, terminal: Terminal
) -> None:
    server.answer = lambda request: completion({"id": 7})
    program.write("data.jsonl", rows([1]))
    shell = open_shell(program, terminal)
    shell.type(f"ask {TO_FILES}; echo status $?\n")
    shell.wait("status 0")
    said = [line for line in shell.screen if line.startswith("llmfilter: ")]
    assert said[0].startswith("llmfilter: line 1: the answer has replaced the record's 'id'")
    assert "tokens billed" in said[1]
    assert "has replaced" in (program.folder / "errors.jsonl").read_text()


def test_of_two_on_one_terminal_one_draws_until_it_ends(
    program: Programs, server: Server, terminal: Terminal, open_terminal: Callable[[], Terminal]
) -> None:
    server.hold(lambda request: request.prompt != "witness")
    first = start(program, terminal, "-j", "3")
    first.write(rows(range(3)))
    terminal.wait("3 in flight")
    second = start(program, terminal, "-j", "2")
    second.write(b"no record\n" + rows([8, 9]))
    terminal.wait("line 1: input: ")
    server.wait_for(5)
    outlast_the_start(program, open_terminal, server)
    assert sum(BAR in line for line in terminal.screen) == 1
    assert "2 in flight" not in terminal.raw
    server.release(*[request for request in server.requests if request.prompt in "012"])
    first.finish()
    terminal.wait("2 in flight")
    assert terminal.screen[0].startswith("line 1: input: "), "each one's error lines stay whole"


# Where stderr leads elsewhere, and the shell's jobs


def test_with_stderr_in_a_file_the_bar_is_on_the_terminal(
    program: Programs, server: Server, open_terminal: Callable[[int], Terminal]
) -> None:
    terminal = open_terminal(120)
    server.hold(lambda request: int(request.prompt) >= 25)
    program.write("data.jsonl", b"no record\n" + rows(range(100)))
    open_shell(program, terminal, "-j", "4").type(f"ask {TO_FILES}\n")
    assert "26 rows" in terminal.wait("4 in flight").screen[-1]
    terminal.type(INTERRUPT)
    terminal.wait("llmfilter: SIGINT: finishing 4 requests, already paid for; a second signal stops at once")
    terminal.wait_until(lambda screen: screen[-1].startswith("finishing 4 requests · 26 rows"))
    server.release()
    terminal.wait(" rows in 0:")
    reason, billed, done = [line for line in terminal.screen if line.startswith("llmfilter: ")][1:]
    assert "llmfilter: ended by SIGINT; the first unfinished line is 31" in reason
    assert billed == "llmfilter: 290 tokens billed (203 in, 87 out), 0 saved by the cache"
    assert "29 answered (0 from the cache), 1 failed (1 input)" in done
    first, *said = (program.folder / "errors.jsonl").read_text().splitlines()
    assert json.loads(first)["input"] == "no record"
    assert [line[:24] for line in said] == ["llmfilter: SIGINT: finis", "llmfilter: ended by SIGI"]


def test_what_came_while_it_was_suspended_is_read_once_it_is_in_the_foreground_again(
    program: Programs, server: Server, terminal: Terminal
) -> None:
    """Ctrl-Z for longer than --timeout, and `fg`: no answer is lost, none is paid again."""
    server.hold()
    program.write("data.jsonl", rows(range(4)))
    open_shell(program, terminal, "-j", "4", "--timeout", "2", "-r", "0").type(f"ask {TO_FILES}\n")
    server.wait_for(4)
    terminal.type(SUSPEND)
    terminal.wait("Stopped")
    server.release()
    server.wait_answered(4)
    time.sleep(2.5)  # this is about time
    terminal.type("fg; echo ended $?\n")
    terminal.wait("ended 0")
    assert len((program.folder / "out.jsonl").read_text().splitlines()) == 4
    assert (program.folder / "errors.jsonl").read_text() == ""
    assert len(server.requests) == 4


@pytest.mark.parametrize("tostop", ["tostop", "-tostop"])
def test_in_the_background_nothing_is_drawn_and_nothing_stops(
    program: Programs, server: Server, terminal: Terminal, open_terminal: Callable[[], Terminal], tostop: str
) -> None:
    server.hold(lambda request: request.prompt != "witness")
    program.write("data.jsonl", rows(range(4)))
    open_shell(program, terminal, "-j", "2").type(f"stty {tostop}; ask {TO_FILES}\n")
    terminal.wait(BAR)
    terminal.type(SUSPEND)
    terminal.wait("Stopped")
    assert BAR not in "".join(terminal.screen), "the bar makes room for the shell"
    terminal.type("bg\n")
    drawn = terminal.raw.count(BAR)
    server.release(*server.wait_for(2))
    server.wait_for(4)
    outlast_the_start(program, open_terminal, server)
    assert terminal.raw.count(BAR) == drawn
    terminal.type("fg\n")
    terminal.wait("2 rows")
    terminal.type(SUSPEND)
    terminal.wait_until(lambda screen: sum("Stopped" in line for line in screen) == 2)
    terminal.type("bg\n")
    server.release()
    terminal.type("wait; echo ended $?\n")
    terminal.wait("ended 0")
    assert len((program.folder / "out.jsonl").read_text().splitlines()) == 4
    assert "billed" not in terminal.raw


@pytest.mark.parametrize(
    ("line", "on_terminal"),
    [
        (f"ask -q {TO_FILES}", False),
        (f"TERM=dumb ask {TO_FILES}", False),
        (f"(trap '' HUP; ask {TO_FILES})", False),
        (f"setsid -w ask {TO_FILES}", False),
        (f"ask {TO_FILES}", True),
    ],
    ids=["-q", "TERM=dumb", "nohup", "no controlling terminal", "else"],
)
def test_who_sees_no_bar_when_stderr_is_a_file(
    program: Programs, server: Server, terminal: Terminal, line: str, on_terminal: bool
) -> None:
    program.write("data.jsonl", rows(range(2)))
    open_shell(program, terminal).type(f"{line}; echo status $?\n")
    terminal.wait("status 0")
    assert ("tokens billed" in terminal.raw) is on_terminal


# No bar


@pytest.mark.parametrize(
    ("args", "shell", "environ"),
    [
        ([], 'exec "$@"', {"FORCE_COLOR": "1"}),
        ([], ON_TERMINAL, {"TERM": "dumb"}),
        (["-q"], ON_TERMINAL, {}),
        ([], 'exec "$@" 2>"$TERMINAL" >"$TERMINAL"', {}),
        (["-n"], ON_TERMINAL, {}),
    ],
    ids=["stderr is a pipe", "TERM=dumb", "-q", "stdout is the terminal too", "-n"],
)
def test_no_bar_and_no_control_code(
    program: Programs,
    server: Server,
    terminal: Terminal,
    open_terminal: Callable[[], Terminal],
    args: list[str],
    shell: str,
    environ: dict[str, str],
) -> None:
    run = start(program, terminal, *args, shell=shell, **environ)
    run.write(rows([1]) + b'{"no":"id"}\n')
    run.write(b"", lambda: bool(run.errors)) if "TERMINAL" not in shell else terminal.wait("template")
    server.hold()
    outlast_the_start(program, open_terminal, server)
    server.release()
    run.finish()
    shown = terminal.raw + run.stderr.decode()
    assert "\x1b" not in shown
    assert BAR not in shown


def test_no_color_means_no_colour(program: Programs, server: Server, open_terminal: Callable[[], Terminal]) -> None:
    server.hold()
    program.write("data.jsonl", rows(range(3)))
    plain, painted, empty = open_terminal(), open_terminal(), open_terminal()
    start(program, plain, shell=f"{ON_TERMINAL} < data.jsonl", NO_COLOR="1")
    start(program, painted, shell=f"{ON_TERMINAL} < data.jsonl")
    start(program, empty, shell=f"{ON_TERMINAL} < data.jsonl", NO_COLOR="")  # no-color.org: not an empty string
    assert not COLOUR.search(plain.wait(BAR).raw)
    assert COLOUR.search(painted.wait(BAR).raw)
    assert COLOUR.search(empty.wait(BAR).raw)


# The end


def test_the_end_is_a_summary_of_two_lines(program: Programs, server: Server, terminal: Terminal) -> None:
    program.run(*ASK, input=rows([1, 2]))
    run = start(program, terminal, shell='exec "$@" 2>"$TERMINAL"').finish(rows([1, 2, 3]) + b"no record\n{}\n")
    assert run.status == 1
    terminal.wait("tokens billed")
    *errors, first, second = terminal.screen
    assert errors == [
        "line 4: input: the line is not JSON: invalid literal, expected 'nul…: no record",
        "line 5: template: the record has no field id; it has: none; for the text {…: {}",
    ]
    assert first == "llmfilter: 10 tokens billed (7 in, 3 out), 20 saved by the cache"
    assert re.fullmatch(
        r"llmfilter: 5 rows in 0:\d\d: 3 answered \(2 from the cache\), 2 failed \(1 input, 1 template\)", second
    )


@pytest.mark.parametrize(
    ("args", "shell"),
    [(["-q"], ON_TERMINAL), ([], 'exec "$@"')],
    ids=["-q", "stderr is a pipe"],
)
def test_no_summary(program: Programs, terminal: Terminal, args: list[str], shell: str) -> None:
    run = start(program, terminal, *args, shell=shell).finish(rows([1]))
    assert (run.status, run.stderr, terminal.raw) == (0, b"", "")


def test_a_second_ctrl_c_leaves_the_terminal_as_it_was(program: Programs, server: Server, terminal: Terminal) -> None:
    server.hold()
    run = start(program, terminal)
    run.write(rows(range(2)))
    server.wait_for(2)  # what is not sent yet would be abandoned
    terminal.wait(BAR)
    run.signal(signal.SIGINT)
    terminal.wait("finishing 2 requests")
    run.stop_at_once(signal.SIGINT).finish()
    assert run.status == -signal.SIGINT
    terminal.wait("the first unfinished line is 1")
    assert BAR not in "".join(terminal.screen)
    assert "\x1b[?25" not in terminal.raw, "the cursor was there all the time"


# Asked from outside


def test_sigusr1_says_in_one_line_how_far_it_is(program: Programs, server: Server) -> None:
    server.hold(lambda request: request.prompt != "0")
    run = program.start(*ASK, "-j", "2")
    run.write(rows(range(5)), lambda: len(run.lines) == 1)
    server.wait_for(3)
    run.signal(signal.SIGUSR1)
    run.read_said()
    assert re.fullmatch(rb"llmfilter: 1 row, [\d.]+ rows/s, 2 in flight, 10 tokens\n", run.stderr)
    server.release()
    run.finish()
    assert (run.status, len(run.rows), len(run.said)) == (0, 5, 1)


def test_sigusr1_stands_above_the_bar(program: Programs, server: Server, terminal: Terminal) -> None:
    server.hold()
    run = start(program, terminal)
    run.write(rows([1]))
    terminal.wait(BAR)
    run.signal(signal.SIGUSR1)
    terminal.wait_until(
        lambda screen: len(screen) == 2 and screen[0].startswith("llmfilter: 0 rows, ") and " · " in screen[1]
    )


# --stats


def read_stats(program: Programs) -> Any:
    stats = json.loads((program.folder / "stats.json").read_text())
    assert stats["rows"] == stats["answered"] + stats["failed"] + stats["unfinished"]
    assert stats["failed"] == sum(stats["by_kind"].values())
    return stats


@pytest.mark.parametrize("signals", [1, 2], ids=["one SIGINT", "two SIGINTs"])
def test_stats_are_complete_after_a_signal(program: Programs, server: Server, signals: int) -> None:
    server.hold(lambda request: request.prompt != "0")
    run = program.start(*ASK, "-j", "2", "--stats", "stats.json")
    run.write(rows(range(5)), lambda: len(run.lines) == 1)
    server.wait_for(3)
    run.signal(signal.SIGINT)
    run.read_said()
    if signals == 2:
        run.stop_at_once(signal.SIGINT)
    else:
        server.release()
    run.finish()
    stats = read_stats(program)
    answered = 1 if signals == 2 else 3
    assert (stats["answered"], stats["requests"], stats["failed"]) == (answered, 3, 0)
    assert stats["tokens"]["billed"] == {"prompt": 7 * answered, "cached_prompt": 0, "completion": 3 * answered}


def test_stats_are_complete_when_the_server_refuses_the_run(program: Programs, server: Server) -> None:
    server.answer = lambda request: error(401, "who are you?")
    assert program.run(*ASK, "--stats", "stats.json", input=rows(range(5)) + b"{}\n").status == 3
    assert read_stats(program)["answered"] == 0


def test_stats_are_complete_when_stdout_is_closed(program: Programs, server: Server) -> None:
    run = program.start(*ASK, "--stats", "stats.json")
    run.write(rows([1]), lambda: len(run.lines) == 1)
    run.close_stdout()
    run.finish(rows([2]))
    assert run.status == 141
    assert read_stats(program)["requests"] == 2


def test_stats_say_what_tells_the_server_s_limits(program: Programs, server: Server) -> None:
    busy: list[Request] = []

    async def answer(request: Request) -> Response:
        if busy:
            return error(429, "one at a time")
        busy.append(request)
        await asyncio.sleep(0.02)  # as a model takes time
        busy.clear()
        return echo(request)

    server.answer = answer
    program.run(*ASK, "-j", "2", "--stats", "stats.json", input=rows(range(30)))
    stats = read_stats(program)
    assert stats["refusals"] > 0
    assert stats["limit"] == "1 at a time"


def test_stats_never_replace_a_file_of_the_run_itself(program: Programs, server: Server) -> None:
    program.write("in.jsonl", rows(range(3)))
    program.write("prompt.md", "{id}")
    own = {
        "/dev/stdout": "> out.jsonl",
        "out.jsonl": "> out.jsonl",
        "/dev/stderr": "> out.jsonl 2> errors.jsonl",
        "errors.jsonl": "> out.jsonl 2> errors.jsonl",
        "in.jsonl": "> out.jsonl",
        "prompt.md": "> out.jsonl",
        "data.mdb": "> out.jsonl",
    }
    for path, streams in own.items():
        before = {name: (program.folder / name).read_bytes() for name in ("in.jsonl", "prompt.md")}
        run = program.run("-p", "prompt.md", "--stats", path, shell=f'exec "$@" < in.jsonl {streams}')
        assert run.status == 2, path
        assert {name: (program.folder / name).read_bytes() for name in before} == before
    assert not server.requests


FILES = ["in.jsonl", "prompt.md", "schema.json", "out.jsonl", "errors.jsonl", "stats.json", "cache/data.mdb"]
ODD_PATHS = ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/2", "new.json", "no/such/folder", "."]


@pytest.mark.parametrize("path", [*FILES, *[f"{way} {name}" for name in FILES for way in ("soft", "hard")], *ODD_PATHS])
def test_no_file_is_shorter_afterwards_but_the_one_that_stats_names(
    path: str, program: Programs, server: Server
) -> None:
    program.write("prompt.md", "{id}")
    program.write("schema.json", '{"type": "object"}')
    program.run(*ASK, input=rows(range(3)))  # so that there is a cache
    program.write("in.jsonl", rows(range(6)) + b"no record\n")
    for name in ("out.jsonl", "errors.jsonl", "stats.json"):
        program.write(name, b"x" * 100_000)
    way, _, name = path.rpartition(" ")
    if way:
        path = f"{way} link"
    if way == "soft":
        (program.folder / path).symlink_to(name)
    elif way == "hard":
        (program.folder / path).hardlink_to(program.folder / name)
    before = {each: (program.folder / each).stat().st_size for each in FILES}
    program.run(
        *("-p", "prompt.md", "--schema", "schema.json", "--stats", path),
        shell='exec "$@" < in.jsonl >> out.jsonl 2>> errors.jsonl',
    )
    shorter = {each for each in FILES if (program.folder / each).stat().st_size < before[each]}
    assert shorter <= {"stats.json"} and (name == "stats.json" or not shorter)


def test_stats_are_a_whole_new_file_or_the_old_one(program: Programs, server: Server) -> None:
    program.write("stats.json", "x" * 100_000)
    (program.folder / "stats.json").chmod(0o640)
    (program.folder / "link.json").symlink_to("stats.json")
    assert program.run(*ASK, "--stats", "link.json", input=rows([1])).status == 0
    assert read_stats(program)["rows"] == 1
    assert (program.folder / "link.json").is_symlink()
    assert (program.folder / "stats.json").stat().st_mode & 0o777 == 0o640
    before = (program.folder / "stats.json").read_bytes()
    run = program.run(*ASK, "--stats", "stats.json", input=rows([1]), shell='ulimit -f 0; exec "$@"')
    assert "--stats stats.json: File too large" in run.said[-1]
    assert (program.folder / "stats.json").read_bytes() == before
    assert not list(program.folder.glob(".stats*"))


def test_stats_go_to_a_stream_without_emptying_it(program: Programs, server: Server) -> None:
    run = program.run(*ASK, "--stats", "/dev/stderr", input=rows([1]))
    assert json.loads(run.stderr)["rows"] == 1
    os.mkfifo(program.folder / "pipe")
    run = program.run(*ASK, "--stats", "pipe", input=rows([1]))
    assert (run.status, len(run.rows)) == (0, 1)
    assert "--stats pipe: No such device or address" in run.said[-1], "nobody reads it, and nobody waits"
