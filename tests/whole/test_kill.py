"""SIGKILL at any moment costs at most the requests that were in flight."""

import random

from program import ASK, Programs, rows
from server import Server

ROUNDS = 20
ROWS = 5000
JOBS = 16


def test_20_kills_repeat_at_most_what_was_in_flight(server: Server, program: Programs) -> None:
    rng = random.Random(20)
    everything = rows(range(ROWS))
    program.write("in.jsonl", everything)
    printed: set[bytes] = set()
    for done in sorted(rng.sample(range(ROWS), ROUNDS)):
        before = len(server.requests)
        with (program.folder / "in.jsonl").open("rb") as stdin:
            run = program.start(*ASK, "-j", str(JOBS), stdin=stdin.fileno())
        run.read_lines(done)
        run.kill()
        again = {b'{"id":%b,"echo":"%b"}' % (each.encode(), each.encode()) for each in server.prompts[before:]}
        assert printed.isdisjoint(again)
        printed |= set(run.lines)
        assert len(server.requests) - len(set(server.prompts)) <= JOBS * len(program.runs)
    last = program.run(*ASK, input=everything)
    assert last.status == 0
    assert sorted(row["id"] for row in last.rows) == list(range(ROWS))
    assert printed <= set(last.lines)
    assert len(server.requests) <= ROWS + ROUNDS * JOBS
