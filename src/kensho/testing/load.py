"""Requests as they come in bad hours: traces to rehearse overload with, the same for every contestant and seed.

    jobs = arrivals(step(10.0), seed=1)         # 80 % load, then a minute at ten times the capacity
    simulate(jobs, step(10.0), my_policy)       # kensho.testing.simulation

Times are seconds from the beginning of the trace. The mix of classes, their deadlines and the log-normal service of
100 ms on four slots are those of the simulations that the defaults of `resilience.admission` come from.
"""

import math
import random
from collections.abc import Callable

from kensho.base.clock import Seconds
from kensho.base.structs import Struct
from kensho.resilience.admission import Priority

MIX = (5, 15, 50, 30)
"""Percent of the requests that are CRITICAL, HIGH, NORMAL, LOW."""
DEADLINES_S: tuple[Seconds, ...] = (1.0, 1.0, 2.0, 5.0)
SERVICE_S: Seconds = 0.1
STEP_S: Seconds = 0.001
"""Of a job that keeps the usual pace: so that a job has about a hundred steps, as an answer has tokens."""
PACE_SIGMA = 0.1
"""How much the pace differs from job to job (log-normal): who knows a job's steps does not know its time exactly."""
BASE_LOAD = 0.8


class Job(Struct, eq=False):
    """One request. What it takes was drawn beforehand, so that every contestant has the same work to do."""

    priority: Priority
    arrived_s: Seconds
    deadline_s: Seconds
    service_s: Seconds
    """On a slot of ordinary speed."""
    steps: int
    """What whoever asks could know beforehand: its length, though not its pace."""


class Trace(Struct):
    """What happens between `begins_s` and `ends_s`; before and after it the load is `BASE_LOAD`."""

    name: str
    load: Callable[[Seconds], float] = lambda _: BASE_LOAD
    """Arriving work at a moment, as a share of the capacity of ordinary times."""
    slots: Callable[[Seconds], int] = lambda _: 4
    slowness: Callable[[Seconds], float] = lambda _: 1.0
    """How many times longer a job takes that is started at a moment."""
    begins_s: Seconds = 10.0
    ends_s: Seconds = 70.0
    sigma: float = 0.5
    """Of the log-normal service time: 0.5 is ordinary, 1.0 has a heavy tail."""
    lost_at_s: Seconds = float("inf")
    """What runs at this moment is never finished."""

    @property
    def until_s(self) -> Seconds:
        return self.ends_s + 10.0

    def is_inside(self, now_s: Seconds) -> bool:
        return self.begins_s <= now_s < self.ends_s

    def is_possible(self, job: Job) -> bool:
        """Whether the job would be in time if it had a slot to itself from the moment it came."""
        return job.arrived_s + job.service_s * self.slowness(job.arrived_s) <= job.deadline_s


def step(times: float, *, for_s: Seconds = 60.0, sigma: float = 0.5, slots: int = 4) -> Trace:
    """The load jumps to so many times the capacity."""
    ends_s = 10.0 + for_s

    def load(now_s: Seconds) -> float:
        return times if 10.0 <= now_s < ends_s else BASE_LOAD

    return Trace(f"{times:g} x the load", load, slots=lambda _: slots, ends_s=ends_s, sigma=sigma)


def brownout(*, for_s: Seconds = 60.0) -> Trace:
    """Every job takes eight times as long: a throttled GPU. The load is that of ordinary times."""
    ends_s = 10.0 + for_s
    return Trace("brownout, 8 x slower", slowness=lambda t: 8.0 if 10.0 <= t < ends_s else 1.0, ends_s=ends_s)


def hang(*, for_s: Seconds = 300.0) -> Trace:
    """The fast engine hangs, what ran on it is lost; two slots of the slow one are left, half as fast."""
    ends_s = 10.0 + for_s

    def is_hung(now_s: Seconds) -> bool:
        return 10.0 <= now_s < ends_s

    return Trace(
        f"hang of {for_s:g} s",
        slots=lambda t: 2 if is_hung(t) else 4,
        slowness=lambda t: 2.0 if is_hung(t) else 1.0,
        ends_s=ends_s,
        lost_at_s=10.0,
    )


def bursts(*, for_s: Seconds = 60.0) -> Trace:
    """Poisson arrivals, and every ten seconds one second at ten times the capacity."""
    ends_s = 10.0 + for_s

    def load(now_s: Seconds) -> float:
        return 10.0 if 10.0 <= now_s < ends_s and now_s % 10.0 < 1.0 else BASE_LOAD

    return Trace("bursts of 10 x", load, ends_s=ends_s)


def arrivals(trace: Trace, *, seed: int) -> list[Job]:
    """The jobs of a trace, by time of arrival. Poisson, thinned where the load is lower than at its peak; the capacity
    is that of the slots which the trace begins with."""
    rng, pace = random.Random(seed), random.Random(f"pace {seed}")  # noqa: S311  # a load, not a secret
    per_s = trace.slots(0.0) / SERVICE_S
    mu = math.log(SERVICE_S) - trace.sigma**2 / 2  # so that the mean is SERVICE_S for every sigma
    peak = max(trace.load(second / 2) for second in range(int(trace.until_s * 2)))
    jobs: list[Job] = []
    now_s = 0.0
    while (now_s := now_s + rng.expovariate(peak * per_s)) < trace.until_s:
        if rng.random() * peak < trace.load(now_s):
            priority = rng.choices(list(Priority), weights=MIX)[0]
            service_s = rng.lognormvariate(mu, trace.sigma)
            steps = max(1, round(service_s / STEP_S / pace.lognormvariate(0.0, PACE_SIGMA)))
            jobs.append(Job(priority, now_s, now_s + DEADLINES_S[priority], service_s, steps))
    return jobs
