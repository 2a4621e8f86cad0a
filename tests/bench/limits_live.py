"""The real program, on the real clock, at servers with limits; prints a Markdown table.

    python tests/bench/limits_live.py [TREE [CASE …]]

TREE: a checkout of another version to measure (default: this one).
"""

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from server import Response, completion, error
from simulated import Bucket, Fixed, Slots

BURST_S = 0.05  # what was refused so early belongs to the first burst
OK = completion({"a": 1})
HERE = Path(__file__).parents[2]


@dataclass
class Case:
    """A server with limits and a job for it; faults: shares of requests refused by chance, by status."""

    jobs: int
    rows: int
    ideal_s: float
    answer_s: tuple[float, float] = (0.1, 0.1)
    gates: list[Slots | Bucket | Fixed] = field(default_factory=list)
    status: int = 429
    queue: int = 0
    faults: dict[int, float] = field(default_factory=dict)
    outage: tuple[float, float] = (0.0, 0.0)
    hopeless: bytes | None = None
    verdicts: list[tuple[float, bool]] = field(default_factory=list)
    started_at: float = 0.0

    async def reply(self, body: bytes) -> Response:
        """An answer, or a refusal."""
        now = time.monotonic()
        self.started_at = self.started_at or now
        now -= self.started_at
        status = self._refuses(now, body)
        self.verdicts.append((now, status == 200))
        if status != 200:
            return error(status, "no room now")
        for gate in self.gates:
            gate.took(now)
        async with self._workers:
            await asyncio.sleep(random.uniform(*self.answer_s))
        for gate in self.gates:
            gate.leaves()
        return OK

    def __post_init__(self) -> None:
        most = self.gates[0].most(0) - self.queue if self.queue and isinstance(self.gates[0], Slots) else 10**9
        self._workers = asyncio.Semaphore(most)

    def _refuses(self, now: float, body: bytes) -> int:
        if self.outage[0] <= now < self.outage[1] or (self.hopeless and self.hopeless in body):
            return self.status
        if not all(gate.admits(now) for gate in self.gates):
            return self.status
        chance = random.random()
        for status, share in self.faults.items():
            chance -= share
            if chance < 0:
                return status
        return 200


EVEN = (0.1, 0.5)
CASES: dict[str, Callable[[], Case]] = {
    "8 slots, 429": lambda: Case(64, 800, 30, EVEN, [Slots(8)]),
    "8 slots, 503": lambda: Case(64, 800, 30, EVEN, [Slots(8)], 503),
    "50 slots, 503": lambda: Case(400, 4000, 40, (0.2, 0.8), [Slots(50)], 503),
    "8 slots, queue of 16, 503": lambda: Case(128, 800, 30, EVEN, [Slots(24)], 503, queue=16),
    "1 slot, 429": lambda: Case(32, 60, 18, EVEN, [Slots(1)]),
    "200/s": lambda: Case(128, 2000, 10, gates=[Bucket(200, 40)]),
    "50/s, no burst": lambda: Case(64, 1500, 30, (0.02, 0.02), [Bucket(50, 1)]),
    "20 in each 10 s": lambda: Case(32, 60, 20, (0.3, 0.3), [Fixed(20, 10.0)]),
    "chance 5 %": lambda: Case(16, 500, 3.1, faults={429: 0.05}),
    "chance 10 %": lambda: Case(16, 500, 3.1, faults={429: 0.1}),
    "chance 20 %": lambda: Case(16, 300, 1.9, faults={429: 0.2}),
    "27 % in five ways": lambda: Case(16, 600, 3.8, faults={429: 0.1, 500: 0.08, 503: 0.05, 529: 0.02, 408: 0.02}),
    "503 to all for 20 s": lambda: Case(16, 1000, 26, status=503, outage=(3, 23)),
    "500 to all for 20 s": lambda: Case(16, 1000, 26, status=500, outage=(3, 23)),
    "429 to all for the first 5 s": lambda: Case(64, 1000, 10, (0.3, 0.3), outage=(0, 5)),
    "one hopeless row": lambda: Case(16, 4000, 25, hopeless=b'"JSON of 7"'),
}


async def serve(case: Case, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of a connection."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            writer.write((await case.reply(await reader.readexactly(size))).encode())
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def measure(name: str, tree: str) -> str:
    """Return a line of the table."""
    case = CASES[name]()
    server = await asyncio.start_server(lambda *streams: serve(case, *streams), "127.0.0.1", 0, backlog=4096)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "p.md").write_text("JSON of {id}")
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llmfilter", "-p", "p.md", "-m", "m", "-u", url, "-j", str(case.jobs), "--no-cache",
            stdin=-1, stdout=-1, stderr=-1, cwd=folder, env={**os.environ, "PYTHONPATH": str(Path(tree).resolve())},
        )  # fmt: skip
        out, err = await program.communicate(
            b"".join(json.dumps({"id": each}).encode() + b"\n" for each in range(case.rows))
        )
    seconds = time.monotonic() - case.started_at
    later = [is_taken for at, is_taken in case.verdicts if at > BURST_S]
    lost, errors = case.rows - out.count(b"\n"), err.count(b"\n")
    server.close()
    return (f"| {name}, `-j {case.jobs}`, {case.rows} rows | {seconds:.1f} s, ideal {case.ideal_s} s "
            f"| {later.count(False) / max(1, len(later)):.1%} | {lost} | {program.returncode}, {errors} |")  # fmt: skip


def main(tree: str = str(HERE), *names: str) -> None:
    """Print the table."""
    print("| server | time | refused after the first burst | lost | status, lines on stderr |\n|---|---|---|---|---|")
    for name in names or CASES:
        random.seed(5)
        print(asyncio.run(measure(name, tree)), flush=True)


main(*sys.argv[1:])
