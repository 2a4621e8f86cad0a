"""Damage to the cache's file costs answers: it never changes one, and never crashes the program."""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
from program import ASK, Programs, rows
from server import Request, Response, Server, completion

COPIES = 240
STORED = 120  # rows: enough for a tree of two levels
ASKED = 30  # rows of each copy: most are in the cache, the others make it write
PAGE_BYTES = 4096

# One process that has loaded everything, and a fork of it for each copy: starting takes longer than the run.
LAUNCHER = """\
import os, signal, sys
import llmfilter.server.client, llmfilter.pipeline, llmfilter.output.progress, llmfilter.session, uvloop
from llmfilter.cli import main

AT_ONCE, TIMEOUT_S = 4, 30

def run(folder):
    pid = os.fork()
    if pid:
        return pid
    os.chdir(folder)
    for fd, name in enumerate(["in", "out", "err"]):
        os.dup2(os.open(name, os.O_CREAT | os.O_RDWR), fd)
    signal.alarm(TIMEOUT_S)
    os._exit(main(["-p", "../id.md", "-k", "-j", "1", "--cache", "cache"]))

def wait():
    pid, status = os.wait()
    print(running.pop(pid), os.waitstatus_to_exitcode(status), flush=True)

running = {}
for folder in sys.argv[1:]:
    if len(running) == AT_ONCE:
        wait()
    running[run(folder)] = folder
while running:
    wait()
"""


def answer(request: Request) -> Response:
    """Depends on the prompt alone; one in ten fills several pages."""
    n = int(request.prompt)
    return completion({"echo": request.prompt, "pad": "p" * (6_000 if n % 10 == 0 else n)})


def change_bytes(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.randrange(1, 9)):
        data[rng.randrange(len(data))] = rng.randrange(256)


def change_heads(rng: random.Random, data: bytearray) -> None:
    """Where a page says what it is and where its nodes are."""
    for _ in range(rng.randrange(1, 4)):
        page = rng.randrange(len(data) // PAGE_BYTES)
        data[page * PAGE_BYTES + rng.randrange(48)] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])


def change_nodes(rng: random.Random, data: bytearray) -> None:
    """Where a page's nodes begin, and how large they are."""
    for _ in range(rng.randrange(1, 4)):
        page = rng.randrange(len(data) // PAGE_BYTES) * PAGE_BYTES
        nodes = page + 16 + 2 * rng.randrange(20)
        at = rng.choice([nodes, page + int.from_bytes(data[nodes : nodes + 2], "little") + rng.randrange(12)])
        if at < len(data):
            data[at] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])


def change_roots(rng: random.Random, data: bytearray) -> None:
    """The two first pages, which say where the trees are."""
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(2) * PAGE_BYTES + rng.randrange(160)] = rng.choice([0, 1, 0xFF, rng.randrange(256)])


def spoil_page(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) // PAGE_BYTES) * PAGE_BYTES
    data[at : at + PAGE_BYTES] = rng.choice([bytes(PAGE_BYTES), b"\xff" * PAGE_BYTES, rng.randbytes(PAGE_BYTES)])


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


DAMAGES: list[Callable[[random.Random, bytearray], None]] = [
    change_bytes, change_bytes, change_heads, change_nodes, change_nodes, change_roots, spoil_page, cut,
]  # fmt: skip


def read_used(folder: Path) -> bytes:
    """The pages of a data file up to the last one that is in use."""
    with lmdb.open(str(folder)) as env:
        size = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    return (folder / "data.mdb").read_bytes()[:size]


def read_compact(folder: Path, copy: Path) -> bytes:
    """The pages of a copy of it that has no free ones."""
    copy.mkdir()
    with lmdb.open(str(folder)) as env:
        env.copy(str(copy), compact=True)
    return read_used(copy)


def line(n: int) -> bytes:
    return b'{"id":%d,"echo":"%d","pad":"%b"}\n' % (n, n, b"p" * (6_000 if n % 10 == 0 else n))


def test_damage_costs_an_answer_never_changes_one_and_crashes_nothing(server: Server, program: Programs) -> None:
    server.answer = answer
    in_order = ["-k", "-j", "1"]  # so that the file is always the same
    assert program.run(*ASK, *in_order, input=rows(range(STORED))).status == 0
    files = [read_used(program.cache), read_compact(program.cache, program.folder / "copy")]
    asked: dict[str, list[int]] = {}
    for seed in range(COPIES):
        rng = random.Random(seed)
        data = bytearray(files[seed % 2])
        rng.choice(DAMAGES)(rng, data)
        folder = program.folder / str(seed)
        (folder / "cache").mkdir(parents=True)
        (folder / "cache" / "data.mdb").write_bytes(data)
        asked[str(seed)] = [rng.randrange(STORED + (at % 2) * STORED // 2) for at in range(ASKED)]
        (folder / "in").write_bytes(rows(asked[str(seed)]))
    run = program.run(*asked, command=[sys.executable, program.write("launch.py", LAUNCHER)])
    statuses = dict(each.split() for each in run.stdout.decode().splitlines())
    assert statuses.keys() == asked.keys()
    bad = {}
    for name, ids in asked.items():
        out, said = ((program.folder / name / each).read_bytes() for each in ("out", "err"))
        is_run = statuses[name] == "0" and out == b"".join(map(line, ids))
        is_refused = statuses[name] == "2" and not out and said.count(b"\n") == 1 and b"another" in said
        if not (is_run or is_refused):
            bad[name] = (statuses[name], said)
    assert not bad


def test_a_first_key_behind_the_file_s_end_does_not_end_each_run_on_the_cache(
    server: Server, program: Programs
) -> None:
    assert program.run(*ASK, input=rows([0])).status == 0
    data = bytearray(read_compact(program.cache, program.folder / "copy"))
    assert len(data) == 3 * PAGE_BYTES  # a single leaf
    data[-PAGE_BYTES + 16 : -PAGE_BYTES + 18] = b"pp"  # where its only node begins
    program.cache.joinpath("data.mdb").write_bytes(data)
    run = program.run(*ASK, "-k", input=rows(range(9)))
    assert (run.status, [row["id"] for row in run.rows]) == (0, list(range(9)))
