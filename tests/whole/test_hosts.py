"""The README's lines for other machines: over a real ssh, to logins that know nothing of this one."""

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from getpass import getuser
from pathlib import Path
from shutil import which

import pytest
from program import rows
from readme import find_line, runs
from server import PATIENCE_S, Request, Response, Server, completion, echo
from shell import (
    RUN,
    Shell,
    asked,
    check_asked_once,
    fat_rows,
    find,
    free_port,
    ids,
    needs,
    needs_lmdb,
    needs_parallel,
    point_to,
    wait_listening,
    write_script,
)

import llmfilter

JOBS = 32  # requests in flight, unless -j says otherwise
LOGIN_PATH = "/usr/local/bin:/usr/bin:/bin"  # as sshd gives it
SFTP = which("sftp-server", path="/usr/lib/openssh:/usr/libexec:/usr/libexec/openssh")
ON_HOST = "scp -q prompt.md gpu1: && ssh gpu1 .local/bin/llmfilter "
HERE = "llmfilter -u http://localhost:8000/v1 -p prompt.md < data.jsonl > out.jsonl"  # the same URL, so the same keys
MERGE = "mkdir -p -m 700 ~/.cache/llmfilter "

SBATCH = """\
array=${1#--array=1-} job=${2#--wrap=}
for id in $(seq "$array"); do
  SLURM_ARRAY_TASK_ID=$id SLURM_ARRAY_TASK_COUNT=$array sh -c "$job" || exit
done"""

needs_sshd = needs(ssh="openssh-client", scp="openssh-client", sshd="openssh-server")


class Hosts:
    """gpu1 and gpu2: two addresses of this machine behind a real sshd, each with a home of its own.

    A login finds what a real one does: a bare environment, and llmfilter where `make install` puts it.
    """

    def __init__(self, shell: Shell) -> None:
        self._folder = shell.folder / "ssh"
        self._folder.mkdir()
        addresses = {"gpu1": "127.0.0.1", "gpu2": "127.0.0.2"}
        for name, address in addresses.items():
            (self.home(name)).mkdir()
            (self._folder / address).symlink_to(name)
            self._install(self.home(name) / ".local" / "bin")
            os.mkfifo(self.home(name) / "alive")
        for key in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / key)]
            subprocess.run(command, check=True, timeout=PATIENCE_S)
        port = free_port(list(addresses.values()))
        self._write_client(port, addresses, shell)
        self._login = self._write_host(shell)
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
        for name in ("ssh", "scp"):
            shell.write_command(name, f'exec {which(name)} -F {config} "$@"')

    def _install(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        write_script(folder / "llmfilter", f"export PYTHONPATH='{Path(llmfilter.__file__).parents[1]}'\n{RUN}")

    def _write_host(self, shell: Shell) -> Path:
        """What runs each command on a host: it makes one user on one machine look like several machines."""
        environ = f'HOME="{self._folder}/$3" USER="$USER" PATH={LOGIN_PATH} SHELL=/bin/sh'
        return shell.write_command(
            "login",
            f'set -- $SSH_CONNECTION\ncd "{self._folder}/$3"\nexec 9<>alive\n'
            f'exec env -i {environ} sh -c "$SSH_ORIGINAL_COMMAND"',
        )

    def _start(self, port: int, addresses: dict[str, str]) -> "subprocess.Popen[bytes]":
        path = find("sshd")
        assert path
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where the system's own sshd has never run
        config = self._folder / "sshd_config"
        listen = [f"ListenAddress {address}" for address in addresses.values()]
        paths = [f"HostKey {self._folder}/host_key", f"AuthorizedKeysFile {self._folder}/user_key.pub"]
        paths.append(f"Subsystem sftp {SFTP}")
        rest = ["UsePAM no", "StrictModes no", "PidFile none", f"AllowUsers {getuser()}", f"ForceCommand {self._login}"]
        config.write_text("\n".join([f"Port {port}", *listen, *paths, *rest]) + "\n")
        sshd = subprocess.Popen([path, "-D", "-e", "-f", config], stderr=subprocess.PIPE)
        assert sshd.stderr
        listening, said = 0, b""
        while listening < len(addresses) and (line := sshd.stderr.readline()):
            listening += line.startswith(b"Server listening on")
            said += line
        assert listening == len(addresses), said.decode()
        return sshd


@pytest.fixture
def hosts(shell: Shell) -> Iterator[Hosts]:
    """The hosts; they outlive what the shell started."""
    hosts = Hosts(shell)
    yield hosts
    shell.close()
    hosts.close()


def is_from(first: int) -> Callable[[Request], bool]:
    """Whether a request is of a row from this one on."""
    return lambda request: request.method == "POST" and int(request.prompt) >= first


@needs_sshd
@runs(ON_HOST)
def test_the_filter_runs_on_another_host(line: str, shell: Shell, hosts: Hosts, server: Server) -> None:
    shell.write("data.jsonl", rows(range(5)) + b"no record\n")
    run = shell.run(point_to(server, line))
    assert run.status == 1
    assert ids(shell.read_rows("out.jsonl")) == list(range(5))
    assert [line["error"] for line in run.errors] == ["input"]
    assert (hosts.cache("gpu1") / "data.mdb").exists()
    assert not shell.cache.exists()


@needs_sshd
@runs(ON_HOST)
def test_a_connection_that_dies_costs_nothing_when_the_command_is_given_again(
    line: str, shell: Shell, hosts: Hosts, server: Server
) -> None:
    count, before = 100, 10
    server.hold(is_from(before))
    shell.write("data.jsonl", rows(range(count)))
    run = shell.start(point_to(server, line))
    server.wait_for(1 + before + JOBS)  # the first one asks for the model
    watched = hosts.watch("gpu1")
    os.killpg(run.pid, signal.SIGKILL)  # no good-bye: the host sees the connection break
    run.finish()
    server.release()
    hosts.wait_idle(watched)
    assert shell.run(point_to(server, line)).status == 0
    assert ids(shell.read_rows("out.jsonl")) == list(range(count))
    check_asked_once(server, count)


@needs_sshd
@runs("scp -q prompt.md gpu1: && ssh gpu1 '. ~/.profile; ")
def test_the_key_on_another_host_stays_there(line: str, shell: Shell, hosts: Hosts, server: Server) -> None:
    key = "sk-of-the-other-host"
    server.answer = lambda request: completion({"key": request.headers["authorization"], "m": request.json["model"]})
    profile = f"export OPENAI_API_KEY={key}\nexport OPENAI_BASE_URL={server.url}\n"
    (hosts.home("gpu1") / ".profile").write_text(profile)
    shell.write("data.jsonl", rows([1]))
    run = shell.run(line)
    assert (run.status, run.stderr) == (0, b"")
    assert shell.read_rows("out.jsonl") == [{"id": 1, "key": f"Bearer {key}", "m": "MODEL"}]


@needs_sshd
@runs("ssh -N -L 8000:localhost:8000 gpu1\n")
def test_a_model_on_another_host_is_asked_from_here(line: str, shell: Shell, hosts: Hosts, server: Server) -> None:
    port = free_port(["127.0.0.1"])
    tunnel, ask = line.splitlines()
    shell.write("data.jsonl", rows(range(5)))
    shell.start(tunnel.replace("8000", f"{port}", 1).replace("8000", f"{server.port}", 1))
    wait_listening(port)
    run = shell.run(ask.replace("8000", f"{port}"))
    assert (run.status, run.stderr) == (0, b"")
    assert ids(shell.read_rows("out.jsonl")) == list(range(5))
    assert (shell.cache / "data.mdb").exists()


@needs_sshd
@needs_parallel
@runs("parallel scp -q prompt.md {}: ::: gpu1 gpu2 && ")
def test_parallel_shares_the_work_among_hosts(line: str, shell: Shell, hosts: Hosts, server: Server) -> None:
    count = 400
    shell.write("data.jsonl", fat_rows(count))
    run = shell.run(point_to(server, line))
    assert (run.status, run.stderr) == (0, b"")
    assert ids(shell.read_rows("out.jsonl")) == list(range(count))
    check_asked_once(server, count)
    assert all((hosts.cache(name) / "data.mdb").exists() for name in ("gpu1", "gpu2"))


@needs_sshd
@needs_lmdb
@runs(MERGE)
def test_another_machines_cache_is_taken_where_none_was(line: str, shell: Shell, hosts: Hosts, server: Server) -> None:
    shell.write("data.jsonl", rows(range(10)))
    assert shell.run(point_to(server, find_line(ON_HOST))).status == 0
    run = shell.run(line)
    assert run.status == 0
    assert shell.cache.stat().st_mode & 0o777 == 0o700
    shell.write("data.jsonl", rows(range(12)))
    assert shell.run(point_to(server, HERE)).status == 0
    assert ids(shell.read_rows("out.jsonl")) == list(range(12))
    check_asked_once(server, 12)


@needs_sshd
@needs_lmdb
@runs(MERGE)
def test_another_machines_cache_merges_into_this_one(line: str, shell: Shell, hosts: Hosts, server: Server) -> None:
    def answer(request: Request) -> Response:
        if request.method == "GET":
            return echo(request)
        return completion({"answer": len(server.requests)}, pad="p" * 10_000)

    server.answer = answer
    there, here = point_to(server, find_line(ON_HOST)), point_to(server, HERE)
    shell.write("data.jsonl", rows(range(300)))
    assert shell.run(there).status == 0
    theirs = {row["id"]: row["answer"] for row in shell.read_rows("out.jsonl")}
    shell.write("data.jsonl", rows(range(200, 500)))
    assert shell.run(here).status == 0
    ours = {row["id"]: row["answer"] for row in shell.read_rows("out.jsonl")}
    assert len(asked(server)) == 600
    assert shell.run(line).status == 0
    shell.write("data.jsonl", rows(range(500)))
    assert shell.run(here).status == 0
    found = {row["id"]: row["answer"] for row in shell.read_rows("out.jsonl")}
    assert found == theirs | ours, "what was here stays"
    assert len(asked(server)) == 600
    assert disk_bytes(shell.cache) < 32 << 20, "the map is sparse"


@needs_sshd
@needs_lmdb
@runs(MERGE)
def test_caches_merge_while_they_are_in_use(line: str, shell: Shell, hosts: Hosts, server: Server) -> None:
    shell.write("data.jsonl", rows(range(10)))
    assert shell.run(point_to(server, find_line(ON_HOST))).status == 0
    server.hold(is_from(20))
    command = f"llmfilter -u http://localhost:{server.port}/v1 -m tiny -p prompt.md"
    there, here = (shell.start(f"{how}{command}") for how in ("ssh gpu1 .local/bin/", ""))
    there.write(rows([20]))
    here.write(rows([21]))
    server.wait_for(1 + 12)
    assert shell.run(line).status == 0
    server.release()
    assert (there.finish().status, here.finish(rows(range(10))).status) == (0, 0)
    assert ids(here.rows) == [*range(10), 21]
    assert len(asked(server)) == 12


@runs("mdb_dump ")
@needs_lmdb
def test_two_caches_of_one_machine_become_one(line: str, shell: Shell, server: Server) -> None:
    for folder, ids_there in (("~/other", range(3)), ("~/.cache/llmfilter", range(2, 5))):
        shell.write("data.jsonl", rows(ids_there))
        assert shell.run(f"llmfilter --cache {folder} -p prompt.md < data.jsonl").status == 0
    assert shell.run(line).status == 0
    shell.write("data.jsonl", rows(range(5)))
    assert ids(shell.run("llmfilter -p prompt.md < data.jsonl").rows) == list(range(5))
    assert len(server.requests) == 6


@runs("sbatch ")
def test_a_cluster_shares_one_file_among_the_jobs_of_an_array(line: str, shell: Shell, server: Server) -> None:
    """What stands in for Slurm's sbatch runs the jobs one after the other, each as a script of sh."""
    shell.write_command("sbatch", SBATCH)
    shell.environ["USER"] = f"{os.getpid()}-{shell.folder.name}"
    shell.write("data.jsonl", rows(range(100)))
    run = shell.run(line.replace("/tmp/", f"{shell.folder}/tmp-"))
    assert (run.status, run.stderr) == (0, b"")
    parts = [ids(shell.read_rows(f"out.{each}.jsonl")) for each in range(1, 9)]
    assert all(len(part) > 5 for part in parts)
    assert sorted(each for part in parts for each in part) == list(range(100))
    check_asked_once(server, 100)


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())
