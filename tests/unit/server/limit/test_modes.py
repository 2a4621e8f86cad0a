# ruff: noqa: E501
"""judge: which limit it was, by the modes that it goes through, on servers that limit on a virtual clock."""

import itertools
import math
from typing import Any

import pytest
from simulated import Bucket, Case, Fixed, Outcome, Slots, drive, log_normal, oracle_s, run

from llmfilter.server.limit.history import Ticket
from llmfilter.server.limit.judge import AWAY_ROWS, IN_A_ROW, Judge
from llmfilter.server.limit.silence import IDLE_MOST_S
from llmfilter.server.limit.turns import Limit

SHORT, TINY = log_normal(0.3), log_normal(0.05)
# The judge's table; a trial that is followed by a slower one is no change of mode.
ARROWS = {
    "free ceiling", "free trial", "ceiling free", "ceiling trial", "trial pace", "trial ceiling", "trial free", "pace trial", "pace ceiling",
    *(f"{mode} stopped" for mode in ("free", "ceiling", "trial", "pace")),
    "stopped ceiling", "stopped trial",
}  # fmt: skip


class Watched(Limit):
    """A limit that notes the modes it goes through."""

    def __init__(self, case: Case) -> None:
        super().__init__(case.jobs, case.per_s_most)
        self.path = ["free"]

    def _pump(self) -> None:
        self._note()
        super()._pump()
        self._note()

    def _note(self) -> None:
        if self._judge.mode != self.path[-1]:
            self.path.append(self._judge.mode)


def path_of(case: Case) -> list[str]:
    limits: list[Watched] = []

    def make(case: Case) -> Watched:
        limits.append(Watched(case))
        return limits[0]

    outcome = run(drive(case, make))
    assert outcome.rows == case.rows
    return limits[0].path


# A server, the modes that it leads through first, and changes that come later.
PATHS: list[tuple[Case, str, tuple[str, ...]]] = [
    (Case("no limit", list, 64, 500, SHORT), "free", ()),
    (Case("as many as -j", lambda: [Slots(16)], 16, 500, SHORT), "free", ()),
    (Case("so many at a time", lambda: [Slots(8)], 64, 500, SHORT), "free ceiling", ()),
    (Case("all but one", lambda: [Slots(2)], 3, 300, SHORT), "free ceiling", ()),
    (Case("one of two", lambda: [Slots(1)], 2, 200, log_normal(0.02)), "free ceiling", ()),
    (Case("a rate that is asked for slowly", lambda: [Bucket(8, 4)], 32, 400, SHORT, per_s_most=10), "free trial pace", ()),
    (Case("so many a second", lambda: [Bucket(50, 10)], 64, 1500, SHORT), "free ceiling trial pace trial pace", ()),
    (Case("few a minute", lambda: [Fixed(20, 60.0)], 16, 150, SHORT), "free ceiling", ("stopped trial",)),
    (Case("429 first", list, 64, 1000, SHORT, outage=(0, 5), is_reset=False), "free ceiling stopped ceiling free", ()),
    (Case("429 between", list, 64, 3000, SHORT, outage=(5, 15), is_reset=False), "free ceiling", ("ceiling stopped", "stopped ceiling")),
    (Case("gone between", list, 64, 3000, SHORT, outage=(5, 15)), "free stopped ceiling free", ()),
    (Case("a rate, gone between", lambda: [Bucket(50, 10)], 64, 1500, SHORT, outage=(5, 15)), "free ceiling trial pace", ("stopped trial",)),
    (Case("much chance", list, 64, 6000, SHORT, chance=0.2), "free ceiling trial ceiling", ()),
    (Case("chance", list, 16, 3000, SHORT, chance=0.05), "free trial", ("trial free",)),
    (Case("a number and a rate", lambda: [Slots(8), Bucket(100, 20)], 64, 3000, TINY), "free ceiling", ("pace ceiling",)),
    (Case("a rate, gone for long", lambda: [Bucket(50, 10)], 64, 4000, SHORT, outage=(30, 60)), "free ceiling", ("pace stopped",)),
    (Case("a rate, 429 for long", lambda: [Bucket(50, 10)], 64, 4000, SHORT, outage=(30, 60), is_reset=False), "free ceiling", ("trial stopped",)),
    (Case("chance and a number", lambda: [Slots(8)], 64, 2000, SHORT, chance=0.05), "free ceiling", ("ceiling trial", "trial ceiling")),
]  # fmt: skip


def arrows(path: list[str]) -> set[str]:
    return {f"{before} {after}" for before, after in itertools.pairwise(path)}


def test_each_change_of_mode_has_its_line() -> None:
    assert {*itertools.chain(*(arrows(begins.split()) | {*passes} for _, begins, passes in PATHS))} == ARROWS


@pytest.mark.parametrize(
    ("case", "begins", "passes"), PATHS, ids=lambda each: each.name if isinstance(each, Case) else ""
)
def test_the_modes_are_the_tables(case: Case, begins: str, passes: tuple[str, ...]) -> None:
    path = path_of(case)
    assert " ".join(path).startswith(begins)
    assert arrows(path) >= set(passes)
    assert arrows(path) <= ARROWS
    if not passes and begins in ("free", "free ceiling"):
        assert " ".join(path) == begins


@pytest.mark.parametrize("chance", [0.0, 0.005, 0.01, 0.02, 0.05])
@pytest.mark.parametrize(
    ("gate", "jobs", "rows", "answer_s"),
    [
        (lambda: [Slots(1)], 16, 300, SHORT),
        (lambda: [Slots(8)], 64, 1500, SHORT),
        (lambda: [Slots(50)], 256, 5000, SHORT),
        (lambda: [Bucket(50, 10)], 64, 2500, SHORT),
        (lambda: [Bucket(200, 40)], 64, 5000, TINY),
    ],
    ids=["1 at a time", "8 at a time", "50 at a time", "50/s", "200/s"],
)
def test_a_limit_and_chance_do_not_hide_each_other(
    gate: Any, jobs: int, rows: int, answer_s: Any, chance: float
) -> None:
    case = Case("", gate, jobs, rows, answer_s, chance=chance)
    found: Outcome = run(drive(case, lambda case: Limit(case.jobs)))
    assert found.rows == rows
    assert found.refused_share <= 0.05 + chance
    assert found.seconds <= 1.15 * oracle_s(case)


class Script:
    """A judge, and the requests it lets go, one after another."""

    def __init__(self, jobs: int = 64) -> None:
        self.now = 0.0
        self.judge = Judge(jobs, math.inf, 0.0)

    def send(self, count: int = 1, row: object = None) -> list[Ticket]:
        return [self.judge.send(object() if row is None else row, self.now) for _ in range(count)]

    def refuse(self, *tickets: Ticket, is_own: bool = False) -> None:
        for ticket in tickets:
            self.judge.refused(ticket, None, is_own, self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_a_single_refusal_is_chance_and_two_in_a_row_are_a_limit() -> None:
    script = Script()
    tickets = script.send(20)
    script.wait(0.01)
    script.refuse(tickets[12])
    script.refuse(tickets[15])
    assert script.judge.mode == "free"
    script.refuse(tickets[16])
    assert script.judge.mode == "ceiling" and script.judge.found is not None


def test_what_is_one_rows_own_says_nothing_about_the_server() -> None:
    script = Script()
    for _ in range(50):
        script.refuse(*script.send(2), is_own=True)
    assert script.judge.mode == "free" and script.judge.found is None


def test_refusals_one_after_another_stop_everything_but_single_probes() -> None:
    script = Script()
    for _ in range(IN_A_ROW):
        assert script.judge.mode in ("free", "ceiling")
        tickets = script.send(2)
        script.wait(0.01)
        script.refuse(*tickets)
    assert script.judge.mode == "stopped"
    at = script.judge.ready_at(script.now)
    assert script.now < at <= script.now + 0.2
    script.now = at
    script.send()
    assert script.judge.ready_at(script.now) > script.now  # one at a time


def failing(script: Script, rows: list[object], is_unreachable: bool = False, is_own: bool = False) -> str:
    script.judge.answered(script.send()[0], script.now)
    for row in rows:
        script.judge.failed(script.send(row=row)[0], is_own, is_unreachable, script.now)
    return script.judge.mode


@pytest.mark.parametrize(
    ("rows", "is_unreachable", "is_own", "mode"),
    [
        (list(range(AWAY_ROWS)), False, False, "stopped"),
        (list(range(AWAY_ROWS - 1)), False, False, "free"),
        ([1] * 50, False, False, "free"),  # one row fails for ever
        ([1, 2] * 50, False, False, "free"),
        ([1], True, False, "stopped"),  # it can't be the row's fault
        (list(range(50)), False, True, "free"),  # they have failed while others were answered
    ],
)
def test_a_server_is_away_if_several_rows_fail_and_none_is_answered(
    rows: list[object], is_unreachable: bool, is_own: bool, mode: str
) -> None:
    assert failing(Script(), rows, is_unreachable, is_own) == mode


def test_after_an_outage_a_probe_that_hangs_is_followed_by_another_and_any_answer_ends_it() -> None:
    script = Script()
    failing(script, list(range(AWAY_ROWS)))
    probes = []
    for _ in range(3):
        script.now = script.judge.ready_at(script.now)
        assert script.now < 15
        probes += script.send()
    script.judge.answered(probes[1], script.now)
    assert script.judge.mode != "stopped" and not script.judge.is_away


def test_a_probe_of_a_row_that_is_always_refused_does_not_make_the_others_wait() -> None:
    script = Script()
    failing(script, list(range(AWAY_ROWS)))
    script.now = script.judge.ready_at(script.now)
    script.refuse(*script.send(), is_own=True)
    assert script.judge.ready_at(script.now) == script.now


def test_time_with_a_request_under_way_is_not_time_without_an_answer() -> None:
    script = Script()
    for _ in range(3):
        ticket = script.send()[0]
        script.wait(300)
        script.judge.failed(ticket, False, False, script.now)
        script.wait(5)
    assert script.judge.stuck_s(script.now) == 15


def test_time_in_which_nobody_asked_is_not_time_without_an_answer() -> None:
    script = Script()
    script.refuse(*script.send())
    script.wait(3600)
    assert script.judge.stuck_s(script.now) == IDLE_MOST_S
    script.judge.answered(script.send()[0], script.now)
    assert script.judge.stuck_s(script.now) == 0
