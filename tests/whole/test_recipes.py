"""The recipes of the README, run by a shell as they are written there."""

import base64
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from getpass import getuser
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from batch_api import BatchApi
from program import COMMAND, Program, Programs, rows
from server import PATIENCE_S, Request, Response, Server, completion, error

README = Path(__file__).parents[2] / "README.md"
RECIPES = {  # how each begins
    "jq": "jq -c 'select",
    "head": "llmfilter -p prompt.md < data.jsonl | head",
    "certainty": "llmfilter --text --as label",
    "cost": "llmfilter --response",
    "samples": "jq -c 'range",
    "pictures": "for f in *.png",
    "rerun": "grep ",
    "tail": "tail ",
    "split": "split ",
    "parallel": "parallel --pipe --round-robin ",
    "ssh": "ssh gpu1 llmfilter ",
    "parallel over ssh": "parallel --pipe --sshlogin ",
    "merge": "mkdir -p -m 700 ",
}
SSHD = which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
JOBS = 32  # requests in flight, unless -j says otherwise


def needs(**packages: str | None) -> pytest.MarkDecorator:
    """A test that is skipped where one of these commands is missing; named is the package that has it."""
    missing = [f"{name} is not installed (Debian: {packages[name]})" for name in packages if not find(name)]
    return pytest.mark.skipif(bool(missing), reason=", ".join(missing))


def find(command: str) -> str | None:
    return which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


needs_jq = needs(jq="jq")
needs_curl = needs(curl="curl", jq="jq")
needs_nginx = needs(nginx="nginx-light")
needs_parallel = needs(parallel="parallel")
needs_sshd = needs(ssh="openssh-client", sshd="openssh-server")
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
        self.write_command("llmfilter", f'exec {" ".join(COMMAND)} "$@"')
        self.environ = {
            **program.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "LLMFILTER_CACHE": None,
        }
        program.write("prompt.md", "{id}")

    def write(self, name: str, content: bytes) -> None:
        self._program.write(name, content)

    def write_command(self, name: str, script: str) -> Path:
        """A command on the PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

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


@pytest.fixture
def shell(program: Programs) -> Iterator[Shell]:
    """A shell; what still runs in the end is killed."""
    shell = Shell(program)
    yield shell
    shell.close()


def ids(found: list[Any]) -> list[int]:
    return sorted(row["id"] for row in found)


def check_asked_once(server: Server, count: int) -> None:
    assert sorted(map(int, server.prompts)) == list(range(count))


def fat_rows(count: int) -> bytes:
    """Rows of 10 kB, so that a few hundred are several of the blocks that `parallel` deals out."""
    return b"".join(b'{"id":%d,"pad":"%b"}\n' % (each, b"p" * 10_000) for each in range(count))


def read_recipes() -> list[str]:
    """The lines of shell in the README's section."""
    section = README.read_text().partition("\n## Recipes\n")[2].partition("\n## ")[0]
    block = section.partition("```sh\n")[2].partition("```")[0]
    return [line for line in block.splitlines() if line and not line.startswith("#")]


def read_blocks(title: str, language: str = "sh") -> list[str]:
    """The blocks of code in a section of the README."""
    section = README.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def recipe(name: str) -> str:
    found = [line for line in read_recipes() if line.startswith(RECIPES[name])]
    assert len(found) == 1, f"the README has {len(found)} recipes that begin with {RECIPES[name]!r}"
    return found[0]


def test_each_recipe_of_the_readme_is_run_here() -> None:
    assert sorted(map(recipe, RECIPES)) == sorted(read_recipes())


# On one machine


@needs_jq
def test_jq_before_and_after(shell: Shell, server: Server) -> None:
    server.answer = lambda request: completion({"label": f"label of {request.prompt}"})
    records = [{"id": each, "lang": "de" if each % 2 else "en", "text": "t", "more": 1} for each in range(6)]
    shell.write("reviews.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    run = shell.run(recipe("jq"))
    assert (run.status, run.stderr) == (0, b"")
    assert sorted(run.lines) == [b"0\tlabel of 0", b"2\tlabel of 2", b"4\tlabel of 4"]


def test_head_ends_the_run_with_141_and_nothing_is_lost(shell: Shell, server: Server) -> None:
    count = 2000
    server.hold(lambda request: int(request.prompt) >= 100)
    shell.write("data.jsonl", rows(range(count)))
    run = shell.start(recipe("head") + '; echo "${PIPESTATUS[0]}"', shell="bash").read_lines(3)
    server.release()
    run.finish()
    assert len(run.lines) == 4
    assert run.lines.pop() == b"141"
    assert run.stderr == b""
    assert len(server.requests) < count
    again = shell.run("llmfilter -p prompt.md < data.jsonl")
    assert ids(again.rows) == list(range(count))
    check_asked_once(server, count)


def test_split_feeds_several_processes_that_write_a_file_each(shell: Shell, server: Server) -> None:
    count = 4 * JOBS
    server.hold()
    shell.write("data.jsonl", rows(range(count)))
    run = shell.start(recipe("split"))
    server.wait_for(count)  # all at once: no single process has so many in flight
    server.release()
    run.finish()
    assert (run.status, run.stderr) == (0, b"")
    parts = [shell.read_rows(f"part.a{letter}.out") for letter in "abcd"]
    assert [len(part) for part in parts] == [JOBS] * 4
    assert ids([row for part in parts for row in part]) == list(range(count))
    check_asked_once(server, count)


def test_a_record_that_a_file_grows_by_comes_out_while_tail_runs(shell: Shell, server: Server) -> None:
    shell.write("app.jsonl", rows([0, 1]))
    run = shell.start(recipe("tail")).read_lines(2)
    for each in (2, 3):
        with (shell.folder / "app.jsonl").open("ab") as growing:
            growing.write(rows([each]))
        run.read_lines(each + 1)
    assert ids(run.rows) == [0, 1, 2, 3]
    os.killpg(run.pid, signal.SIGINT)
    run.finish()
    assert "ended by SIGINT" in run.said[-1]


@needs_jq
def test_what_failed_runs_again_with_another_prompt(shell: Shell, server: Server) -> None:
    server.answer = lambda request: error(400, "no") if request.prompt in ("1", "3") else completion({"done": 1})
    shell.write("data.jsonl", rows(range(5)) + b"no record\n")
    shell.write("better.md", b"better {id}")
    assert shell.run("llmfilter -p prompt.md < data.jsonl > out.jsonl 2> errors.jsonl").status == 1
    assert shell.run(recipe("rerun")).status == 0
    assert ids(shell.read_rows("out.jsonl")) == list(range(5))
    assert server.prompts[-2:] in (["better 1", "better 3"], ["better 3", "better 1"])


@needs_parallel
def test_parallel_feeds_several_processes_on_one_cache(shell: Shell, server: Server) -> None:
    count = 450
    server.hold()
    shell.write("data.jsonl", fat_rows(count))
    run = shell.start(recipe("parallel"))
    server.wait_for(4 * JOBS)
    server.release()
    run.finish()
    assert (run.status, run.stderr) == (0, b"")
    assert ids(shell.read_rows("out.jsonl")) == list(range(count))
    check_asked_once(server, count)
    assert shell.run(recipe("parallel")).status == 0
    assert ids(shell.read_rows("out.jsonl")) == list(range(count))
    check_asked_once(server, count)


@needs_jq
def test_the_probability_of_a_label(shell: Shell, server: Server) -> None:
    def answer(request: Request) -> Response:
        assert request.json["logprobs"] is True
        document = json.loads(completion("spam").body)
        document["choices"][0]["logprobs"] = {"content": [{"token": "sp", "logprob": -0.5}, {"logprob": -0.25}]}
        return Response(json.dumps(document).encode())

    server.answer = answer
    shell.write("data.jsonl", rows([1]))
    run = shell.run(recipe("certainty"))
    (row,) = run.rows
    assert (row["id"], row["label"], round(row["p"], 6)) == (1, "spam", round(math.exp(-0.75), 6))
    assert row.keys() == {"id", "label", "p"}


@needs_jq
def test_what_all_answers_cost(shell: Shell, server: Server) -> None:
    shell.write("data.jsonl", rows(range(4)))
    run = shell.run(recipe("cost"))
    assert float(run.stdout) == pytest.approx(4 * (7 * 0.15 + 3 * 0.60) / 1e6)


@needs_jq
def test_several_samples_of_each_row(shell: Shell, server: Server) -> None:
    server.answer = lambda request: completion({"said": request.json["seed"]})
    shell.write("data.jsonl", rows([1, 2]))
    assert shell.run(recipe("samples")).status == 0
    found = sorted((row["id"], row["seed"], row["said"]) for row in shell.read_rows("out.jsonl"))
    assert found == [(each, seed, seed) for each in (1, 2) for seed in range(5)]


@needs_jq
def test_pictures_become_labels_without_the_picture(shell: Shell, server: Server) -> None:
    pictures = {f"{name}.png": b"\x89PNG" + os.urandom(70_000) for name in ("cat", "a dog")}
    for name, content in pictures.items():
        shell.write(name, content)

    def answer(request: Request) -> Response:
        text, picture = request.prompt
        assert "JSON" in text["text"]
        head, _, data = picture["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        (name,) = [name for name, content in pictures.items() if content == base64.b64decode(data)]
        return completion({"label": name.removesuffix(".png")})

    server.answer = answer
    run = shell.run(recipe("pictures"))
    assert (run.status, run.stderr) == (0, b"")
    found = sorted(shell.read_rows("labels.jsonl"), key=str)
    assert found == [{"file": f"{each}.png", "label": each} for each in ("a dog", "cat")]


# Half price


@needs_curl
def test_a_batch_is_handed_in_and_taken_back(shell: Shell, server: Server) -> None:
    api = BatchApi(expires={"3"}, refuses={"5"})
    server.answer = api.answer
    shell.environ["OPENAI_API_KEY"] = BatchApi.KEY
    shell.write_command("sleep", 'echo "$1" >> slept')
    shell.write("data.jsonl", rows([*range(8), 0, 1]))
    submit, collect, _ = read_blocks("Half price")
    shell.run(submit)
    assert len((shell.folder / "ids").read_text().split()) == 1
    run = shell.run(collect)
    assert (run.status, run.stderr) == (0, b"")
    assert ids(shell.read_rows("out.jsonl")) == [0, 0, 1, 1, *range(2, 8)]
    errors = [line for line in (shell.folder / "errors.jsonl").read_text().splitlines() if line.startswith("{")]
    assert sorted(json.loads(line)["error"] for line in errors) == ["http", "server"]
    assert api.asked_live == ["3", "5"]
    assert set((shell.folder / "slept").read_text().split()) == {"60"}


@needs_curl
def test_files_of_50000_lines_are_handed_in_one_by_one(shell: Shell, server: Server) -> None:
    api = BatchApi()
    server.answer = api.answer
    shell.environ["OPENAI_API_KEY"] = BatchApi.KEY
    shell.write_command("sleep", "")
    shell.write("data.jsonl", rows(range(8)))
    submit, collect, _ = read_blocks("Half price")
    assert shell.run(submit.replace("-l 50000", "-l 3")).status == 0
    assert len((shell.folder / "ids").read_text().split()) == 3
    assert shell.run(collect).status == 0
    assert ids(shell.read_rows("out.jsonl")) == list(range(8))
    assert not api.asked_live


def test_vllm_runs_a_batch_without_a_server(shell: Shell, server: Server) -> None:
    """What stands in for vLLM writes what its run-batch writes; the model is what the file names."""
    script = shell.folder / "vllm.py"
    script.write_bytes((Path(__file__).parents[1] / "vllm_batch.py").read_bytes())
    shell.write_command("vllm", f'exec {sys.executable} {script} "$@"')
    shell.write("data.jsonl", rows(range(3)))
    run = shell.run(read_blocks("Half price")[2])
    assert run.said[-1] == "llmfilter: 3 lines: 2 answers stored, 0 in the cache, 1 failed"
    again = shell.run("llmfilter -k -p prompt.md < data.jsonl")
    assert [row["echo"] for row in again.rows] == ["batch 0", "1", "batch 2"]
    assert server.prompts == ["1"]


# Several servers


@needs_nginx
def test_behind_nginx_a_server_that_dies_loses_no_row(shell: Shell, server: Server) -> None:
    count = 400
    with ExitStack() as life:
        dying = life.enter_context(Server())
        with Nginx(shell.folder, [server, dying]) as url:
            server.hold()
            dying.hold()
            shell.write("data.jsonl", rows(range(count)))
            run = shell.start(f"llmfilter -u {url} --stats stats.json -p prompt.md < data.jsonl")
            for each in (server, dying):
                each.wait_for(JOBS // 2)
            life.close()
            server.release()
            run.finish()
    assert (run.status, run.stderr) == (0, b"")
    assert ids(run.rows) == list(range(count))
    (stats,) = shell.read_rows("stats.json")
    assert (stats["requests"], stats["retries"]) == (count, 0), "nginx sends them to the other one"
    assert len(server.requests) == count - JOBS // 2 + len(dying.requests) == count


class Nginx:
    """The README's nginx, on a free port before these servers."""

    def __init__(self, folder: Path, servers: list[Server]) -> None:
        port = free_port(["127.0.0.1"])
        (conf,) = read_blocks("Servers", "nginx")
        for name, server in zip(("gpu1:8000", "gpu2:8000"), servers, strict=True):
            conf = conf.replace(name, f"127.0.0.1:{server.port}")
        conf = conf.replace("listen 127.0.0.1:8000", f"listen 127.0.0.1:{port}")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {folder}/nginx;\n" for kind in kinds)
        whole = f"daemon off;\npid {folder}/nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{conf}}}\n"
        (folder / "nginx.conf").write_text(whole)
        self._url = f"http://127.0.0.1:{port}/v1"
        self._port = port
        self._command = [find("nginx") or "", "-e", f"{folder}/nginx.log", "-c", f"{folder}/nginx.conf"]

    def __enter__(self) -> str:
        self._nginx = subprocess.Popen(self._command)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port)).close()
                return self._url
            except ConnectionRefusedError:
                assert self._nginx.poll() is None and time.monotonic() < deadline

    def __exit__(self, *_: object) -> None:
        self._nginx.terminate()
        self._nginx.wait(PATIENCE_S)


# Over ssh


class Hosts:
    """gpu1 and gpu2: two addresses of this machine behind a real sshd, each with a home of its own."""

    def __init__(self, shell: Shell) -> None:
        self._folder = shell.folder / "ssh"
        self._folder.mkdir()
        addresses = {"gpu1": "127.0.0.1", "gpu2": "127.0.0.2"}
        for name, address in addresses.items():
            (self.home(name)).mkdir()
            (self._folder / address).symlink_to(name)
            (self.home(name) / "prompt.md").write_text("{id}")
            os.mkfifo(self.home(name) / "alive")
        for key in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / key)]
            subprocess.run(command, check=True, timeout=PATIENCE_S)
        port = free_port(list(addresses.values()))
        self._write_client(port, addresses, shell)
        self._write_host(shell)
        self._sshd = self._start(port, addresses)

    def home(self, name: str) -> Path:
        return self._folder / name

    def cache(self, name: str) -> Path:
        return self.home(name) / ".cache" / "llmfilter"

    def watch(self, name: str) -> int:
        """A descriptor for `wait_idle`; to be had while something runs on the host."""
        return os.open(self.home(name) / "alive", os.O_RDONLY | os.O_NONBLOCK)

    def wait_idle(self, watched: int) -> None:
        """Returns when nothing runs on the host any more: nobody has the pipe open."""
        poll = select.poll()
        poll.register(watched, select.POLLHUP)
        assert poll.poll(PATIENCE_S * 1000), "something still runs on the host"
        os.close(watched)

    def close(self) -> None:
        self._sshd.terminate()
        self._sshd.wait(PATIENCE_S)
        assert self._sshd.stderr
        self._sshd.stderr.close()

    def _write_client(self, port: int, addresses: dict[str, str], shell: Shell) -> None:
        lines = [f"Host {name}\n HostName {address}\n HostKeyAlias {name}" for name, address in addresses.items()]
        common = ["StrictHostKeyChecking no", "LogLevel ERROR", "IdentitiesOnly yes", f"Port {port}"]
        files = [f"IdentityFile {self._folder}/user_key", f"UserKnownHostsFile {self._folder}/known_hosts"]
        config = self._folder / "ssh_config"
        config.write_text("\n".join([*lines, "Host *", *common, *files]) + "\n")
        shell.write_command("ssh", f'exec {which("ssh")} -F {config} "$@"')

    def _write_host(self, shell: Shell) -> None:
        """What runs each command on a host: it makes one user on one machine look like several machines."""
        names = ("PATH", "OPENAI_BASE_URL", "OPENAI_MODEL")
        exports = [f"export {name}='{shell.environ[name]}'" for name in names]
        self._login = shell.write_command(
            "login",
            "\n".join(
                [
                    f'set -- $SSH_CONNECTION\nexport HOME="{self._folder}/$3"\ncd',
                    *exports,
                    'exec 9<>alive\nexec sh -c "$SSH_ORIGINAL_COMMAND"',
                ]
            ),
        )

    def _start(self, port: int, addresses: dict[str, str]) -> "subprocess.Popen[bytes]":
        assert SSHD
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where the system's own sshd has never run
        config = self._folder / "sshd_config"
        listen = [f"ListenAddress {address}" for address in addresses.values()]
        keys = [f"HostKey {self._folder}/host_key", f"AuthorizedKeysFile {self._folder}/user_key.pub"]
        rest = ["UsePAM no", "StrictModes no", "PidFile none", f"AllowUsers {getuser()}", f"ForceCommand {self._login}"]
        config.write_text("\n".join([f"Port {port}", *listen, *keys, *rest]) + "\n")
        sshd = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=subprocess.PIPE)
        assert sshd.stderr
        listening, said = 0, b""
        while listening < len(addresses) and (line := sshd.stderr.readline()):
            listening += line.startswith(b"Server listening on")
            said += line
        assert listening == len(addresses), said.decode()
        return sshd


def free_port(addresses: list[str]) -> int:
    with socket.create_server((addresses[0], 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture
def hosts(shell: Shell) -> Iterator[Hosts]:
    """The hosts; they outlive what the shell started."""
    hosts = Hosts(shell)
    yield hosts
    shell.close()
    hosts.close()


@needs_sshd
def test_the_filter_runs_on_another_host(shell: Shell, hosts: Hosts, server: Server) -> None:
    shell.write("data.jsonl", rows(range(5)) + b"no record\n")
    run = shell.run(recipe("ssh"))
    assert run.status == 1
    assert ids(shell.read_rows("out.jsonl")) == list(range(5))
    assert [line["error"] for line in run.errors] == ["input"]
    assert (hosts.cache("gpu1") / "data.mdb").exists()
    assert not shell.cache.exists()


@needs_sshd
def test_a_connection_that_dies_costs_nothing_when_the_command_is_given_again(
    shell: Shell, hosts: Hosts, server: Server
) -> None:
    count, before = 100, 10
    server.hold(lambda request: int(request.prompt) >= before)
    shell.write("data.jsonl", rows(range(count)))
    run = shell.start(recipe("ssh"))
    server.wait_for(before + JOBS)
    watched = hosts.watch("gpu1")
    os.killpg(run.pid, signal.SIGKILL)  # no good-bye: the host sees the connection break
    run.finish()
    server.release()
    hosts.wait_idle(watched)
    assert shell.run(recipe("ssh")).status == 0
    assert ids(shell.read_rows("out.jsonl")) == list(range(count))
    check_asked_once(server, count)


@needs_sshd
@needs_parallel
def test_parallel_shares_the_work_among_hosts(shell: Shell, hosts: Hosts, server: Server) -> None:
    count = 400
    shell.write("data.jsonl", fat_rows(count))
    run = shell.run(recipe("parallel over ssh"))
    assert (run.status, run.stderr) == (0, b"")
    assert ids(shell.read_rows("out.jsonl")) == list(range(count))
    check_asked_once(server, count)
    assert all((hosts.cache(name) / "data.mdb").exists() for name in ("gpu1", "gpu2"))


@needs_sshd
@needs_lmdb
def test_another_machines_cache_merges_into_this_one(shell: Shell, hosts: Hosts, server: Server) -> None:
    def answer(request: Request) -> Any:
        return completion({"answer": len(server.requests)}, pad="p" * 10_000)

    server.answer = answer
    shell.write("data.jsonl", rows(range(300)))
    assert shell.run(recipe("ssh")).status == 0
    theirs = {row["id"]: row["answer"] for row in shell.read_rows("out.jsonl")}
    shell.write("data.jsonl", rows(range(200, 500)))
    run = shell.run("llmfilter -p prompt.md < data.jsonl")
    ours = {row["id"]: row["answer"] for row in run.rows}
    assert len(server.requests) == 600
    assert shell.run(recipe("merge")).status == 0
    shell.write("data.jsonl", rows(range(500)))
    run = shell.run("llmfilter -p prompt.md < data.jsonl")
    assert {row["id"]: row["answer"] for row in run.rows} == theirs | ours, "what was here stays"
    assert len(server.requests) == 600
    assert disk_bytes(shell.cache) < 32 << 20, "the map is sparse"


@needs_sshd
@needs_lmdb
def test_caches_merge_while_they_are_in_use(shell: Shell, hosts: Hosts, server: Server) -> None:
    shell.write("data.jsonl", rows(range(10)))
    assert shell.run(recipe("ssh")).status == 0
    server.hold(lambda request: request.prompt in ("20", "21"))
    there, here = (shell.start(f"{how} llmfilter -p prompt.md") for how in ("ssh gpu1", ""))
    there.write(rows([20]))
    here.write(rows([21]))
    server.wait_for(12)
    assert shell.run(recipe("merge")).status == 0
    server.release()
    assert (there.finish().status, here.finish(rows(range(10))).status) == (0, 0)
    assert ids(here.rows) == [*range(10), 21]
    assert len(server.requests) == 12


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())
