"""attempts: when a row is sent again, and when it is given up."""

import pytest

from llmfilter.errors import LATE_S, Retryable
from llmfilter.modes.attempts import PAUSE_FIRST_S, PAUSE_MOST_S, Attempts, pause_s


def refusal(after_s: float | None = None) -> Retryable:
    fault = Retryable("http", "HTTP 429: too large", status=429)
    fault.is_refusal, fault.after_s = True, after_s
    return fault


def failure(kind: str = "http") -> Retryable:
    return Retryable(kind, "HTTP 500: down")


@pytest.mark.parametrize(
    ("answers", "is_alone", "given_up_at"),
    [
        ([0, 2, 4, 6, 8, 10, 12], False, 6),
        ([0, 100, 100, 100, 100, 100, 100], False, 6),
        ([0, 0, 0, 0, 0, 9, 10, 10], False, 7),  # others are still under way
        ([0, 0, 0, 0, 0, 1, 1], True, 6),  # all others are done
        ([5, 5, 5, 5, 5, 5, 5, 5, 5], True, None),  # nothing else is answered: it may be the server
    ],
)
def test_a_row_refused_six_times_while_others_are_answered_is_given_up(
    answers: list[int], is_alone: bool, given_up_at: int | None
) -> None:
    attempts = Attempts(retries=0)
    waits = [attempts.after(refusal(), False, is_alone, 0.0, count, 0.5) for count in answers]
    assert (waits.index(None) + 1 if None in waits else None) == given_up_at


def test_rows_that_are_left_alone_are_given_up_when_a_window_of_a_minute_must_have_begun_anew() -> None:
    attempts = Attempts(retries=0)
    assert attempts.after(refusal(), False, False, 0.0, 7, 0.5)
    assert attempts.after(refusal(), True, False, 100.0, 8, 0.5)  # others wait, and are refused too
    assert attempts.after(refusal(), True, True, 74.0, 8, 0.5)
    assert attempts.after(refusal(), True, True, 75.0, 8, 0.5) is None


def test_what_everybody_meets_is_not_held_against_a_row() -> None:
    attempts = Attempts(retries=2)
    assert all(attempts.after(refusal(), True, True, 0.0, 100 * n, 0.5) for n in range(20))
    assert all(attempts.after(failure(), True, True, 0.0, 2000, 0.5) for _ in range(20))
    assert not attempts.is_own_fault(10_000)
    waits = [attempts.after(failure(), False, True, 0.0, 2000, 0.5) for _ in range(3)]
    assert [wait is None for wait in waits] == [False, False, True]


def test_a_timeout_is_a_failure_of_the_row_whatever_the_server_does() -> None:
    attempts = Attempts(retries=1)
    assert attempts.after(failure("timeout"), True, False, 0.0, 0, 0.5)
    assert attempts.after(failure("timeout"), True, False, 0.0, 0, 0.5) is None


def test_only_the_first_two_times_tell_something_about_the_server_if_others_are_answered() -> None:
    attempts = Attempts(retries=5)
    told = []
    for answers, fault in ((7, failure()), (8, refusal()), (9, failure()), (10, refusal())):
        told.append(attempts.is_own_fault(answers))
        attempts.after(fault, False, False, 0.0, answers, 0.5)
    assert told == [False, False, True, True]
    assert not Attempts(retries=5).is_own_fault(100)


def test_what_is_a_rows_own_fault_counts_even_while_the_server_takes_nothing() -> None:
    attempts = Attempts(retries=3)
    waits = [attempts.after(failure(), n > 1, False, 0.0, n, 0.5) for n in range(4)]
    assert [wait is None for wait in waits] == [False, False, False, True]


@pytest.mark.parametrize(
    ("retries", "took_s", "sent"),
    [
        (5, [LATE_S] * 9, 2),
        (5, [LATE_S - 1] * 9, 6),
        (5, [LATE_S - 1, LATE_S, LATE_S - 1, LATE_S], 4),
        (0, [LATE_S] * 9, 1),
    ],
)
def test_a_long_wait_for_nothing_is_paid_twice_at_most(retries: int, took_s: list[float], sent: int) -> None:
    attempts = Attempts(retries)
    waits = []
    for each in took_s:
        waits.append(attempts.after(failure("timeout").but(overdue_s=each), False, False, 0.0, 0, 0.5))
    assert waits.index(None) + 1 == sent


def test_another_request_of_a_row_begins_with_all_its_retries() -> None:
    attempts = Attempts(retries=1)
    assert attempts.after(failure(), False, False, 0.0, 0, 0.5)
    attempts.forget_failures()
    assert attempts.after(failure(), False, False, 0.0, 0, 0.5)
    assert attempts.after(failure(), False, False, 0.0, 0, 0.5) is None


@pytest.mark.parametrize(("refusals", "most_s"), [(1, PAUSE_FIRST_S), (2, 0.5), (3, 1.0), (6, 8.0), (9, PAUSE_MOST_S)])
@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_a_refused_row_waits_twice_as_long_each_time(refusals: int, most_s: float, jitter: float) -> None:
    assert most_s / 2 <= pause_s(None, refusals, jitter) <= most_s


@pytest.mark.parametrize("jitter", [0.0, 0.999])
def test_a_row_waits_as_long_as_the_server_asks_but_never_less_than_its_own_pause(jitter: float) -> None:
    assert pause_s(30.0, 1, 0) == 30.0
    assert 30.0 <= pause_s(30.0, 1, jitter) <= 33.0
    assert pause_s(0.0, 1, jitter) >= PAUSE_FIRST_S / 2
    assert pause_s(0.0, 7, jitter) >= PAUSE_MOST_S / 2
