"""What others do with a full queue, for bench/overload.py: contestants of the simulation, not used by the product.

FIFO 512: Ollama's bound and order (server/sched.go); what has expired is skipped. FIFO 100: the same, shorter.
PriorityQueue 100: classes by a heap, and "full" refuses whoever comes (as queue.PriorityQueue does with put_nowait).
Gradient2: Netflix concurrency-limits, Gradient2Limit with its defaults (initial 20, min 20, max 200, queue 4, smoothing
0.2, long window 600, tolerance 1.5), in front of a FIFO: the limit counts what waits and what runs.
"""

import heapq
from collections import deque

from kensho.testing.load import Job


class Fifo:
    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.waiting: deque[Job] = deque()

    def offer(self, job: Job, now_s: float) -> None:
        if len(self.waiting) < self.bound:
            self.waiting.append(job)

    def take(self, now_s: float) -> Job | None:
        while self.waiting:
            job = self.waiting.popleft()
            if now_s < job.deadline_s:
                return job
        return None

    def finished(self, job: Job, service_s: float, now_s: float) -> None:
        pass

    def set_slots(self, slots: int) -> None:
        pass


class PriorityQueue:
    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.waiting: list[tuple[int, int, Job]] = []
        self.number = 0

    def offer(self, job: Job, now_s: float) -> None:
        if len(self.waiting) < self.bound:
            self.number += 1
            heapq.heappush(self.waiting, (job.priority, self.number, job))

    def take(self, now_s: float) -> Job | None:
        while self.waiting:
            job = heapq.heappop(self.waiting)[2]
            if now_s < job.deadline_s:
                return job
        return None

    def finished(self, job: Job, service_s: float, now_s: float) -> None:
        pass

    def set_slots(self, slots: int) -> None:
        pass


class Gradient2:
    LEAST, MOST, QUEUE, SMOOTHING, LONG_WINDOW, TOLERANCE = 20.0, 200.0, 4.0, 0.2, 600, 1.5

    def __init__(self) -> None:
        self.limit = 20.0
        self.long_s = 0.0
        self.seen = 0
        self.running = 0
        self.waiting: deque[Job] = deque()

    def offer(self, job: Job, now_s: float) -> None:
        if len(self.waiting) + self.running < self.limit:
            self.waiting.append(job)

    def take(self, now_s: float) -> Job | None:
        while self.waiting:
            job = self.waiting.popleft()
            if now_s < job.deadline_s:
                self.running += 1
                return job
        return None

    def finished(self, job: Job, service_s: float, now_s: float) -> None:
        in_flight = self.running + len(self.waiting)
        self.running -= 1
        short_s = now_s - job.arrived_s
        self.seen += 1
        if self.seen <= 10:  # warm-up: the plain mean
            self.long_s += (short_s - self.long_s) / self.seen
        else:
            self.long_s += (short_s - self.long_s) * 2 / (self.LONG_WINDOW + 1)
        if self.long_s / short_s > 2:
            self.long_s *= 0.95
        if in_flight < self.limit / 2:
            return
        gradient = max(0.5, min(1.0, self.TOLERANCE * self.long_s / short_s))
        wanted = self.limit * gradient + self.QUEUE
        self.limit = self.limit * (1 - self.SMOOTHING) + wanted * self.SMOOTHING
        self.limit = max(self.LEAST, min(self.MOST, self.limit))

    def set_slots(self, slots: int) -> None:
        pass
