"""Overload in virtual time: a queue policy gets the jobs of a trace and a few slots; what came of them is counted.

    result = simulate(arrivals(trace, seed=1), trace, KenshoPolicy(AdmissionSettings()))
    result.goodput, result.served(Priority.CRITICAL), result.late

Another policy is a class with the four methods of `Policy`. A minute at ten times the load takes about a second.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Literal, Protocol

from kensho.base.clock import Seconds
from kensho.base.structs import Struct, field
from kensho.resilience.admission import AdmissionQueue, Candidate, Estimate, Priority
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.estimate import ONE, AnswerLengths, RecentTimes, Times, Work
from kensho.testing.load import Job, Trace
from kensho.testing.play import p99


class Policy(Protocol):
    """Who waits and who goes next. Jobs that a policy drops are simply never given out."""

    def offer(self, job: Job, now_s: Seconds) -> None: ...

    def take(self, now_s: Seconds) -> Job | None:
        """A slot is free: the next job, or None if none waits."""
        ...

    def finished(self, job: Job, service_s: Seconds, now_s: Seconds) -> None:
        """The slot is free again, after having been held for `service_s`."""
        ...

    def set_slots(self, slots: int) -> None: ...


Told = Literal["nothing", "most", "length"]


class KenshoPolicy:
    """The product's queue and its estimate, as the scheduler uses them.

    What it is told of a job's length: "nothing", so that one job is like another and the time of a whole one is learnt,
    as for a tensor request; "most", the most steps that it may have, of which no more are believed than recent jobs had
    (`life.Life`, for a whole answer with `max_tokens`); or "length", the steps that it will have. Of the latter two the
    time of a step is learnt.
    """

    def __init__(self, settings: AdmissionSettings, *, told: Told = "nothing") -> None:
        self._queue = AdmissionQueue(settings)
        self._told = told
        self._jobs: dict[int, Job] = {}
        self._services = RecentTimes()
        self._steps = RecentTimes()
        self._lengths = AnswerLengths()
        self._slots = 1
        self._estimate = Estimate()

    def offer(self, job: Job, now_s: Seconds) -> None:
        ticket, refused = self._queue.offer(
            job.priority, job.deadline_s, now_s, self._estimate, work=self._work(job, now_s)
        )
        self._jobs[ticket.number] = job
        for one in refused:
            del self._jobs[one.ticket.number]

    def take(self, now_s: Seconds) -> Job | None:
        ticket, refused = self._queue.take(now_s, self._estimate)
        for one in refused:
            del self._jobs[one.ticket.number]
        return None if ticket is None else self._jobs.pop(ticket.number)

    def finished(self, job: Job, service_s: Seconds, now_s: Seconds) -> None:
        self._services.add(service_s, now_s)
        if now_s < job.deadline_s:  # one that was cut has not shown its pace
            self._steps.add(service_s / job.steps, now_s)
            self._lengths.ended(job.steps, job.steps, now_s)
        learnt = self._services if self._told == "nothing" else self._steps
        times, medians = (Times(((1, seconds),), seconds) for seconds in (learnt.p95(now_s), learnt.median(now_s)))
        mean_s, p95_s = self._services.mean(now_s), self._services.p95(now_s)
        self._estimate = Estimate((Candidate("", times, medians),), mean_s, p95_s, self._slots)

    def set_slots(self, slots: int) -> None:
        self._slots = slots

    def _work(self, job: Job, now_s: Seconds) -> Work:
        if self._told == "nothing":
            return ONE
        if self._told == "length":
            return Work(steps=job.steps - 1)
        return self._lengths.work(1, job.steps, 0, now_s, by_median=job.priority is Priority.CRITICAL)


class Result(Struct, kw_only=True):
    """Counted over the jobs that arrived while the trace was at its worst."""

    goodput: float
    """Work finished in time, as a share of what nobody could exceed (see `possible_s`)."""
    hopeless: float
    """Work on jobs that were too long for their deadline (`Trace.is_possible`), as a share of all work: late wherever
    they are begun, by whoever does not know their length."""
    waited: float
    """Work on the other jobs that were late: they waited too long, as a share of all work."""
    came: Counter[Priority] = field(factory=Counter)
    possible: Counter[Priority] = field(factory=Counter)
    """Of those that came."""
    in_time: Counter[Priority] = field(factory=Counter)
    waits_s: dict[Priority, list[Seconds]] = field(factory=dict)
    """From arrival to end, of those in time."""

    @property
    def late(self) -> float:
        """Work on jobs that were not in time, as a share of all work."""
        return self.hopeless + self.waited

    def served(self, priority: Priority, *, of_possible: bool = False) -> float:
        """Share of the class that was answered in time; 1 if none came. `of_possible`: of those that are possible."""
        came = (self.possible if of_possible else self.came)[priority]
        return self.in_time[priority] / came if came else 1.0

    def p99_s(self, priority: Priority) -> Seconds:
        return p99(self.waits_s.get(priority, ()))


def simulate(jobs: Sequence[Job], trace: Trace, policy: Policy) -> Result:
    """Run the jobs through the policy. Deterministic.

    A running job is cut at its deadline, whoever the policy is: its client has gone.
    """
    running: list[tuple[Seconds, int, Seconds, Seconds, Job]] = []  # end, number, start, service, job
    came: Counter[Priority] = Counter()
    possible: Counter[Priority] = Counter()
    in_time: Counter[Priority] = Counter()
    waits_s: dict[Priority, list[Seconds]] = {p: [] for p in Priority}
    good_s = hopeless_s = waited_s = 0.0
    number = 0
    lost_at_s = trace.lost_at_s
    for index in range(len(jobs) + 1):
        until_s = jobs[index].arrived_s if index < len(jobs) else float("inf")
        while running and running[0][0] <= until_s:
            ends_s, _, began_s, service_s, job = heapq.heappop(running)
            if not began_s < lost_at_s <= ends_s:
                policy.finished(job, ends_s - began_s, ends_s)
                share = _overlap(began_s, ends_s, trace)
                is_in_time = began_s + service_s <= job.deadline_s
                if is_in_time:
                    good_s += share
                elif trace.is_possible(job):
                    waited_s += share
                else:
                    hopeless_s += share
                if is_in_time and trace.is_inside(job.arrived_s):
                    in_time[job.priority] += 1
                    waits_s[job.priority].append(ends_s - job.arrived_s)
            number = _fill(running, policy, trace, ends_s, number)
        if index < len(jobs):
            job = jobs[index]
            came[job.priority] += trace.is_inside(job.arrived_s)
            possible[job.priority] += trace.is_inside(job.arrived_s) and trace.is_possible(job)
            policy.set_slots(trace.slots(job.arrived_s))
            policy.offer(job, job.arrived_s)
            number = _fill(running, policy, trace, job.arrived_s, number)
    done_s, most_s = good_s + hopeless_s + waited_s, possible_s(jobs, trace)
    return Result(
        goodput=good_s / most_s if most_s else 1.0,
        hopeless=hopeless_s / done_s if done_s else 0.0,
        waited=waited_s / done_s if done_s else 0.0,
        came=came,
        possible=possible,
        in_time=in_time,
        waits_s=waits_s,
    )


def possible_s(jobs: Sequence[Job], trace: Trace) -> Seconds:
    """Slot-seconds of work that could be in time while the trace is at its worst: a bound that no policy exceeds.

    A fluid server that may split and interrupt jobs, does the one with the nearest deadline first, drops what is late
    and counts what it did of it. Under steady overload it is what the slots can do; for bursts it is a loose bound.
    """
    waiting: list[tuple[Seconds, int, Seconds]] = []  # deadline, number, work left in ordinary slot-seconds
    done_s = now_s = 0.0
    for number in range(len(jobs) + 1):
        until_s = jobs[number].arrived_s if number < len(jobs) else trace.until_s
        while waiting and now_s < until_s:
            deadline_s, index, left_s = waiting[0]
            slots, slowness = trace.slots(now_s), trace.slowness(now_s)
            ends_s = min(until_s, deadline_s, now_s + left_s * slowness / slots)
            if ends_s > now_s:
                done_s += _overlap(now_s, ends_s, trace) * slots
            if ends_s >= deadline_s or ends_s < until_s:
                heapq.heappop(waiting)
            else:
                heapq.heapreplace(waiting, (deadline_s, index, left_s - (ends_s - now_s) * slots / slowness))
            now_s = max(now_s, ends_s)
        now_s = max(now_s, until_s)
        if number < len(jobs):
            heapq.heappush(waiting, (jobs[number].deadline_s, number, jobs[number].service_s))
    return done_s


def _fill(
    running: list[tuple[Seconds, int, Seconds, Seconds, Job]],
    policy: Policy,
    trace: Trace,
    now_s: Seconds,
    number: int,
) -> int:
    while len(running) < trace.slots(now_s) and (job := policy.take(now_s)) is not None:
        service_s = job.service_s * trace.slowness(now_s)
        ends_s = max(now_s, min(now_s + service_s, job.deadline_s))
        heapq.heappush(running, (ends_s, number, now_s, service_s, job))
        number += 1
    return number


def _overlap(began_s: Seconds, ends_s: Seconds, trace: Trace) -> Seconds:
    """How much of this work was done while the trace was at its worst."""
    return max(0.0, min(ends_s, trace.ends_s) - max(began_s, trace.begins_s))
