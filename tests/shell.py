"""A user's shell for the lines of the README: files, commands on the PATH, the program among them."""

import json
import os
import signal
import socket
import time
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from program import COMMAND, Program, Programs
from server import PATIENCE_S, Server

RUN = f'exec {" ".join(COMMAND)} "$@"'  # the program, in a script
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def needs(**packages: str | None) -> pytest.MarkDecorator:
    """A test that is skipped where one of these commands is missing; named is the package that has it."""
    missing = [f"{name} is not installed (Debian: {packages[name]})" for name in packages if not find(name)]
    return pytest.mark.skipif(bool(missing), reason=", ".join(missing))


def find(command: str) -> str | None:
    return which(command, path=PATH)


needs_jq = needs(jq="jq")
needs_parallel = needs(parallel="parallel")
needs_lmdb = needs(mdb_dump="lmdb-utils", mdb_load="lmdb-utils")


class Shell:
    """A user's shell, in a folder with a prompt and `llmfilter` on the PATH."""

    def __init__(self, program: Programs) -> None:
        self._program = program
        self.folder = program.folder
        self.cache = self.folder / ".cache" / "llmfilter"
        self._runs: list[Program] = []
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        self.write_command("llmfilter", RUN)
        self.environ: dict[str, str | None] = {
            **program.environ,
            "PATH": f"{self.bin}:{PATH}",
            "LLMFILTER_CACHE": None,
        }
        program.write("prompt.md", "{id}")

    def write(self, name: str, content: bytes) -> None:
        self._program.write(name, content)

    def write_command(self, name: str, script: str) -> Path:
        """A command on the PATH."""
        return write_script(self.bin / name, script)

    def link(self, folder: Path) -> None:
        """A folder of the project, to be named as from its root."""
        (self.folder / folder.name).symlink_to(folder)

    def read_rows(self, name: str) -> list[Any]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def start(self, line: str, shell: str = "sh") -> Program:
        """Starts a line in a process group of its own, as a terminal's shell does."""
        run = self._program.start(command=[shell, "-c", line], env=self.environ)
        self._runs.append(run)
        return run

    def run(self, line: str, shell: str = "sh") -> Program:
        return self.start(line, shell).finish()

    def close(self) -> None:
        for run in self._runs:
            if run.status is None:
                os.killpg(run.pid, signal.SIGKILL)


def write_script(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def ids(found: list[Any]) -> list[int]:
    return sorted(row["id"] for row in found)


def asked(server: Server) -> list[Any]:
    """What was asked, in order; a look at the server's models is no question."""
    return [request.prompt for request in server.requests if request.method == "POST"]


def check_asked_once(server: Server, count: int) -> None:
    assert sorted(map(int, asked(server))) == list(range(count))


def point_to(server: Server, line: str) -> str:
    """The line with this server's port for the usual one."""
    assert "localhost:8000" in line
    return line.replace("localhost:8000", f"localhost:{server.port}")


def fat_rows(count: int) -> bytes:
    """Rows of 10 kB, so that a few hundred are several of the blocks that `parallel` deals out."""
    return b"".join(b'{"id":%d,"pad":"%b"}\n' % (each, b"p" * 10_000) for each in range(count))


def free_port(addresses: list[str]) -> int:
    with socket.create_server((addresses[0], 0)) as taken:
        return int(taken.getsockname()[1])


def wait_listening(port: int) -> None:
    """Returns when somebody listens there."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
