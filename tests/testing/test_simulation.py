from collections import deque

import pytest

from kensho.resilience.admission import Priority
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.testing.load import Job, Trace, arrivals, step
from kensho.testing.simulation import KenshoPolicy, Result, Told, possible_s, simulate

HOUR = Trace("an hour on one slot", slots=lambda _: 1, begins_s=0.0, ends_s=3600.0)


class Fifo:
    """Takes everyone, in order."""

    def __init__(self) -> None:
        self.waiting: deque[Job] = deque()

    def offer(self, job: Job, now_s: float) -> None:
        self.waiting.append(job)

    def take(self, now_s: float) -> Job | None:
        return self.waiting.popleft() if self.waiting else None

    def finished(self, job: Job, service_s: float, now_s: float) -> None:
        pass

    def set_slots(self, slots: int) -> None:
        pass


def job(arrived_s: float, service_s: float, *, within_s: float = 1.0) -> Job:
    return Job(Priority.CRITICAL, arrived_s, arrived_s + within_s, service_s, 100)


def heavy(told: Told, load: float = 10.0) -> Result:
    trace = step(load, sigma=1.0, for_s=20.0)
    return simulate(arrivals(trace, seed=2), trace, KenshoPolicy(AdmissionSettings(), told=told))


def test_a_job_longer_than_its_deadline_is_hopeless_work() -> None:
    result = simulate([job(0.0, 2.0), job(10.0, 1.0)], HOUR, Fifo())
    assert (result.hopeless, result.waited, result.late) == (0.5, 0.0, 0.5)
    assert result.served(Priority.CRITICAL) == 0.5
    assert result.served(Priority.CRITICAL, of_possible=True) == 1.0


def test_a_job_that_waited_too_long_is_late_by_waiting() -> None:
    result = simulate([job(0.0, 0.75), job(0.0, 0.75)], HOUR, Fifo())
    assert (result.hopeless, result.waited) == (0.0, 0.25)
    assert result.served(Priority.CRITICAL, of_possible=True) == 0.5


def test_nothing_done_is_nothing_late() -> None:
    result = simulate([], HOUR, Fifo())
    assert (result.late, result.served(Priority.CRITICAL), result.p99_s(Priority.CRITICAL)) == (0.0, 1.0, 0.0)


def test_no_more_work_is_possible_than_the_slots_can_do_nor_than_came() -> None:
    assert possible_s([job(0.0, 0.5), job(0.0, 0.25)], HOUR) == pytest.approx(0.75)
    assert possible_s([job(0.0, 0.75), job(0.0, 0.75)], HOUR) == pytest.approx(1.0)


def test_with_heavy_tails_work_is_late_for_its_length_and_not_for_waiting() -> None:
    result = heavy("nothing")
    assert result.hopeless > 0.01
    assert result.waited <= 0.01
    assert result.served(Priority.CRITICAL, of_possible=True) >= 0.995


@pytest.mark.parametrize("load", [2.0, 10.0])
def test_whoever_is_told_the_length_begins_nothing_in_vain(load: float) -> None:
    result = heavy("length", load)
    assert result.late == 0.0
    assert result.goodput >= 0.95
    assert result.served(Priority.CRITICAL, of_possible=True) >= 0.99


def test_no_more_steps_are_believed_than_recent_jobs_had() -> None:
    """`max_tokens` is a bound and no length: with an idle slot nobody is refused for a large one."""
    policy = KenshoPolicy(AdmissionSettings(), told="most")
    for number in range(30):
        policy.offer(job(number, 0.1), number)
        assert policy.take(number) is not None
        policy.finished(job(number, 0.1), 0.1, number + 0.1)
    wordy = Job(Priority.CRITICAL, 40.0, 41.0, 0.1, 100_000)
    policy.offer(wordy, 40.0)
    assert policy.take(40.0) is wordy
