"""Whole programs, started and measured from outside; servers that never outlive the benchmark."""

import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

Command = Sequence[str | Path]

SAMPLE_S = 0.01  # between two looks at a program's memory
PATIENCE_S = 20.0  # until a server takes connections
SHOWN = 500  # characters of what a program said, at its end
# The server ends when this shell's stdin does: with the benchmark, however that ends.
TETHER = '"$@" & read -r _; kill $!; wait'


class Failed(Exception):
    """A program did not do what it was measured for; the message says what it wrote."""


@dataclass(frozen=True)
class Run:
    """One program from its start to its end; peak_kb: of its anonymous memory (RssAnon), 0 where not sampled."""

    seconds: float
    cpu_s: float
    peak_kb: int = 0


class Started:
    """A program at work: stdin from a file, stdout dropped."""

    def __init__(self, command: Command, stdin: Path, environ: Mapping[str, str], samples: bool) -> None:
        self._command = command
        self._peak_kb = 0
        self._ended = threading.Event()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        with open(stdin, "rb") as source:
            self._started_at = time.perf_counter()
            self._process = subprocess.Popen(
                command, stdin=source, stdout=subprocess.DEVNULL, stderr=self._stderr, env=environ
            )
        self._sampler = threading.Thread(target=self._sample) if samples else None
        if self._sampler:
            self._sampler.start()

    def close(self) -> None:
        """Kills it if it is still at work."""
        self._ended.set()
        self._stderr.close()
        self._process.kill()
        self._process.wait()

    def end(self) -> Run:
        """Waits for its end; raises Failed unless its status is 0."""
        try:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            seconds = time.perf_counter() - self._started_at
        except BaseException:
            self._process.kill()
            raise
        finally:
            self._ended.set()
            if self._sampler:
                self._sampler.join()
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
        with self._stderr as stderr:
            if self._process.returncode:
                raise Failed(f"{self._command[0]} ended with {self._process.returncode}: {read_end(stderr)}")
        return Run(seconds, usage.ru_utime + usage.ru_stime, self._peak_kb)

    def _sample(self) -> None:
        status = Path(f"/proc/{self._process.pid}/status")
        while not self._ended.wait(SAMPLE_S):
            if found := re.search(r"RssAnon:\s+(\d+) kB", status.read_text()):  # not there in a zombie
                self._peak_kb = max(self._peak_kb, int(found[1]))


@contextmanager
def serving(command: Command, port: int) -> Iterator[None]:
    """A server, from when it takes connections on its port to the end of the block."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            ["sh", "-c", TETHER, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # else Ctrl-C would end the shell and leave the server
        ),
    ):
        deadline = time.monotonic() + PATIENCE_S
        while not is_open(port):
            if time.monotonic() > deadline:
                raise Failed(f"{command[0]} does not serve: {read_end(log)}")
            time.sleep(0.02)
        yield


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def read_end(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip()[-SHOWN:]
