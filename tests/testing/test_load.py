import pytest

from kensho.resilience.admission import Priority
from kensho.testing.load import SERVICE_S, STEP_S, Job, Trace, arrivals, brownout, hang, step


def work_s(trace: Trace, begins_s: float, ends_s: float, *, seed: int = 1) -> float:
    return sum(job.service_s for job in arrivals(trace, seed=seed) if begins_s <= job.arrived_s < ends_s)


def test_the_same_seed_gives_the_same_jobs_and_another_one_gives_others() -> None:
    def drawn(seed: int) -> list[tuple[float, float, int]]:
        return [(job.arrived_s, job.service_s, job.steps) for job in arrivals(step(2.0, for_s=5.0), seed=seed)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_a_step_brings_so_many_times_what_its_slots_can_do(slots: int, sigma: float) -> None:
    trace = step(3.0, slots=slots, sigma=sigma, for_s=100.0)
    assert work_s(trace, trace.begins_s, trace.ends_s) / (100.0 * slots) == pytest.approx(3.0, rel=0.15)


def test_a_hang_takes_slots_from_the_capacity_and_none_from_the_load() -> None:
    assert work_s(hang(for_s=300.0), 10.0, 310.0) / (300.0 * 4) == pytest.approx(0.8, rel=0.05)


def test_the_length_of_a_job_says_how_long_it_takes_but_for_its_pace() -> None:
    jobs = [job for job in arrivals(step(2.0, for_s=20.0), seed=1) if job.service_s > SERVICE_S / 2]
    paces = sorted(job.service_s / (job.steps * STEP_S) for job in jobs)
    assert paces[len(paces) // 2] == pytest.approx(1.0, rel=0.02)
    assert paces[len(paces) // 20] == pytest.approx(0.85, rel=0.03)


@pytest.mark.parametrize(("arrived_s", "service_s", "is_possible"), [(5.0, 1.0, True), (5.0, 1.1, False)])
def test_a_job_is_possible_if_it_would_be_in_time_alone(arrived_s: float, service_s: float, is_possible: bool) -> None:
    job = Job(Priority.CRITICAL, arrived_s, arrived_s + 1.0, service_s, 100)
    assert step(10.0).is_possible(job) is is_possible


def test_a_slow_engine_makes_jobs_impossible() -> None:
    job = Job(Priority.CRITICAL, 20.0, 21.0, 0.2, 200)
    assert not brownout().is_possible(job)
    assert step(10.0).is_possible(job)
