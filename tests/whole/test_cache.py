"""The cache folder: what it may be, what it may not, and what happens to it under stress."""

import asyncio
import json
import mmap
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest
from program import ASK, COMMAND, LOOK_S, Program, Programs, may_trace, rows
from server import PATIENCE_S, Request, Response, Server, completion

from llmfilter.cache.folder import _make_readable, open_folder
from llmfilter.cache.store import Cache

ANSWERS = [{"id": each, "echo": str(each)} for each in range(3)]


def ask_3(program: Programs, *args: str, shell: str = 'exec "$@"') -> Program:
    run = program.run(*ASK, "-k", *args, input=rows(range(3)), shell=shell)
    assert (run.status, run.rows, run.stderr) == (0, ANSWERS, b"")
    return run


def is_refused(run: Program, server: Server, *words: str) -> bool:
    """Whether it ended before the first request with one plain line that holds these words."""
    assert run.status == 2
    assert len(run.said) == 1
    assert run.said[0].startswith("llmfilter: ")
    assert not run.stdout
    assert not server.requests
    return all(word in run.said[0] for word in words)


# Where it is.


def test_nobody_else_may_look_into_it(program: Programs) -> None:
    ask_3(program, shell='umask 0; exec "$@"')
    assert stat.S_IMODE(program.cache.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in program.cache.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("args", "env", "folder"),
    [
        (["--cache", "given/deep"], {}, "given/deep"),
        ([], {"LLMFILTER_CACHE": None, "XDG_CACHE_HOME": "{home}/xdg"}, "xdg/llmfilter"),
        ([], {"LLMFILTER_CACHE": None, "XDG_CACHE_HOME": "relative"}, ".cache/llmfilter"),
        (["--no-cache"], {}, None),
    ],
)
def test_its_folder_is_the_one_named_else_the_usual_one(
    program: Programs, args: list[str], env: dict[str, str | None], folder: str | None
) -> None:
    home = program.folder
    env = {name: value and value.format(home=home) for name, value in env.items()}
    assert program.run(*ASK, *args, input=rows([1]), env=env).status == 0
    assert [file.parent for file in home.rglob("data.mdb")] == ([home / folder] if folder else [])


def test_a_network_file_system_is_refused(program: Programs, server: Server) -> None:
    device = os.stat(program.folder).st_dev
    mount = f"36 35 {os.major(device)}:{os.minor(device)} / / rw,noatime master:1 - nfs4 host:/export rw"
    program.write("mounts", mount + "\n")
    program.write(
        "launch.py",
        "import sys, llmfilter.cache.folder, llmfilter.cli\n"
        "llmfilter.cache.folder.MOUNTS = 'mounts'\nsys.exit(llmfilter.cli.main())",
    )
    run = program.run(*ASK, input=rows([1]), command=[sys.executable, "launch.py"])
    assert is_refused(run, server, "nfs4", "--cache /local/dir")


# What it may not be.


@pytest.mark.parametrize(
    "content",
    [b"#!/bin/sh\n" * 5000, b"short", b"\0" * 8192, b"PK\x03\x04" + bytes(100_000)],
    ids=["a script", "a few bytes", "zeros", "an archive"],
)
def test_a_foreign_file_in_its_place_is_refused_and_left_alone(
    program: Programs, server: Server, content: bytes
) -> None:
    program.cache.mkdir()
    data = program.cache / "data.mdb"
    data.write_bytes(content)
    run = program.run(*ASK, input=rows([1]))
    assert is_refused(run, server, str(program.cache), "move the folder away", "--cache")
    assert data.read_bytes() == content


def test_a_file_whose_free_pages_were_trimmed_is_as_good_as_before(program: Programs, server: Server) -> None:
    ask_3(program)
    with lmdb.open(str(program.cache)) as env:
        pages, page_bytes = env.info()["last_pgno"] + 1, env.stat()["psize"]
    os.truncate(program.cache / "data.mdb", pages * page_bytes)
    ask_3(program)
    assert len(server.requests) == 3


def test_a_compacted_copy_is_as_good_as_the_folder(program: Programs, server: Server) -> None:
    ask_3(program)
    (program.folder / "copy").mkdir()
    with lmdb.open(str(program.cache)) as env:
        env.copy(str(program.folder / "copy"), compact=True)
    ask_3(program, "--cache", "copy")
    assert len(server.requests) == 3


@pytest.mark.parametrize("at", [44, 92], ids=["free pages", "answers"])
def test_a_tree_with_several_values_under_a_key_is_refused(program: Programs, server: Server, at: int) -> None:
    """LMDB would abort the process."""
    ask_3(program)
    server.requests.clear()
    data = program.cache / "data.mdb"
    content = bytearray(data.read_bytes())
    for page in (0, 4096):
        content[page + at] |= 4  # MDB_DUPSORT
    data.write_bytes(content)
    assert is_refused(program.run(*ASK, input=rows(range(9))), server, str(program.cache), "is damaged", "--cache")


@pytest.mark.parametrize("spoilt", [b"\xff", b"\0"], ids=["ones", "zeros"])
def test_a_file_with_overwritten_pages_is_gone_on_without(program: Programs, server: Server, spoilt: bytes) -> None:
    ask_3(program)
    data = program.cache / "data.mdb"
    content = data.read_bytes()
    data.write_bytes(content[:8192] + spoilt * (len(content) - 8192))
    run = program.run(*ASK, "-k", input=rows(range(3)))
    assert (run.status, run.rows, len(server.requests)) == (0, ANSWERS, 6)
    assert len(run.said) == 2  # the second one tells what is not stored
    assert str(program.cache) in run.said[0]
    assert "--cache" in run.said[0]


@pytest.mark.parametrize("folder", ["id.md", "/proc/no/such", "/dev/null/x"])
def test_a_folder_that_cannot_be_made_is_refused(program: Programs, server: Server, folder: str) -> None:
    assert is_refused(program.run(*ASK, "--cache", folder, input=rows([1])), server, folder, "--no-cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(program: Programs, server: Server) -> None:
    program.cache.mkdir(mode=0o500)
    assert is_refused(program.run(*ASK, input=rows([1])), server, str(program.cache), "--no-cache")


# Looking up.


def test_of_large_answers_only_some_are_held_at_once(program: Programs, server: Server) -> None:
    server.answer = lambda request: completion(json.dumps({"echo": request.prompt * 400_000}))
    run = program.run(*ASK, "-k", input=rows(range(1, 8)))
    assert [row["echo"][0] for row in run.rows] == list("1234567")
    assert program.run(*ASK, "-k", input=rows(range(1, 8))).lines == run.lines
    assert len(server.requests) == 7

    async def find() -> None:
        cache = Cache(program.cache)
        keys = [bytes([each]) * 32 for each in range(5)]
        async with asyncio.timeout(PATIENCE_S):
            assert all(await asyncio.gather(*[cache.put_all([(key, key * 20_000)]) for key in keys[:-1]]))
        assert [value and value[:32] for value in cache.find(keys)] == keys[:2], "1 MB is enough at a time"
        assert [value and value[:32] for value in cache.find(keys[2:])] == [*keys[2:-1], None][:2]
        assert cache.find(keys[4:]) == [None]
        cache.close()

    asyncio.run(find())


# Stress.


def test_when_it_can_no_longer_be_written_the_run_says_so_once_and_goes_on(program: Programs, server: Server) -> None:
    count, blocks = 1000, 300  # blocks of 512 bytes, in some shells 1024, that a file may have
    run = program.run(*ASK, "-j", "4", input=rows(range(count)), shell=f'ulimit -f {blocks}; exec "$@"')
    assert run.status == 0
    assert len(run.rows) == count
    failed, *again, ended = run.said
    assert str(program.cache) in failed and "goes on without" in failed and "fails (" in failed
    assert all(line == failed or "works again" in line for line in again)  # where the run takes longer than AGAIN_S
    assert "could not be stored" in ended
    unstored = int(ended.split()[1])
    assert program.run(*ASK, input=rows(range(count))).status == 0
    assert 0 < unstored < count  # what was committed before is still there
    # The commit that failed may have reached the disk all the same, with the answers of as many slots.
    assert count + unstored - 4 <= len(server.requests) <= count + unstored


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
may_mount = not subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode


@pytest.mark.skipif(not may_mount, reason="only a user namespace of its own may mount a small disk")
def test_a_full_disk_is_named_and_what_it_has_no_room_for_is_counted(program: Programs, server: Server) -> None:
    count = 1000
    program.cache.mkdir()
    small = f'mount -t tmpfs -o size=200k tmpfs {program.cache} && exec "$@"'
    shell = f"exec {shlex.join(NAMESPACE)} sh -c '{small}' sh \"$@\""
    run = program.run(*ASK, "-j", "4", "--stats", "stats.json", input=rows(range(count)), shell=shell)
    assert (run.status, len(run.rows)) == (0, count)
    unstored = json.loads((program.folder / "stats.json").read_text())["unstored"]
    assert 0 < unstored < count
    failed, *between, ended = run.said
    assert "No space left on device" in failed and "make room" in failed
    assert all("works again" in said or "fails (" in said for said in between), "it is tried again"
    assert f"{unstored} answers could not be stored" in ended


@pytest.mark.skipif(not may_mount, reason="only a user namespace of its own may mount a small disk")
def test_a_disk_without_room_for_the_lock_file_is_named(program: Programs, server: Server) -> None:
    program.cache.mkdir()
    full = f'mount -t tmpfs -o size=64k tmpfs {program.cache} && cat /dev/zero > {program.cache}/full; exec "$@"'
    shell = f"exec {shlex.join(NAMESPACE)} sh -c '{full}' sh \"$@\" 2>&1"
    run = program.run(*ASK, input=rows([1]), shell=shell)
    assert run.status == 2, "it ended with SIGBUS once"
    assert b"No space left on device" in run.stdout.splitlines()[-1] and not server.requests


def test_a_limited_address_space_is_enough(program: Programs, server: Server) -> None:
    for shell in ('ulimit -v 4000000; exec "$@"', 'exec "$@"', 'ulimit -v 4000000; exec "$@"'):
        ask_3(program, shell=shell)
    assert len(server.requests) == 3


def test_it_can_be_made_where_one_may_write_and_not_read(program: Programs, server: Server) -> None:
    place = program.folder / "drop"
    place.mkdir()
    place.chmod(0o300)
    no_root = 'test "$(id -u)" != 0 || exec setpriv --bounding-set=-all --inh-caps=-all "$@"; exec "$@"'
    run = program.run(*ASK, "--cache", "drop/cache", input=rows([1]), shell=no_root)
    place.chmod(0o700)
    assert (run.status, len(run.rows), run.said) == (0, 1, [])


def test_a_folder_that_is_removed_in_mid_run_is_said(program: Programs, server: Server) -> None:
    run = program.start(*ASK, "--stats", "stats.json")
    run.write(rows([1])).read_lines(1)
    shutil.rmtree(program.cache)
    run.write(rows([2])).read_lines(2).finish(rows([3]))
    assert (run.status, len(run.rows)) == (0, 3)
    failed, ended = run.said
    assert str(program.cache) in failed and "removed or replaced" in failed
    assert "2 answers could not be stored" in ended
    assert json.loads((program.folder / "stats.json").read_text())["unstored"] == 2


def test_while_another_process_holds_it_in_mid_commit_that_is_said(program: Programs, server: Server) -> None:
    ask_3(program)
    program.write(
        "launch.py",
        "import sys, llmfilter.cache.store, llmfilter.cli\n"
        "llmfilter.cache.store._SLOW_S = 0.1\nsys.exit(llmfilter.cli.main())",
    )
    with lmdb.open(str(program.cache)) as env:
        with env.begin(write=True):
            run = program.start(*ASK, command=[sys.executable, "launch.py"])
            run.write(rows([5])).read_said()
            assert str(program.cache) in run.said[0] and "was stopped in mid-commit" in run.said[0]
            assert not run.lines  # it is not on the disk yet
        run.finish()
    assert (run.status, run.rows, len(run.said)) == (0, [{"id": 5, "echo": "5"}], 1)


def test_a_cached_answer_that_fails_todays_checks_is_the_first_unusable_one(program: Programs, server: Server) -> None:
    """Only the re-ask is paid."""
    ask_3(program)

    def answer(request: Request) -> Response:
        assert [turn["role"] for turn in request.json["messages"]] == ["user", "assistant", "user"]
        assert "'label' is missing" in request.prompt
        return completion({"label": 1})

    server.answer = answer
    run = program.run(*ASK, "-k", "-f", "label", input=rows(range(3)))
    assert run.rows == [{"id": each, "label": 1} for each in range(3)]
    assert len(server.requests) == 6
    assert program.run(*ASK, "-k", "-f", "label", input=rows(range(3))).lines == run.lines
    assert len(server.requests) == 6


def test_eight_processes_share_it_though_two_are_killed(program: Programs, server: Server) -> None:
    count, jobs = 120, 4
    server.hold(lambda request: int(request.prompt) >= 60)
    data = program.write("data.jsonl", rows(range(count)))
    runs = [program.start(*ASK, "-k", "-j", str(jobs), shell=f'exec "$@" < {data}') for _ in range(8)]
    for run in runs[:2]:
        run.read_lines(40)
        run.kill()
    server.release()
    for run in runs[2:]:
        run.finish()
        assert (run.status, run.stderr) == (0, b"")
        assert [row["id"] for row in run.rows] == list(range(count))
    before = len(server.requests)
    assert program.run(*ASK, shell=f'exec "$@" < {data}').status == 0
    assert len(server.requests) == before


def test_a_stored_answer_that_this_version_cannot_read_is_asked_again(program: Programs, server: Server) -> None:
    ask_3(program)
    with lmdb.open(str(program.cache)) as env, env.begin(write=True) as transaction:
        (first, _), (second, answer), (third, _) = list(transaction.cursor())
        transaction.put(first, b"")
        transaction.put(second, b"\xff" + answer[1:])
        transaction.put(third, answer[:10])
    ask_3(program)
    assert len(server.requests) == 6


def test_a_dry_run_leaves_no_new_folder_behind(program: Programs) -> None:
    assert program.run(*ASK, "-n", input=rows([1])).status == 0
    assert not program.cache.exists()


def test_a_cache_that_failed_once_comes_back(program: Programs, server: Server) -> None:
    launch = program.write(
        "launch.py",
        "import sys, llmfilter.cache.store, llmfilter.cli\n"
        "llmfilter.cache.store.AGAIN_S = 0.0\nsys.exit(llmfilter.cli.main())",
    )
    fault = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=ENOSPC:when=3"]
    if not may_trace():
        pytest.skip("strace is not here, or may not trace")
    command = ["strace", "-f", "-qq", "-o", os.devnull, *fault, sys.executable, launch]
    run = program.start(*ASK, "-j", "1", "--stats", "stats.json", command=command)
    for each in range(12):
        run.write(rows([each])).read_lines(each + 1)
    run.finish()
    assert run.status == 0
    failed, again, lost = run.said
    assert "goes on without it" in failed and "works again" in again and "1 answer could not be stored" in lost
    before = len(server.requests)
    assert program.run(*ASK, input=rows(range(12))).status == 0
    assert len(server.requests) == before + 1


STAT, SET_SIZE = "fstat,newfstatat,statx", "fallocate,ftruncate,truncate"


def trim(data: Path) -> None:
    """As a tool does that trims free pages: the next run makes room again."""
    with data.open("r+b") as file:
        file.truncate(8 * mmap.PAGESIZE)


@pytest.mark.skipif(not may_trace(), reason="strace is not here, or may not trace")
def test_who_is_stopped_between_a_look_at_the_file_s_size_and_setting_it_cuts_off_nothing(
    program: Programs, server: Server
) -> None:
    program.run(*ASK, input=rows([0]))
    data, log = program.cache / "data.mdb", program.folder / "log"
    trim(data)
    trace = ["strace", "-f", "-qq", "-o", str(log), "-P", str(data)]
    program.run(*ASK, input=rows([0]), command=[*trace, "-e", f"trace={STAT},{SET_SIZE}", *COMMAND])
    before, _ = re.split(rf"(?:{SET_SIZE.replace(',', '|')})\(", log.read_text(), maxsplit=1)
    trim(data)
    looks = len(re.findall(r"stat\w*\(", before))
    stop = f"inject={STAT}:signal=SIGSTOP:when={looks}"  # as the last look returns
    stopped = program.start(*ASK, command=[*trace, "-e", f"trace={STAT}", "-e", stop, *COMMAND])
    deadline = time.monotonic() + PATIENCE_S
    while "stopped by SIGSTOP" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(LOOK_S)
    server.answer = lambda request: completion({"echo": request.prompt * 2_000_000})
    others = range(10, 17)  # more than the room that is made at the file's end
    assert program.run(*ASK, input=rows(others)).status == 0
    (child,) = Path(f"/proc/{stopped.pid}/task/{stopped.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGCONT)
    assert stopped.finish(rows([1])).status == 0
    sent = len(server.requests)
    again = program.run(*ASK, input=rows([0, 1, *others]))
    assert (again.status, len(again.rows), len(server.requests)) == (0, 9, sent)


def test_a_pipe_in_the_place_of_its_file_is_refused(program: Programs, server: Server) -> None:
    program.cache.mkdir()
    os.mkfifo(program.cache / "data.mdb")
    assert is_refused(program.run(*ASK, input=rows([1])), server, "holds something else", "--cache")


def test_a_folder_of_another_program_is_refused_and_left_alone(program: Programs) -> None:
    with lmdb.open(str(program.cache)) as env, env.begin(write=True) as transaction:
        transaction.put(b"theirs", b"1")
    before = (program.cache / "data.mdb").read_bytes()
    run = program.run(*ASK, input=rows([1]))
    assert (run.status, len(run.said)) == (2, 1)
    assert "holds something else" in run.said[0]
    assert (program.cache / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("size", [64, 512, 4096, 8191])
def test_what_was_only_half_made_is_made_anew(size: int, program: Programs, server: Server) -> None:
    with lmdb.open(str(program.cache)):
        pass
    with (program.cache / "data.mdb").open("r+b") as data:
        data.truncate(size)
    assert program.run(*ASK, input=rows([1])).status == 0
    assert program.run(*ASK, input=rows([1])).status == 0
    assert len(server.requests) == 1


def test_a_file_that_grew_meanwhile_is_never_cut(tmp_path: Path) -> None:
    """As where a process is stopped between its look at the size and its change, and another one stores."""
    folder = tmp_path / "cache"
    open_folder(folder).close()
    file = folder / "data.mdb"
    size = file.stat().st_size
    with lmdb.open(str(folder)) as env, ThreadPoolExecutor(1) as pool:
        truncated: list[int] = []

        def grow(descriptor: int, offset: int, length: int) -> None:
            pool.submit(os.truncate, file, 2 * size).result()
            fallocate(descriptor, offset, length)
            truncated.append(file.stat().st_size)

        fallocate = os.posix_fallocate
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "posix_fallocate", grow)
            os.truncate(file, 8192)
            _make_readable(file, env)
    assert truncated == [2 * size]


@pytest.mark.parametrize(
    "kilobytes", [*range(300_000, 3_000_000, 400_000), 350_000, 500_000, 600_000, 1_150_000, 2_200_000, 8_500_000]
)
def test_little_address_space_ends_in_answers_or_in_a_sentence(
    kilobytes: int, program: Programs, server: Server
) -> None:
    run = program.run(*ASK, input=rows(range(8)), shell=f'ulimit -v {kilobytes}; exec "$@"')
    assert run.status in (0, 2, 3)
    assert run.status == 0 or run.said
    assert run.status != 0 or len(run.rows) == 8


def test_a_folder_s_name_may_be_any_bytes(program: Programs) -> None:
    run = program.run(*ASK, "--cache", os.fsdecode(b"c\xff"), input=rows(range(3)))
    assert (run.status, len(run.lines), run.stderr) == (0, 3, b"")
