"""A bug in llmfilter ends the run with status 70 and one line that says so; what is in flight is still stored."""

import sys

import pytest
from program import ASK, Programs, rows
from server import Server

# Breaks a place for the row whose id is `bug`.
LAUNCHER = """\
import sys
import llmfilter.cache.replay, llmfilter.cache.store, llmfilter.cli, llmfilter.input.request
import llmfilter.output.writer, llmfilter.pipeline
from llmfilter.answers.checks import Checks

def spoil(place, name, is_meant):
    sound = getattr(place, name)
    def spoilt(*args):
        if is_meant(*args):
            raise ZeroDivisionError("of a test")
        return sound(*args)
    setattr(place, name, spoilt)

%s
llmfilter.pipeline._BUG_S = 1.0
sys.exit(llmfilter.cli.main())
"""
PLACES = {
    "request": "spoil(llmfilter.input.request.Prompt, 'bodies', lambda _, records, *rest: records[0] == {'id': 'bug'})",
    "look-up": "spoil(llmfilter.cache.replay.Replay, 'outcomes', lambda _, rows, *rest: rows[0][2] == {'id': 'bug'})",
    "answer": "spoil(Checks, 'judge', lambda _, content, fault: 'bug' in content)",
    "line": "spoil(llmfilter.cache.replay.Replay, 'join', lambda _, number, raw, *rest: b'bug' in raw)",
    "written": "llmfilter.output.writer.write_now = lambda fd, lines: None\n"
    "spoil(llmfilter.output.writer.Writer, '_written', lambda writer, batch, error: b'bug' in batch[0][1])",
    "stored": "spoil(llmfilter.cache.store.Cache, '_committed', lambda cache, batch, error: b'bug' in batch[0][1])",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_bug_ends_the_run_with_70_and_what_is_in_flight_is_stored(
    program: Programs, server: Server, place: str
) -> None:
    server.hold(lambda request: request.prompt != "bug")
    launcher = program.write("launch.py", LAUNCHER % PLACES[place])
    run = program.start(*ASK, "-j", "4", command=[sys.executable, launcher])
    run.write(rows([1, 2, 3]))
    server.wait_for(3)
    run.write(rows(["bug"]))
    run.wait_asleep(server.thread_id)
    server.release()
    run.finish()
    assert run.status == 70
    assert len(run.said) == 1
    assert "a bug in llmfilter, please report it with this line: ZeroDivisionError: of a test in " in run.said[0]
    assert f"the first unfinished line is {5 if place == 'written' else 4} " in run.said[0]
    server.requests.clear()
    again = program.run(*ASK, "-k", input=rows([1, 2, 3, "bug"]))
    assert again.status == 0 and len(again.lines) == 4
    assert set(server.prompts) <= {"bug"}
