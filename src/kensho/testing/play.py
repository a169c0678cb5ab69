"""The jobs of a trace as requests to a real scheduler: what its clients saw, counted.

    played = play_virtual(step(10.0, slots=2), seed=1)      # scripted engines, virtual time: nothing but the scheduler
    figures = Figures(played, trace.begins_s, trace.ends_s)
    figures.good_tokens, figures.served(Priority.CRITICAL), figures.p99_s(Priority.CRITICAL)

Each job is a whole answer with a deadline. `Desk` puts one request to any scheduler, so that real engines can be
played on too, by a load from another process. A minute at ten times the load on two scripted engines takes 3 s.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import DeadlineMissed, KenshoError, Overloaded
from kensho.base.inference import Sampling
from kensho.base.structs import Struct, replace
from kensho.resilience.admission import Priority
from kensho.resilience.guard import Canary
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import ScriptedEngine, expected_ids
from kensho.testing.load import Job, Trace, arrivals
from kensho.testing.loop import run_virtual

TOKEN_S: Seconds = 0.005
"""Of the scripted engines: a mean job of `load.SERVICE_S` is twenty tokens."""
_PROMPT_IDS = (3, 5)
_CANARY_IDS = (9,)


class Played(Struct):
    """What became of one request. Moments are those of one monotonic clock."""

    priority: Priority
    came_s: Seconds
    deadline_s: Seconds
    outcome: str
    """ok, or why not: a reason of `admission.Reason`; "cut": begun, and not complete by its deadline; an error code."""
    tokens: int
    first_s: Seconds
    """When it had its first token; if it had none, when it was refused."""
    done_s: Seconds
    """When it was over, as the scheduler's process saw it."""
    ended_s: Seconds
    """When its client knew."""
    pauses: int = 0
    rivals: int = 0
    """Other CRITICAL requests that had begun and not ended when it was over: those whom nothing interrupts."""

    @property
    def is_in_time(self) -> bool:
        return self.outcome == "ok" and self.ended_s <= self.deadline_s

    def moved(self, by_s: Seconds) -> "Played":
        """On a clock that shows `by_s` more."""
        moments = ("came_s", "deadline_s", "first_s", "done_s", "ended_s")
        return replace(self, **{name: getattr(self, name) + by_s for name in moments})


class Figures:
    """Of requests that came within a window. Work counts where it ended."""

    def __init__(self, played: Iterable[Played], begins_s: Seconds, ends_s: Seconds) -> None:
        self._all = list(played)
        self._begins_s = begins_s
        self._ends_s = ends_s
        self.came = [one for one in self._all if begins_s <= one.came_s < ends_s]

    @property
    def good_tokens(self) -> int:
        """Of answers that were in time."""
        return sum(one.tokens for one in self._ended() if one.is_in_time)

    @property
    def late(self) -> float:
        """Tokens of answers that were not in time, as a share of all tokens."""
        made = sum(one.tokens for one in self._ended())
        return 1 - self.good_tokens / made if made else 0.0

    def of(self, priority: Priority) -> list[Played]:
        return [one for one in self.came if one.priority is priority]

    def served(self, priority: Priority) -> float:
        """Share of the class that was answered in time; 1 if none came."""
        came = self.of(priority)
        return sum(one.is_in_time for one in came) / len(came) if came else 1.0

    def p99_s(self, priority: Priority) -> Seconds:
        """From coming to the last token, of those in time."""
        return p99(one.ended_s - one.came_s for one in self.of(priority) if one.is_in_time)

    def late_for(self) -> Counter[str]:
        """Why work was late: tokens by class and reason."""
        late: Counter[str] = Counter()
        for one in self._ended():
            if one.tokens and not one.is_in_time:
                late[f"{one.priority.name}, {why_missed(one).partition(',')[0]}"] += one.tokens
        return late

    def missed(self, priority: Priority) -> Counter[str]:
        """Why those of the class were not in time, and how often."""
        return Counter(why_missed(one) for one in self.of(priority) if not one.is_in_time)

    def _ended(self) -> list[Played]:
        return [one for one in self._all if self._begins_s <= one.ended_s < self._ends_s]


def p99(values: Iterable[float]) -> float:
    """0 of nothing."""
    ranked = sorted(values)
    return ranked[int(0.99 * (len(ranked) - 1))] if ranked else 0.0


def why_missed(one: Played) -> str:
    """In words, for a request that was not in time."""
    if one.outcome == "ok":
        return "late on the way back" if one.done_s <= one.deadline_s else "late"
    rivals = f", {one.rivals} other CRITICAL begun then"
    if one.outcome == "cut":
        return f"cut at its deadline, begun {_when(one, one.first_s)}{rivals}"
    if one.pauses:
        return f"interrupted and then refused: {one.outcome}{rivals}"
    return f"refused {_when(one, one.done_s)}: {one.outcome}{rivals}"


def _when(one: Played, moment_s: Seconds) -> str:
    share = (moment_s - one.came_s) / (one.deadline_s - one.came_s)
    return "at once" if share < 0.05 else f"after {share:.1f} of its time"


class Desk:
    """Puts requests to a scheduler, and knows how many of the CRITICAL ones have begun."""

    def __init__(self, scheduler: Scheduler, clock: Clock) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._critical = 0

    async def ask(
        self, prompt_ids: Sequence[int], tokens: int, priority: Priority, *, came_s: Seconds, deadline_s: Seconds
    ) -> Played:
        """A whole answer of so many tokens. `ended_s` is for the client to correct, if it is elsewhere."""
        answer = self._scheduler.submit(
            prompt_ids, Sampling(max_tokens=tokens), priority=priority, deadline_s=deadline_s, is_whole=True
        )
        outcome, made, first_s = "ok", 0, 0.0
        try:
            async for _ in answer:
                if not made:
                    self._critical += priority is Priority.CRITICAL
                    first_s = self._clock.monotonic_s()
                made += 1
        except Overloaded as error:
            outcome = str(error.facts.get("reason", "cut" if isinstance(error, DeadlineMissed) else error.code))
        except KenshoError as error:
            outcome = error.code
        finally:
            self._critical -= made > 0 and priority is Priority.CRITICAL
        now_s, pauses = self._clock.monotonic_s(), answer.record.pauses
        moments = (first_s or now_s, now_s, now_s)
        return Played(priority, came_s, deadline_s, outcome, made, *moments, pauses, self._critical)


def play_virtual(trace: Trace, *, seed: int, only: Priority | None = None) -> list[Played]:
    """The trace through `Scheduler` with its default settings, on one or two scripted engines (`trace.slots`).

    `only`: as if nobody of the other classes were there. Moments are those of the trace. Deterministic.
    """
    jobs = [job for job in arrivals(trace, seed=seed) if only in {None, job.priority}]
    clock = VirtualClock()
    return run_virtual(_play(trace.slots(0.0), jobs, clock), clock=clock)


async def _play(slots: int, jobs: Sequence[Job], clock: VirtualClock) -> list[Played]:
    primary, standby = (ScriptedEngine(name, token_s=TOKEN_S, prefill_s=0.0) for name in ("primary", "standby"))
    scheduler = Scheduler(
        primary,
        standby if slots == 2 else None,
        model="m",
        version="1",
        tier_of=lambda _: "",
        canary=Canary(_CANARY_IDS, expected_ids(_CANARY_IDS, Sampling(max_tokens=2))),
        settings=SchedulerSettings(),
        clock=clock,
        rng=lambda: 0.5,
        emit=lambda _: None,
    )
    async with scheduler, asyncio.TaskGroup() as requests:
        while scheduler.snapshot().slots < slots:  # noqa: ASYNC110  # as users see it
            await asyncio.sleep(0.1)
        desk, began_s = Desk(scheduler, clock), clock.monotonic_s()
        tasks = []
        for job in jobs:
            await asyncio.sleep(max(0.0, began_s + job.arrived_s - clock.monotonic_s()))
            tokens, came_s = max(1, round(job.service_s / TOKEN_S)), clock.monotonic_s()
            asked = desk.ask(_PROMPT_IDS, tokens, job.priority, came_s=came_s, deadline_s=began_s + job.deadline_s)
            tasks.append(requests.create_task(asked))
    return [one.moved(-began_s) for one in (task.result() for task in tasks)]
