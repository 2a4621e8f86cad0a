"""history, ceiling, pace, trial, blame, probing, chance: each idea of the limit alone, as tables."""

import itertools
import math
import random

import pytest

from llmfilter.server.limit.blame import FADES_BY, Blame
from llmfilter.server.limit.ceiling import OWED, SILENT_S, Ceiling
from llmfilter.server.limit.chance import Chance
from llmfilter.server.limit.history import KEPT, History, Ticket
from llmfilter.server.limit.pace import Pace
from llmfilter.server.limit.probing import AFTER_MOST_S, AWAY, AWAY_MOST_S, FULL, HANGS_S, WINDOW, Probing
from llmfilter.server.limit.trial import MOST, SLACK, TRIAL, TRIAL_UNSURE, Faster, Trial

SETTLE_S = 0.1


def ticket(number: int, ahead: int = 0, refused: int = 0, sent_at: float = 0.0) -> Ticket:
    return Ticket(None, number, sent_at, ahead, refused)


# History


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("most", "burst"), [(8, 64), (1, 16), (50, 50)])
def test_what_a_server_held_is_known_however_refusals_overtake_each_other(most: int, burst: int, seed: int) -> None:
    history = History()
    tickets = [ticket(number, ahead=number) for number in range(burst)]
    refused = tickets[most:]
    random.Random(seed).shuffle(refused)
    for each in refused:
        history.add(each.number)
    assert all(history.held(each) == most for each in refused)


@pytest.mark.parametrize(
    ("refused", "number", "run"),
    [([5], 5, 1), ([5, 7], 7, 1), ([5, 6], 5, 2), ([6, 5], 6, 2), ([7, 5, 6], 5, 3), ([4, 5, 7, 8, 9], 8, 3)],
)
def test_refusals_in_a_row_are_known_by_their_numbers(refused: list[int], number: int, run: int) -> None:
    history = History()
    for each in refused:
        history.add(each)
    assert history.run(number) == run
    assert history.count(5, 8) == sum(5 <= each < 8 for each in refused)


def test_old_refusals_are_forgotten_and_the_count_stays_exact() -> None:
    history = History()
    for number in range(3 * KEPT):
        history.add(number)
    assert history.held(ticket(3 * KEPT + 5, ahead=12, refused=3 * KEPT - 4)) == 8


# Ceiling


def test_a_ceiling_is_what_was_held_and_every_further_refusal_of_the_burst_corrects_it() -> None:
    ceiling = Ceiling()
    ceiling.cut(held=40, in_flight=20, now=0.0)
    assert ceiling.most == ceiling.sure == 40
    ceiling.lower(held=8, in_flight=12)
    ceiling.lower(held=30, in_flight=8)
    assert ceiling.most == 12


def test_nothing_held_still_leaves_one() -> None:
    ceiling = Ceiling()
    ceiling.cut(held=0, in_flight=0, now=0.0)
    assert ceiling.most == 1


def test_what_is_added_doubles_until_it_is_refused_and_a_refused_probe_has_to_be_earned_anew() -> None:
    ceiling, now, tried = Ceiling(), 0.0, []
    ceiling.cut(8, 8, now)
    for _ in range(4):
        now = ceiling.probe_at(now, SETTLE_S, now, now)
        ceiling.probe(now)
        tried.append((ceiling.sure, ceiling.most))
    assert tried == [(8, 9), (9, 11), (11, 15), (15, 23)]
    ceiling.cut(held=16, in_flight=16, now=now)
    for _ in range(OWED - 1):
        ceiling.pay()
    assert ceiling.probe_at(now, SETTLE_S, now, now) == now + SILENT_S  # only if no answer comes for so long
    ceiling.pay()
    assert ceiling.probe_at(now, SETTLE_S, now, now) == now + SETTLE_S


def test_a_probe_keeps_its_distance_from_the_request_before() -> None:
    ceiling = Ceiling()
    ceiling.cut(1, 1, 0.0)
    for _ in range(10):
        ceiling.pay()
    assert ceiling.probe_at(10.0, SETTLE_S, 10.0, 9.0) == 10.5  # half of a second between two answers


def test_while_what_is_in_flight_hangs_probes_are_sent_twice_as_rarely_each_time() -> None:
    ceiling, now, waits = Ceiling(), 0.0, []
    ceiling.cut(4, 4, now)
    ceiling.cut(4, 4, now)
    for _ in range(3):
        at = ceiling.probe_at(now, SETTLE_S, 0.0, 0.0)
        waits.append(at - now)
        now = at
        ceiling.probe(now)
        ceiling.cut(4, 4, now)
    assert waits == [SILENT_S, 2 * SILENT_S, 4 * SILENT_S]


# Pace


def refused(*numbers: int) -> "object":
    return lambda first, end: sum(first <= each < end for each in numbers)


@pytest.mark.parametrize(
    ("marks", "numbers", "rate"),
    [
        ([(0.0, 0)], [], 10.0),
        ([(0.0, 0)], range(0, 100, 2), 5.0),  # half of them were refused
        ([(0.0, 0), (8.0, 50)], [], 25.0),  # since the last mark
        ([(0.0, 0), (9.9, 95)], [], 10.0),  # which is too near
        ([(9.9, 95)], [], None),
    ],
)
def test_a_rate_is_what_was_taken_between_two_refusals(
    marks: list[tuple[float, int]], numbers: list[int], rate: float | None
) -> None:
    pace = Pace()
    for mark in marks:
        pace.mark(*mark)
    assert pace.measure(10.0, 100, refused(*numbers), 0) == rate  # type: ignore[arg-type]
    assert pace.measure(10.0, 100, refused(*numbers), 101) is None  # type: ignore[arg-type]


# Trial


def test_a_trial_is_judged_when_the_refusals_of_its_requests_have_been_heard() -> None:
    trial = Trial(5.0, 7, TRIAL_UNSURE, 100.0)
    for number in range(7, 7 + TRIAL_UNSURE + 1):
        assert trial.over_at(SETTLE_S) == math.inf
        trial.sent(5 + (number - 7) / 98, number)
    assert trial.over_at(SETTLE_S) == 5 + TRIAL_UNSURE / 98 + SETTLE_S
    share = trial.share(refused(6, 7, 8, 26, 27))  # type: ignore[arg-type]
    assert (trial.count, share) == (20, 3 / 20) and trial.taken_per_s(share) == pytest.approx(17 / 20 * 98)


def test_a_short_trial_can_be_made_a_whole_one() -> None:
    trial = Trial(0.0, 0, TRIAL_UNSURE, 100.0)
    assert trial.is_short
    trial.prolong(1.0, 30)
    assert not trial.is_short and trial.over_at(0.0) == math.inf
    trial.sent(2.0, TRIAL)
    assert trial.over_at(0.0) == 2.0


@pytest.mark.parametrize(
    ("share", "share_before", "chance", "shows"),
    [
        (0.0, 0.0, 0.0, "rate"),
        (SLACK, 0.0, 0.0, "rate"),
        (SLACK + 0.01, 0.0, 0.0, "neither"),
        (SLACK + 0.01, 0.0, 0.01, "rate"),
        (0.2, 0.0, 0.0, "neither"),
        (0.05, 0.1, 0.0, "chance"),
        (0.04, 0.1, 0.0, "neither"),
        (0.0, 0.1, 0.0, "rate"),
    ],
)
def test_a_trial_shows_chance_where_hardly_less_is_refused_than_before_and_a_rate_where_nothing_else_is(
    share: float, share_before: float, chance: float, shows: str
) -> None:
    trial = Trial(0.0, 0, 10 * MOST, 10.0, Faster(share_before, 12.0))
    assert trial.count == MOST
    found = "chance" if trial.shows_chance(share) else "rate" if trial.shows_rate(share, chance) else "neither"
    assert found == shows


# Blame


def test_refusals_with_as_many_in_flight_as_were_borne_speak_of_a_number_and_others_of_a_rate() -> None:
    blame, history = Blame(), History()
    assert not blame.is_number and not blame.is_rate and blame.is_rather_number
    blame.answered(ticket(0, ahead=7), math.inf, SETTLE_S, history, 0.0)
    assert blame.borne == 0  # a refusal of one that was sent before may still be heard
    blame.answered(ticket(1, ahead=3, sent_at=1.0), math.inf, SETTLE_S, history, 1.0)
    assert blame.borne == 8
    assert [blame.is_full(held) for held in (0, 7, 8, 9)] == [False, False, True, True]
    blame.weigh(8)
    blame.weigh(8)
    assert blame.is_number and blame.is_rather_number
    for _ in range(3):
        blame.weigh(2)
    assert blame.is_rate and not blame.is_rather_number


def test_with_nothing_in_flight_one_refusal_is_enough() -> None:
    blame = Blame()
    blame.weigh(0)
    assert blame.is_rate


def test_what_was_borne_above_the_ceiling_fades_and_an_outage_ends_it() -> None:
    blame, history = Blame(), History()
    blame.answered(ticket(0, ahead=99), math.inf, 0.0, history, 1.0)
    blame.answered(ticket(1), 50.0, 0.0, history, 1.0)
    assert blame.borne == 100 - 50 / FADES_BY
    blame.restart(5)
    blame.answered(ticket(4, ahead=99), 50.0, 0.0, history, 1.0)
    assert blame.borne == 0


# Pace: up and up


def test_a_pace_goes_up_from_what_chance_leaves_in_steps_that_double() -> None:
    pace, now, number = Pace(), 0.0, 0
    pace.rise(90.0, 0.1, now, number)
    steps = [pace.per_s]
    for _ in range(5):
        assert pace.raise_at(number) == math.inf  # it was not tried yet
        number += 4
        now = pace.raise_at(number)
        pace.raise_once(now, number)
        assert pace.clean == steps[-1]
        steps.append(pace.per_s)
    assert steps[0] == pytest.approx(98)
    assert [later / before - 1 for before, later in itertools.pairwise(steps)] == pytest.approx(
        [0.02, 0.04, 0.08, 0.16, 0.25]
    )


# Probing


@pytest.mark.parametrize(
    ("cause", "pauses"),
    [
        (FULL, [0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5]),
        (WINDOW, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]),
        (AWAY, [0.1, 0.2, 0.4, 0.8, 1.6, AWAY_MOST_S, AWAY_MOST_S]),
    ],
)
def test_pauses_between_probes_double(cause: str, pauses: list[float]) -> None:
    probing, now, found = Probing(0.0, 0, cause), 0.0, []
    for _ in pauses:
        found.append(probing.ready_at(now) - now)
        now = probing.ready_at(now)
        probing.sent(now)
        probing.failed(now)
    assert found == pytest.approx(pauses)


def test_a_long_outage_is_probed_more_rarely() -> None:
    probing, now = Probing(0.0, 0), 300.0
    for _ in range(10):
        probing.failed(now)
    assert probing.ready_at(now) - now == 20  # a fifteenth of it


@pytest.mark.parametrize(("after_s", "wait_s"), [(0.0, 0.1), (5.0, 5.0), (500.0, AFTER_MOST_S)])
def test_what_the_server_asks_for_replaces_the_pause(after_s: float, wait_s: float) -> None:
    probing = Probing(0.0, 0, after_s=after_s)
    assert probing.ready_at(0.0) == wait_s
    probing.failed(100.0, after_s)
    assert probing.ready_at(100.0) == 100 + wait_s


def test_a_probe_that_hangs_is_followed_by_another() -> None:
    away, full = (Probing(0.0, 0, cause) for cause in (AWAY, FULL))
    for probing in (away, full):
        probing.sent(1.0)
    assert away.ready_at(1.0) == 1 + HANGS_S and away.survived_at(0.1) == math.inf
    assert full.survived_at(0.1) == 1.1  # not refused in the time that refusals take: it was taken


# Chance


@pytest.mark.parametrize(
    ("share", "run", "explains"),
    [
        (0.0, 1, True),
        (0.0, 2, False),
        (0.05, 2, False),
        (0.1, 2, True),
        (0.1, 3, False),
        (0.2, 3, True),
        (0.2, 4, False),
    ],
)
def test_a_run_of_refusals_may_be_chance_if_chance_is_frequent(share: float, run: int, explains: bool) -> None:
    chance = Chance()
    chance.set(share)
    assert chance.explains_run(run) is explains


@pytest.mark.parametrize(
    ("share", "every", "alarm"),
    [(0.0, 1000, False), (0.0, 200, False), (0.0, 20, True), (0.02, 50, False), (0.05, 20, False), (0.05, 5, True)],
)
def test_more_refusals_than_the_share_explains_raise_an_alarm(share: float, every: int, alarm: bool) -> None:
    chance = Chance()
    chance.set(share)
    explained = [chance.explains(ticket(number)) for number in range(0, 20_000, every)]
    assert all(explained) is not alarm


def test_a_share_is_learned_slowly_and_never_beyond_what_chance_can_be() -> None:
    chance = Chance()
    chance.learn(0.2, 60)
    assert 0.05 < chance.share < 0.1
    for _ in range(50):
        chance.learn(0.9, 60)
    assert chance.share == pytest.approx(0.4)


def test_an_alarm_knows_what_was_refused_since_the_first_refusal_in_excess() -> None:
    chance = Chance()
    for number in (0, 500, 510, 515, 519):
        chance.explains(ticket(number))
    assert chance.first.number == 500
    assert chance.stretch == 4 / 20
    chance.forgive(600)
    assert chance.excess(700) == 0
