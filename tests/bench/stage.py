"""What the measured programs run on: records, a prompt, servers, and each program's command."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from processes import Command, Failed, Run, Started, free_port, serving

HERE = Path(__file__).resolve().parent
PEERS = HERE.parents[1] / ".venv-bench"
LLMFILTER = Path(sysconfig.get_path("scripts"), "llmfilter")
JOBS = 64
FIRST_VERSION = "cd93440"
NOTHING = Path(os.devnull)

PROMPT = "Classify this review. Answer as JSON with label, score and topics.\n\n{text}\n"
ANSWER = {"label": "positive", "score": 4, "topics": ["price", "service"]}
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": json.dumps(ANSWER)}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 98, "completion_tokens": 21, "total_tokens": 119},
}
WORDS = """
the a service price food great terrible room staff location night we were very not good bad stay breakfast
hotel clean dirty again never always would recommend friendly quiet noisy
"""

NGINX = """
worker_processes 1; daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600; default_type application/json;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; return 200 '{answer}'; }}
}}
"""
WRK = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[{body}]==]
"""


class Missing(Exception):
    """Something has to be installed before this can be measured; the message says how."""


class Stage:
    """A folder for all files, with servers that end with `stack`.

    rounds: how often everything is run (0: each row of the table has its own number); scale: of the
    numbers of records.
    """

    def __init__(self, folder: Path, stack: ExitStack, rounds: int, scale: float) -> None:
        self.folder = folder
        self._stack = stack
        self._rounds = rounds
        self._scale = scale
        self._static_url: str | None = None
        self.prompt = folder / "prompt.md"
        self.prompt.write_text(PROMPT)
        self.environ = {  # nothing of the user's: no key, no proxy, no cache
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks the network for prices when it is imported
        }

    def count(self, rows: int) -> int:
        return max(20, round(rows * self._scale))

    def rounds(self, usual: int) -> int:
        return self._rounds or usual

    def rows(self, count: int, first: int = 0) -> Path:
        """A file of so many records of about 300 bytes, always the same ones."""
        path = self.folder / f"rows-{first}-{count}.jsonl"
        if not path.exists():
            chance, words = random.Random(first), WORDS.split()
            with open(path, "w") as file:
                for number in range(first, first + count):
                    text = " ".join(chance.choices(words, k=38)) + f" #{number}"
                    row = {"id": number, "source": "reviews-2024", "lang": "en", "text": text, "stars": 1 + number % 5}
                    file.write(json.dumps(row) + "\n")
        return path

    def start(self, command: Command, rows: Path = NOTHING, samples: bool = False) -> Started:
        started = Started(command, rows, self.environ, samples)
        self._stack.callback(started.close)
        return started

    def run(self, command: Command, rows: Path = NOTHING, samples: bool = False) -> Run:
        return self.start(command, rows, samples).end()

    def in_turn(self, usual_rounds: int, **programs: Callable[[], Run]) -> dict[str, list[Run]]:
        """Runs programs A B A B …; the runs of each, round by round."""
        runs: dict[str, list[Run]] = {name: [] for name in programs}
        rounds = self.rounds(usual_rounds)
        for number in range(1, rounds + 1):
            for name, program in programs.items():
                self.say(f"{name}, round {number} of {rounds}")
                runs[name].append(program())
        self.say("")
        return runs

    def say(self, what: str) -> None:
        """What is going on, on a terminal."""
        if sys.stderr.isatty():
            print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)

    def llmfilter(self, url: str, *options: str | Path) -> Command:
        return [LLMFILTER, "-m", "m", "-u", url, "-p", self.prompt, *options]

    def first_version(self, url: str, *options: str | Path) -> Command:
        """The same by the first version, as the repository's history has it."""
        folder = self.folder / "first"
        if not folder.exists():
            folder.mkdir()
            unpack = f"git archive {FIRST_VERSION} llmfilter | tar x -C '{folder}'"
            if subprocess.run(unpack, shell=True, cwd=HERE.parents[1], capture_output=True, check=False).returncode:
                raise Missing(f"needs the repository's history ({FIRST_VERSION})")
        program = ["env", f"PYTHONPATH={folder}", sys.executable, "-P", "-m", "llmfilter"]
        return [*program, *self.llmfilter(url, *options)[1:]]

    def naive(self, url: str, jobs: int = JOBS) -> Command:
        return [sys.executable, HERE / "naive.py", url, self.prompt, str(jobs)]

    def filter(
        self, url: str, rows: Path, cache: str, jobs: int = JOBS, is_fresh: bool = False, samples: bool = False
    ) -> Run:
        """llmfilter on a cache (is_fresh: an empty one); sure that every row was answered, and from where."""
        folder, stats = self.folder / cache, self.folder / "stats.json"
        if is_fresh:
            shutil.rmtree(folder, ignore_errors=True)
        command = self.llmfilter(url, "-j", str(jobs), "--cache", folder, "--stats", stats)
        run = self.run(command, rows, samples)
        done = json.loads(stats.read_text())
        if done["answered"] != done["rows"] or done["cached"] != (0 if is_fresh else done["rows"]):
            raise Failed(f"llmfilter did something else: {done}")
        return run

    def static_url(self) -> str:
        """nginx with one answer for everything, from the first call on."""
        if self._static_url is None:
            port, config = free_port(), self.folder / "nginx.conf"
            answer = json.dumps(COMPLETION).replace("\\", "\\\\").replace("'", "\\'")
            config.write_text(NGINX.format(folder=self.folder, port=port, answer=answer))
            command: Command = [tool("nginx", "nginx-light"), "-e", "stderr", "-p", self.folder, "-c", config]
            self._stack.enter_context(serving(command, port))
            self._static_url = url_of(port)
        return self._static_url

    def wrk(self, url: str, connections: int, seconds: int) -> float:
        """Requests a second of a client that costs nearly nothing."""
        program, script = tool("wrk", "wrk"), self.folder / "wrk.lua"
        content = PROMPT.replace("{text}", json.loads(self.rows(1).read_bytes())["text"])
        body = {"model": "m", "messages": [{"role": "user", "content": content}], "temperature": 0}
        script.write_text(WRK.format(body=json.dumps(body)))
        command: Command = [program, "-t1", f"-c{connections}", f"-d{seconds}", "-s", script, f"{url}/chat/completions"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = re.search(r"Requests/sec: *([\d.]+)", said)
        if not found or "Non-2xx" in said:
            raise Failed(f"wrk: {said}")
        return float(found[1])


def slow_server(stack: ExitStack, shortest_s: float, longest_s: float, *slots: int) -> str:
    """The URL of a server whose answers take between so and so long; slots: how many it takes at a time, if limited."""
    port = free_port()
    command: Command = [sys.executable, HERE / "slow_server.py", *map(str, (port, shortest_s, longest_s, *slots))]
    stack.enter_context(serving(command, port))
    return url_of(port)


def url_of(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


def tool(name: str, package: str) -> str:
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")  # where nginx is, and users' PATHs aren't
    if not path:
        raise Missing(f"needs: apt install {package}")
    return path


def peer_python(stage: Stage, name: str, packages: list[str]) -> Path:
    """The Python of a peer's own environment, which is made first where it is not there."""
    folder = PEERS / name
    python, log = folder / "bin" / "python", stage.folder / "install.log"
    stage.say(f"installing {', '.join(packages)} in {folder}")
    with open(log, "wb") as said:
        commands: list[Command] = [[python, "-m", "pip", "install", *packages]]
        if not python.exists():
            commands.insert(0, [sys.executable, "-m", "venv", "--upgrade-deps", folder])
        for command in commands:
            if subprocess.run(command, stdout=said, stderr=said, check=False).returncode:
                reason = log.read_text().strip().rpartition("\n")[2]
                raise Missing(f"can't install {name}: {reason} (or remove {folder}, and try again)")
    return python
