"""Runs the real program in real pipes, and shows what it did when a test fails."""

import array
import fcntl
import json
import os
import re
import select
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from server import PATIENCE_S

import llmfilter

COMMAND = [sys.executable, "-m", "llmfilter"]
ASK = ("-p", "id.md")  # a prompt file that is there in each test: it asks for a record's `id`
LOOK_S = 0.001  # between two looks at what its threads do
_SHOWN = 1000  # bytes of an output, at its beginning and at its end


def may_trace() -> bool:
    """Whether strace is here, and one process may trace another."""
    return bool(shutil.which("strace")) and not subprocess.call(["strace", "-qq", "-o", os.devnull, "true"])


def rows(ids: Sequence[object]) -> bytes:
    """Records that differ in their `id` only."""
    return b"".join(b'{"id":%b}\n' % json.dumps(each).encode() for each in ids)


class Programs:
    """Starts programs, in one folder and on one server; kills those that are still running in the end."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.command: Sequence[str] = COMMAND
        self.runs: list[Program] = []
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(llmfilter.__file__).parents[1]),  # the package that the tests import
            "HOME": str(folder),
            "LLMFILTER_CACHE": str(self.cache),
            "OPENAI_BASE_URL": url,
            "OPENAI_MODEL": "tiny",
        }
        self.write("id.md", "{id}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for run in self.runs:
            run.close()

    def write(self, name: str, content: str | bytes) -> str:
        """A file in the folder that the programs run in."""
        (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    def start(
        self,
        *args: str,
        stdin: int = subprocess.PIPE,
        stdout: int = subprocess.PIPE,
        shell: str = 'exec "$@"',
        env: Mapping[str, str | None] | None = None,
        command: Sequence[str] | None = None,
    ) -> "Program":
        """Starts a program; `shell` is the line of shell that starts it, `env` changes the environment."""
        environ = {**self.environ, **(env or {})}
        started = Program(
            ["sh", "-c", shell, "sh", *(command or self.command), *args],
            {name: value for name, value in environ.items() if value is not None},
            self.folder,
            stdin,
            stdout,
        )
        self.runs.append(started)
        return started

    def run(self, *args: str, input: bytes = b"", **how: Any) -> "Program":
        """A whole run: gives it all the input, waits for its end."""
        return self.start(*args, **how).finish(input)


class Program:
    """One run.

    stdout, stderr: what was read of them so far; status: the exit status, negative if a signal killed it.
    """

    def __init__(self, command: list[str], environ: dict[str, str], folder: Path, stdin: int, stdout: int) -> None:
        self._command = command
        # Not in the foreground of the terminal that the tests are started from, which would show its bar.
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            cwd=folder,
            env=environ,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        self.pid = self._process.pid
        self.rest = b""
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._streams = {self._process.stdout: self._stdout, self._process.stderr: self._stderr}
        for stream in (self._process.stdin, *self._streams):
            if stream:
                os.set_blocking(stream.fileno(), False)

    @property
    def status(self) -> int | None:
        return self._process.returncode

    @property
    def stdout(self) -> bytes:
        return bytes(self._stdout)

    @property
    def stderr(self) -> bytes:
        return bytes(self._stderr)

    @property
    def lines(self) -> list[bytes]:
        """The whole lines of stdout."""
        return self.stdout.split(b"\n")[:-1]

    @property
    def rows(self) -> list[Any]:
        """The lines of stdout, parsed."""
        return [json.loads(line) for line in self.lines]

    @property
    def errors(self) -> list[Any]:
        """The error lines, parsed."""
        return [json.loads(line) for line in self.stderr.split(b"\n")[:-1] if line.startswith(b"{")]

    @property
    def said(self) -> list[str]:
        """The plain lines on stderr."""
        return [line for line in self.stderr.decode().split("\n")[:-1] if not line.startswith("{")]

    def write(self, data: bytes, until: Callable[[], bool] = lambda: True) -> Self:
        """Writes to its stdin, and reads what it writes, until all is written and `until` holds."""
        self._exchange(data, until)
        return self

    def read_lines(self, count: int) -> Self:
        """Reads until so many lines of stdout are here."""
        return self.write(b"", lambda: len(self.lines) >= count)

    def read_said(self, count: int = 1) -> Self:
        """Reads until so many plain lines of stderr are here."""
        return self.write(b"", lambda: len(self.said) >= count)

    def forget(self) -> None:
        """Forgets what was read."""
        self._stdout.clear()
        self._stderr.clear()

    def finish(self, data: bytes = b"") -> Self:
        """Writes the rest of its input, reads everything, waits for its end."""
        self._exchange(data, lambda: False, ends=True)
        self._process.wait(PATIENCE_S)
        return self

    def wait(self) -> None:
        """Waits for its end, and reads nothing."""
        self._process.wait(PATIENCE_S)

    def stop_at_once(self, number: signal.Signals) -> Self:
        """Signals it until it ends: what comes within a second of the first signal is the same event."""
        deadline = time.monotonic() + PATIENCE_S
        while self._process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self.signal(number)
            try:
                self._process.wait(0.1)
            except subprocess.TimeoutExpired:
                pass
        return self

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> Self:
        """Kills it, and reads what it has written before."""
        self._process.kill()
        return self.finish()

    def close_stdout(self) -> None:
        """As `| head` does."""
        assert self._process.stdout
        del self._streams[self._process.stdout]
        self._process.stdout.close()

    def fill(self, data: bytes, *threads: int) -> int:
        """Writes to its stdin until it sleeps without taking more; returns how many bytes it took.

        What did not fit into the pipe is in `rest`. Nothing that it writes is read. threads: of this
        process, which must sleep too.
        """
        assert self._process.stdin
        pipe = self._process.stdin.fileno()
        view, sleeps = memoryview(data), False
        while view:
            try:
                view = view[os.write(pipe, view) :]
                sleeps = False
            except BlockingIOError:
                if sleeps:
                    break
                self.wait_asleep(*threads)
                sleeps = True
        self.rest = bytes(view)
        self.wait_asleep(*threads)
        in_pipe = array.array("i", [0])
        fcntl.ioctl(pipe, termios.FIONREAD, in_pipe)
        return len(data) - len(view) - in_pipe[0]

    def wait_asleep(self, *threads: int) -> None:
        """Returns when all its threads (and these of ours) sleep at one moment: it waits for us.

        A thread that is asleep in two looks, and has not run in between (it would have been
        switched), slept all the time from the one to the other.
        """
        deadline = time.monotonic() + PATIENCE_S
        with open(os.pidfd_open(self.pid)) as end:
            while not ((looked := self._sleepers(threads)) and looked == self._sleepers(threads)):
                assert not select.select([end], [], [], LOOK_S)[0], "it has ended"
                assert time.monotonic() < deadline, "it does not come to rest"

    def _sleepers(self, threads: Sequence[int]) -> list[str] | None:
        """How often each thread was switched, or None if one is awake."""
        tasks = [*Path(f"/proc/{self.pid}/task").iterdir(), *(Path(f"/proc/self/task/{each}") for each in threads)]
        try:
            looks = [(task / "status").read_text() for task in tasks]
        except (FileNotFoundError, ProcessLookupError):  # a thread has just ended
            return None
        if not all("State:\tS" in look for look in looks):
            return None
        return [look[look.index("voluntary_ctxt_switches") :] for look in looks]

    def memory_kb(self) -> int:
        """Its own memory: without files that are mapped, like the cache."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert found
        return int(found[1])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream:
                stream.close()

    def _exchange(self, data: bytes, until: Callable[[], bool], ends: bool = False) -> None:
        view, deadline = memoryview(data), time.monotonic() + PATIENCE_S
        stdin = self._process.stdin
        with selectors.DefaultSelector() as selector:
            for stream in self._streams:
                if stream and not stream.closed:
                    selector.register(stream, selectors.EVENT_READ)
            if stdin and not stdin.closed and (view or ends):
                selector.register(stdin, selectors.EVENT_WRITE)
            while selector.get_map() and (view or not until()):
                ready = selector.select(deadline - time.monotonic())
                assert ready, f"waited {PATIENCE_S:g} s for the program"
                for key, _ in ready:
                    if key.fileobj is not stdin:
                        self._receive(key.fileobj, selector)
                        continue
                    try:
                        view = view[os.write(key.fd, view[: 1 << 16]) :]
                    except BrokenPipeError:  # it has enough
                        view = memoryview(b"")
                    if not view:
                        selector.unregister(stdin)
                        if ends:
                            stdin.close()
        assert ends or until(), "it has ended before what was waited for"

    def _receive(self, stream: Any, selector: selectors.BaseSelector) -> None:
        data = os.read(stream.fileno(), 1 << 16)
        self._streams[stream] += data
        if not data:
            selector.unregister(stream)
            stream.close()

    def __str__(self) -> str:
        parts = [f"$ {shlex.join(self._command)}", f"status {self._process.poll()}"]
        for name, text in (("stdout", self.stdout), ("stderr", self.stderr)):
            shown = text if len(text) <= 2 * _SHOWN else text[:_SHOWN] + b"\n[...]\n" + text[-_SHOWN:]
            parts.append(f"--- {name}, {len(text)} bytes\n{shown.decode(errors='backslashreplace')}")
        return "\n".join(parts)
