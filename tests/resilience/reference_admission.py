"""Admission written a second time, from its rules alone and as plainly as possible: lists that are searched and sorted.

Nothing of the product is used but its words (Ticket, Estimate ...). `tests/resilience/admission_walk.py` lets
both run side by side; where they differ, one of them is wrong.
"""

from dataclasses import dataclass

from kensho.resilience.admission import Estimate, Priority
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.estimate import Work


@dataclass
class Waiting:
    number: int
    priority: Priority
    arrived_s: float
    deadline_s: float
    work: Work
    engine: str | None
    avoids: str
    line: int
    """0: it lost its engine or gave it up for another; 1: it stopped for its own reasons; 2: it was not begun."""


def needed_s(one: Waiting, estimate: Estimate, engine: str | None = None) -> float:
    """p95 (CRITICAL: median) of its work on `engine`, or on the quickest that it may use; 0 where nothing is known."""
    size = 1
    while size < one.work.prompt_ids and size < 32768:
        size *= 2
    times = {}
    for candidate in estimate.candidates:
        learnt = candidate.medians if one.priority is Priority.CRITICAL else candidate.times
        known = [seconds for ids, seconds in learnt.prefill if ids <= size]
        times[candidate.engine] = (known[-1] if known else 0.0) + one.work.steps * learnt.step_s
    if engine is not None:
        return times.get(engine, 0.0)
    if one.engine is not None:
        return times.get(one.engine, 0.0)
    return min(times.values()) if times else 0.0


class ReferenceQueue:
    def __init__(self, settings: AdmissionSettings) -> None:
        self.settings = settings
        self.waiting: list[Waiting] = []  # in order of arrival
        self.next_number = 0
        self.others_since_lowest = 0
        self.rejections: list[float] = []
        self.slow_since: float | None = None
        self.looked_at: float | None = None

    # --- what is asked ---

    def level(self, now_s: float) -> str:
        recent = self.rejections[-self.settings.saturated_rejections :]
        if len(recent) == self.settings.saturated_rejections and now_s - recent[0] < self.settings.saturated_window_s:
            return "SATURATED"
        if self.slow_since is not None and now_s - self.slow_since >= self.settings.pressured_after_s:
            return "PRESSURED"
        return "NORMAL"

    def look(self, now_s: float, estimate: Estimate) -> None:
        if self.looked_at is not None and now_s - self.looked_at < 0.1:
            return
        self.looked_at = now_s
        shares = []
        for one in self.fresh():
            allowed = one.deadline_s - one.arrived_s - needed_s(one, estimate)
            shares.append((now_s - one.arrived_s) / max(0.001, allowed))
        shares.sort()
        if shares and shares[len(shares) // 2] > self.settings.pressured_share:
            self.slow_since = now_s if self.slow_since is None else self.slow_since
        else:
            self.slow_since = None

    def offer(
        self,
        priority: Priority,
        deadline_s: float | None,
        now_s: float,
        estimate: Estimate,
        work: Work,
        engine: str | None,
    ) -> list[tuple[int, str, float]]:
        if deadline_s is None:
            deadline_s = now_s + self.settings.deadlines_s[priority]
        one = Waiting(self.number(), priority, now_s, deadline_s, work, engine, "", 2)
        if work.is_guess and now_s + needed_s(one, estimate) > deadline_s:
            one.work = Work(work.prompt_ids)
        if now_s + needed_s(one, estimate) > deadline_s:
            # A deadline of its own choice, shorter than the usual one, is no sign of overload.
            is_own_choice = deadline_s - now_s < self.settings.deadlines_s[priority]
            return [(self.refusal if is_own_choice else self.rejection)(one, "deadline", now_s, estimate)]
        self.look(now_s, estimate)
        for engine in estimate.idle:
            if one.engine in {None, engine} and now_s + needed_s(one, estimate, engine) <= deadline_s:
                self.waiting.append(one)  # it will not wait
                return []
        level = self.level(now_s)
        if self.waiting and self.drain_s(one, estimate) > (deadline_s - now_s - needed_s(one, estimate)) / 2:
            if level == "SATURATED" and priority in {Priority.NORMAL, Priority.LOW}:
                return [self.refusal(one, "saturated", now_s, estimate)]
            if level == "PRESSURED" and priority is Priority.LOW:
                return [self.refusal(one, "pressured", now_s, estimate)]
        places = self.bound(estimate) + (self.settings.critical_reserve if priority is Priority.CRITICAL else 0)
        refusals = []
        if len(self.fresh()) >= places:
            late = [w for w in self.fresh() if now_s + needed_s(w, estimate) > w.deadline_s]
            late.sort(key=lambda w: (w.priority, w.number))
            for w in late:
                self.waiting.remove(w)
            refusals = [self.rejection(w, "deadline", now_s, estimate) for w in late]
        if len(self.fresh()) >= places:
            lowest = max(w.priority for w in self.fresh()) if self.fresh() else priority
            if lowest <= priority:
                return [*refusals, self.rejection(one, "full", now_s, estimate)]
            victim = next(w for w in self.fresh() if w.priority == lowest)
            self.waiting.remove(victim)
            refusals.append(self.rejection(victim, "evicted", now_s, estimate))
        self.waiting.append(one)
        return refusals

    def resume(
        self,
        priority: Priority,
        deadline_s: float,
        now_s: float,
        work: Work,
        engine: str | None,
        avoids: str,
        is_urgent: bool,
    ) -> int:
        line = 0 if is_urgent else 1
        work = Work(work.prompt_ids) if work.is_guess else work
        self.waiting.append(Waiting(self.number(), priority, now_s, deadline_s, work, engine, avoids, line))
        return self.next_number - 1

    def take(
        self, now_s: float, estimate: Estimate, engine: str | None
    ) -> tuple[int | None, list[tuple[int, str, float]]]:
        refusals = []
        while True:
            one = self.whose_turn(now_s, estimate, engine)
            if one is None:
                return None, refusals
            self.waiting.remove(one)
            if now_s + needed_s(one, estimate) > one.deadline_s:
                refusals.append(self.rejection(one, "deadline", now_s, estimate))
                continue
            lower_ones_wait = any(w.priority > one.priority for w in self.waiting)
            self.others_since_lowest = self.others_since_lowest + 1 if lower_ones_wait else 0
            return one.number, refusals

    def stranded(self, estimate: Estimate) -> int | None:
        there = [candidate.engine for candidate in estimate.candidates]
        lost = [w for w in self.waiting if w.engine is not None and w.engine not in there]
        lost.sort(key=lambda w: (w.priority, w.line, w.number))
        if not lost:
            return None
        self.waiting.remove(lost[0])
        return lost[0].number

    def drop(self, number: int) -> bool:
        found = [w for w in self.waiting if w.number == number]
        self.waiting = [w for w in self.waiting if w.number != number]
        return bool(found)

    def expire(self, number: int, now_s: float, estimate: Estimate) -> tuple[int, str, float] | None:
        found = [w for w in self.waiting if w.number == number]
        if not self.drop(number):
            return None
        return self.rejection(found[0], "deadline", now_s, estimate)

    def urgent(self) -> list[int]:
        numbers = []
        for w in sorted(self.waiting, key=lambda w: (w.priority, w.line, w.number)):
            if w.priority is Priority.LOW or (w.priority is not Priority.CRITICAL and w.line != 0):
                break  # whoever comes now would wait behind this one, for whom nobody is interrupted
            numbers.append(w.number)
        return numbers

    # --- how ---

    def number(self) -> int:
        self.next_number += 1
        return self.next_number - 1

    def fresh(self) -> list[Waiting]:
        return [w for w in self.waiting if w.line == 2]

    def bound(self, estimate: Estimate) -> int:
        if not estimate.service_p95_s > 0:
            return self.settings.bound
        fits = (
            estimate.slots * self.settings.bound_budget_s / estimate.service_p95_s
            if estimate.slots > 1
            else (self.settings.bound_budget_s / estimate.service_p95_s)
        )
        if fits < self.settings.bound_least:
            return self.settings.bound_least
        return self.settings.bound_most if fits > self.settings.bound_most else int(fits)

    def whose_turn(self, now_s: float, estimate: Estimate, engine: str | None) -> Waiting | None:
        classes = sorted({w.priority for w in self.waiting})
        is_turn_of_lowest = self.others_since_lowest >= self.settings.low_turn - 1
        if is_turn_of_lowest and Priority.CRITICAL not in classes:
            classes = classes[-1:] + classes
        for priority in classes:
            line = [w for w in self.waiting if w.priority == priority]
            fresh = [w for w in line if w.line == 2]
            is_crowd = len(fresh) > self.settings.lifo_per_slot * max(1, estimate.slots)
            if is_crowd:
                has_left = fresh[0].deadline_s - now_s - needed_s(fresh[0], estimate)
                if 2 * self.drain_s(fresh[0], estimate) > has_left:
                    fresh.reverse()
            order = [w for w in line if w.line == 0] + [w for w in line if w.line == 1] + fresh
            if engine is not None:
                has_others = len(estimate.candidates) > 1
                order = [
                    w
                    for w in order
                    if w.engine == engine or (w.engine is None and not (has_others and w.avoids == engine))
                ]
            for one in order[:8]:
                is_late = now_s + needed_s(one, estimate) > one.deadline_s
                # Whoever is late only on this engine is left to the others.
                if is_late or now_s + needed_s(one, estimate, engine) <= one.deadline_s:
                    return one
        return None

    def rejection(self, one: Waiting, reason: str, now_s: float, estimate: Estimate) -> tuple[int, str, float]:
        self.rejections.append(now_s)
        return self.refusal(one, reason, now_s, estimate)

    def refusal(self, one: Waiting, reason: str, now_s: float, estimate: Estimate) -> tuple[int, str, float]:
        return one.number, reason, self.drain_s(one, estimate)

    def drain_s(self, one: Waiting, estimate: Estimate) -> float:
        before = sum(w.priority <= one.priority for w in self.waiting)
        each_s = estimate.service_s if estimate.service_s > 0 else 1.0
        return (before + 1) * each_s / max(1, estimate.slots)
