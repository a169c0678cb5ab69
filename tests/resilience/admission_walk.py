"""A random walk of admission beside its reference: many more steps in the same time than Hypothesis takes."""

import random
from typing import Any

from reference_admission import ReferenceQueue

from kensho.resilience.admission import Candidate, Estimate, Priority, Refused, Ticket
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.estimate import Times, Work

ENGINES = ("primary", "standby")


def told(refused: list[Refused]) -> list[tuple[int, str, float]]:
    return [(one.ticket.number, one.reason, one.retry_after_s) for one in refused]


ALL_TIMES = [Times(), Times(((8, 0.05), (64, 0.3)), 0.01), Times(((1, 0.2),), 0.1), Times(((64, 1.75),))]


def random_settings(rng: random.Random) -> AdmissionSettings:
    least, bound = rng.randint(1, 4), rng.choice([4, 6, 8, 30])
    return AdmissionSettings(
        bound=bound,
        bound_least=least,
        bound_most=bound + rng.randint(0, 4),
        bound_budget_s=4.0,
        critical_reserve=rng.randint(0, 2),
        low_turn=rng.randint(1, 4),
        lifo_per_slot=rng.randint(0, 2),
        saturated_rejections=rng.randint(2, 5),
        deadlines_s=(1.0, 1.5, 2.0, 4.0),
    )


def random_estimate(rng: random.Random) -> Estimate:
    engines = ENGINES[: rng.choice([0, 1, 2, 2])]
    candidates = tuple(Candidate(engine, rng.choice(ALL_TIMES), rng.choice(ALL_TIMES)) for engine in engines)
    idle = () if rng.random() < 0.8 else engines[-1:]
    return Estimate(candidates, rng.choice([0.0, 0.1, 2.0]), rng.choice([0.0, 0.5, 1.0, 3.0]), rng.randint(1, 2), idle)


def walk(queue_class: Any, *, steps: int, seed: int) -> None:
    """Raises AssertionError at the first difference. A new queue every 200 steps."""
    rng = random.Random(seed)
    for done in range(0, steps, 200):
        _walk(queue_class, rng, min(200, steps - done))


_STEPS = (
    ["offer", "take", "resume", "cancel", "expire", "strand", "look", "wait"],
    [9, 5, 1, 1, 1, 0.5, 3, 3],
)


def _walk(queue_class: Any, rng: random.Random, steps: int) -> None:
    settings = random_settings(rng)
    queue, reference, now_s = queue_class(settings), ReferenceQueue(settings), 1000.0
    seen: list[Ticket] = []
    estimate = random_estimate(rng)
    for _ in range(steps):
        if rng.random() < 0.3:
            estimate = random_estimate(rng)
        match rng.choices(*_STEPS)[0]:
            case "offer":
                priority, work = (
                    Priority(rng.choice([0, 1, 1, 2, 2, 3, 3])),
                    Work(rng.choice([1, 9, 100]), rng.choice([0, 3, 30]), rng.random() < 0.2),
                )
                deadline_s = rng.choice([None, now_s - 1.0, now_s + 0.5, now_s + 3.0, now_s + 9.0])
                engine = rng.choice([None, None, None, *ENGINES])
                ticket, refused = queue.offer(priority, deadline_s, now_s, estimate, work=work, engine=engine)
                assert told(refused) == reference.offer(priority, deadline_s, now_s, estimate, work, engine)
                seen.append(ticket)
            case "take":
                engine = rng.choice([None, *ENGINES])
                taken, refused = queue.take(now_s, estimate, engine)
                assert (taken and taken.number, told(refused)) == reference.take(now_s, estimate, engine)
            case "resume" if seen:
                before, work, avoids = (
                    rng.choice(seen),
                    Work(rng.choice([1, 9]), rng.choice([0, 9]), rng.random() < 0.3),
                    rng.choice(["", *ENGINES]),
                )
                deadline_s, is_urgent = now_s + rng.choice([0.5, float("inf")]), rng.random() < 0.5
                again = queue.resume(before, deadline_s, work, now_s, avoids=avoids, is_urgent=is_urgent)
                number = reference.resume(before.priority, deadline_s, now_s, work, before.engine, avoids, is_urgent)
                assert again.number == number
                seen.append(again)
            case "cancel" if seen:
                ticket = rng.choice(seen[-12:])
                assert queue.cancel(ticket) == reference.drop(ticket.number)
            case "expire" if seen:
                ticket = rng.choice(seen[-12:])
                one = queue.expire(ticket, now_s, estimate)
                assert (told([one])[0] if one else None) == reference.expire(ticket.number, now_s, estimate)
            case "strand":
                lost = queue.take_stranded(estimate)
                assert (lost and lost.number) == reference.stranded(estimate)
            case "look":
                queue.look(now_s, estimate)
                reference.look(now_s, estimate)
            case "wait":
                now_s += rng.choice([1 / 64, 7 / 64, 0.25, 1.0, 3.0, 10.0])
        assert queue.level(now_s) == reference.level(now_s)
        assert queue.depths() == {p: sum(w.priority == p for w in reference.waiting) for p in Priority}
        assert [ticket.number for ticket in queue.urgent()] == reference.urgent()
