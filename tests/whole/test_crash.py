"""A power cut at any moment: what was printed before is in the cache, and nothing else than what was stored.

The system's calls of a run are recorded, and its cache is built anew as a crash could leave it: with all that was
synced, and of what was written since some, torn at the sectors of a disk.
"""

import ast
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from program import ASK, Programs, may_trace, rows
from server import Server

from llmfilter.cache.folder import open_folder
from llmfilter.cache.stored import is_whole

pytestmark = pytest.mark.skipif(not may_trace(), reason="strace is not here, or may not trace")

ROWS, STATES = 60, 200
SECTOR_BYTES = 512
CALLS = "openat,close,mkdir,pwrite64,lseek,writev,pwritev2,write,ftruncate,fallocate,fdatasync,fsync,msync"
_CALL = re.compile(r"(?P<at>[\d.]+) (?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


class Call(NamedTuple):
    """A call that has succeeded: its name, its numbers in order, its texts in one, what it returned."""

    at: float
    name: str
    numbers: list[int]
    text: bytes
    flags: str
    result: int


def parse(line: str) -> Call | None:
    """Return the call in a line of the record; None if it has failed, or was still under way."""
    call = _CALL.match(line)
    if not call or int(call["result"]) < 0:
        return None
    text = b"".join(ast.literal_eval(f"b'{part}'") for part in _TEXT.findall(call["arguments"]))
    rest = _TEXT.sub("", call["arguments"])
    return Call(
        float(call["at"]),
        call["name"],
        [int(each) for each in re.findall(r"(?<![\w.])-?\d+", re.sub(r"\[.*\]", "", rest))],
        text,
        rest,
        int(call["result"]),
    )


class Disk:
    """What is on the disk of one file, and what a crash could lose of it.

    Of the file's folder and of that folder's own only the names matter.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._named: dict[str, bool] = {}  # whether the name of a file or folder is durable
        self._paths: dict[int, str] = {}  # by descriptor
        self._synced = b""
        self._writes: list[tuple[int, bytes]] = []  # since then
        self._place = 0  # of the next one that does not say its own
        self.printed = b""

    def take(self, call: Call) -> None:
        """Note a call."""
        name, numbers = call.name, call.numbers
        path = self._paths.get(numbers[0] if numbers else -1, "")
        if name == "openat":
            opened = call.text.decode()
            self._paths[call.result] = opened + "|sync" * ("O_DSYNC" in call.flags)
            if "O_CREAT" in call.flags and opened == str(self._file):
                self._named.setdefault(opened, False)
        elif name == "mkdir":
            self._named[call.text.decode()] = False
        elif name == "close":
            self._paths.pop(numbers[0], None)
        elif numbers and numbers[0] == 1 and name in ("write", "pwritev2"):
            self.printed += call.text[: call.result]
        elif path.partition("|")[0] == str(self._file):
            self._change(call, path)
        elif name == "fsync":
            for each in self._named:
                self._named[each] |= os.path.dirname(each) == path

    def _change(self, call: Call, path: str) -> None:
        if call.name == "pwrite64":
            self._writes.append((call.numbers[-1], call.text))
        elif call.name == "lseek":
            self._place = call.result
        elif call.name == "writev":
            self._writes.append((self._place, call.text))
        elif call.name == "fallocate":
            self._writes.append((sum(call.numbers[-2:]) - 1, b"\0"))
        elif call.name == "ftruncate":
            raise AssertionError("the file never becomes smaller")
        if path.endswith("|sync") or call.name in ("fdatasync", "fsync"):
            self._synced = laid(self._synced, self._writes)
            self._writes = []

    def crash(self, chance: random.Random) -> bytes | None:
        """Return what is found of the file after a crash now; None if it is not."""
        if not all(is_durable or chance.random() < 0.5 for is_durable in self._named.values()):
            return None
        if not self._named:
            return None
        some = [write for write in self._writes if chance.random() < 0.7]
        return laid(self._synced, [torn(*write, chance) for write in some])


def laid(content: bytes, writes: list[tuple[int, bytes]]) -> bytes:
    """Return a file's content with writes on it."""
    whole = bytearray(content)
    for at, data in writes:
        whole.extend(bytes(max(0, at + len(data) - len(whole))))
        whole[at : at + len(data)] = data
    return bytes(whole)


def torn(at: int, data: bytes, chance: random.Random) -> tuple[int, bytes]:
    """Return a write of which perhaps only some sectors came to the disk."""
    if chance.random() < 0.5:
        return at, data
    return at, data[: SECTOR_BYTES * chance.randint(0, len(data) // SECTOR_BYTES)]


def record(program: Programs) -> list[Call]:
    """Return the calls of a run that makes its cache, in their order."""
    strace = ["strace", "-ff", "-ttt", "-qq", "-xx", "-s", "100000000", "-e", f"trace={CALLS}", "-o", "calls"]
    run = program.run(*ASK, "-j", "4", input=rows(range(ROWS)), command=[*strace, *program.command])
    assert (run.status, len(run.rows)) == (0, ROWS)
    lines = [line for file in program.folder.glob("calls.*") for line in file.read_text().splitlines()]
    return sorted(filter(None, map(parse, lines)), key=lambda call: call.at)


def keys_by_row(program: Programs) -> dict[int, bytes]:
    """Return the keys of the requests, by their rows' ids."""
    run = program.run(*ASK, "--to-batch", "--no-cache", input=rows(range(ROWS)))
    requests = [json.loads(line) for line in run.lines]
    return {int(each["body"]["messages"][0]["content"]): bytes.fromhex(each["custom_id"]) for each in requests}


def stored_in(folder: Path) -> Iterator[tuple[bytes, bytes]]:
    with open_folder(folder) as env, env.begin() as transaction, transaction.cursor() as cursor:
        yield from cursor


def test_a_power_cut_costs_nothing_that_was_printed(program: Programs, server: Server, tmp_path: Path) -> None:
    calls, keys = record(program), keys_by_row(program)
    stored = dict(stored_in(program.cache))
    assert len(stored) == ROWS
    chance, crashed, opened = random.Random(7), tmp_path / "crashed", 0
    first = next(at for at, call in enumerate(calls) if call.name == "mkdir" and call.text == bytes(program.cache))
    cuts = sorted(chance.choices(range(first, len(calls) + 1), k=STATES))
    disk, taken = Disk(program.cache / "data.mdb"), 0
    for cut in cuts:
        for call in calls[taken:cut]:
            disk.take(call)
        taken = cut
        content = disk.crash(chance)
        printed = [json.loads(line)["id"] for line in disk.printed.split(b"\n")[:-1]]
        shutil.rmtree(crashed, ignore_errors=True)
        if content is None:
            assert not printed
            continue
        crashed.mkdir()
        (crashed / "data.mdb").write_bytes(content)
        found = dict(stored_in(crashed))
        opened += 1
        assert found.keys() >= {keys[each] for each in printed}
        assert found.items() <= stored.items()
        assert all(is_whole(key, value) for key, value in found.items())
    assert opened > STATES // 2
