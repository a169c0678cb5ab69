"""What a circuit must do, told a second time and in another way: mutable, with live tickets instead of generation
numbers, lists of moments instead of buckets and counters, and the default settings written out as numbers.

`Pair` gives a breaker (or a mutant of it) and the reference the same inputs and compares everything that can be seen:
the mode, every counter, and all that is to be done, in its order and with its moments. Nothing is copied from one to
the other, and numbers are equal to the last bit.
`walk` is a long random life of a pair.
"""

import random
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kensho.resilience import breaker
from kensho.resilience.circuit import (
    Admit,
    Admitted,
    Began,
    BreakerSettings,
    CanaryCancelled,
    CanaryFailed,
    CanaryPassed,
    Cancelled,
    Changed,
    Effect,
    Failed,
    Force,
    HostFailed,
    HostReady,
    HostUnkillable,
    Hurry,
    KillHost,
    LookAtMachine,
    Looked,
    Mode,
    Rejected,
    Resumed,
    RunCanary,
    SetTimer,
    StartHost,
    State,
    Succeeded,
    Tick,
    WouldOpen,
)
from kensho.resilience.failure_class import FailureClass as F

SETTINGS = BreakerSettings()
KINDS = {
    Admitted: "admitted",
    Rejected: "rejected",
    KillHost: "kill",
    StartHost: "start",
    RunCanary: "canary",
    LookAtMachine: "look",
    WouldOpen: "would open",
}
Deed = tuple[str, Any]
"""(what is to be done, its ticket, moment or modes)"""
COUNTED = [
    *("rejected", "successes", "slow", "failures", "cancelled", "stale"),
    *("opened", "canaries", "canaries_failed", "restarts", "last_success_s", "last_failure_s"),
]
POINTS = {F.UNKNOWN: 1, F.SHORTAGE: 1, F.OUT_OF_MEMORY: 1, F.WRONG_NUMBERS: 2}
OPEN_TO_ALL = ("CLOSED", "FORCED_CLOSED", "METRICS_ONLY")
BY_HAND = ("FORCED_OPEN", "FORCED_CLOSED", "METRICS_ONLY")


class Reference:
    def __init__(self, now: float) -> None:
        self.mode, self.now, self.since = "CLOSED", now, now
        self.why_hard: str | None = None
        self.machine = "m0"
        self.until: float | None = None
        self.after_open = "HALF_OPEN"
        self.live: set[object] = set()
        self.canary: object | None = None
        self.host: object | None = None
        self.look: object | None = None
        self.bad = self.good = self.opened = self.looks = self.wrong_in_a_row = self.no_room = 0
        self.tried: float | None = None
        self.dead_starts: list[float] = []
        self.crashes: list[float] = []
        self.hungry: float | None = None
        self.calls: list[tuple[float, str]] = []
        self.is_back = False
        self.usual, self.usual_calls = 0.0, 0
        self.did: list[Deed] = []
        self.count: dict[str, Any] = dict.fromkeys(COUNTED, 0) | {"last_success_s": None, "last_failure_s": None}

    # --- moves ---

    def ring(self, at: float) -> None:
        self.until = at
        self.did.append(("timer", at))

    def go(self, mode: str, lasts: float | None = None) -> None:
        self.count["opened"] += self.mode in OPEN_TO_ALL and mode not in OPEN_TO_ALL
        self.did.append(("changed", (self.mode, mode)))
        self.mode, self.since, self.until = mode, self.now, None
        if lasts is not None:
            self.ring(self.now + lasts)
        self.live, self.canary, self.host, self.look, self.bad, self.good = set(), None, None, None, 0, 0
        self.why_hard, self.hungry, self.calls, self.is_back = None, None, [], False

    def probe(self) -> None:
        self.canary, self.until, self.tried = object(), None, self.now
        self.count["canaries"] += 1
        self.did.append(("canary", self.canary))

    def halve(self) -> None:
        self.go("HALF_OPEN")
        self.probe()

    def respawn(self, *, after_kill: bool = False) -> None:
        self.go("RESTARTING")
        if after_kill:
            self.did.append(("kill", None))
        self.host, self.tried = object(), self.now
        self.count["restarts"] += 1
        self.did.append(("start", self.host))

    def wait(self, seconds: float, then: str) -> None:
        self.go("OPEN", seconds)
        self.after_open = then
        if then == "RESTARTING":
            self.did.append(("kill", None))

    def trip(self, draw: float, then: str) -> None:
        self.opened += 1
        self.wait(longer(60.0, self.opened - 1, draw), then)

    def off(self, why: str, draw: float) -> None:
        self.go("HARD_OPEN", longer(60.0, self.looks, draw))
        self.why_hard, self.look = why, object()
        if why != "unkillable":
            self.did.append(("kill", None))

    def start_anew(self) -> None:
        self.dead_starts, self.crashes = [], []
        self.opened = self.looks = self.wrong_in_a_row = self.no_room = 0
        self.respawn()

    def calm_down(self) -> None:
        if self.mode == "CLOSED" and self.now - self.since >= 600.0:
            self.opened = self.looks = 0

    # --- inputs ---

    def time(self, now: float, draw: float) -> None:
        self.now, self.did = now, []
        if self.until is not None and self.until <= now:
            if self.mode == "OPEN":
                self.respawn() if self.after_open == "RESTARTING" else self.halve()
            elif self.mode == "HALF_OPEN":
                self.probe() if self.canary is None else self.bad_canary(F.HANG, draw)
            elif self.mode == "RESTARTING":
                self.dead_start(draw)
            elif self.mode == "HARD_OPEN":
                self.looks += 1
                self.ring(now + longer(60.0, self.looks, draw))
                self.did.append(("look", self.look))
            else:
                self.start_anew()

    def admit(self) -> object:
        ticket = object()
        is_open_to_all = self.mode in OPEN_TO_ALL
        self.count["rejected"] += not is_open_to_all
        self.did.append(("admitted", ticket) if is_open_to_all else ("rejected", None))
        if is_open_to_all:
            self.live.add(ticket)
        return ticket

    def settle(self, ticket: object, outcome: F | str, pace: float | None, draw: float) -> None:
        if ticket not in self.live:
            self.count["stale"] += 1
            return
        self.live.discard(ticket)
        if outcome == "cancel":
            self.count["cancelled"] += 1
        elif outcome == "ok":
            self.count["successes"] += 1
            self.count["last_success_s"] = self.now
            if self.mode != "FORCED_CLOSED":
                self.went_well(pace, draw)
        else:
            self.count["failures"] += 1
            self.count["last_failure_s"] = self.now
            if self.mode != "FORCED_CLOSED":
                self.went_wrong(F(outcome), draw)

    def went_well(self, pace: float | None, draw: float) -> None:
        self.bad = 0
        if pace is not None and self.usual_calls >= 20 and pace > 4 * self.usual:
            self.count["slow"] += 1
            self.calls.append((self.now, "slow"))
            self.weigh(draw)
            return
        self.calls.append((self.now, "good"))
        if pace is not None:
            if self.usual_calls < 20:
                self.usual = max(self.usual, pace, 1e-6)
            else:
                self.usual = max(1e-6, self.usual * (1.0475 if pace > self.usual else 0.9975))
            self.usual_calls += 1

    def went_wrong(self, kind: F, draw: float) -> None:
        decides = self.mode == "CLOSED"
        self.calm_down()
        if kind in (F.DEVICE_LOST, F.DRIVER_MISMATCH):
            self.off(kind.value, draw) if decides else self.would_open()
        elif kind in (F.CRASH, F.HANG, F.STICKY) or (kind is F.OUT_OF_MEMORY and self.is_hungry()):
            self.crash(draw) if decides else self.would_open()
        else:
            if kind is F.OUT_OF_MEMORY:
                self.hungry = self.now
            self.bad += POINTS.get(kind, 3)
            self.calls.append((self.now, "bad"))
            if self.bad >= 3:
                self.open_up(draw)
            else:
                self.weigh(draw)

    def is_hungry(self) -> bool:
        return self.hungry is not None and self.now - self.hungry <= 60.0

    def weigh(self, draw: float) -> None:
        recent = [kind for at, kind in self.calls if at // 3.0 > self.now // 3.0 - 10]
        worst = max(recent.count("bad"), recent.count("slow"))
        if len(recent) >= 10 and 2 * worst >= len(recent):
            self.open_up(draw)

    def open_up(self, draw: float) -> None:
        if self.mode == "METRICS_ONLY":
            self.would_open()
        else:
            self.calm_down()
            self.trip(draw, "HALF_OPEN")

    def would_open(self) -> None:
        self.bad, self.calls, self.hungry = 0, [], None
        self.did.append(("would open", None))

    def crash(self, draw: float) -> None:
        self.crashes = [t for t in self.crashes if self.now - t < 600.0] + [self.now]
        too_many = len(self.crashes) - 3
        if too_many > 0:
            self.wait(longer(5.0, too_many - 1, draw), "RESTARTING")
        else:
            self.respawn(after_kill=True)

    def dead_start(self, draw: float) -> None:
        self.dead_starts = [t for t in self.dead_starts if self.now - t < 600.0] + [self.now]
        if len(self.dead_starts) >= 3:
            self.off("start_loop", draw)
        else:
            self.wait(longer(5.0, 0, draw), "RESTARTING")

    def squeezed(self, then: str, draw: float) -> None:
        self.no_room += 1
        self.wait(longer(5.0, self.no_room - 1, draw), then)

    def bad_canary(self, kind: F, draw: float) -> None:
        self.count["canaries_failed"] += 1
        self.count["last_failure_s"] = self.now
        if kind in (F.DEVICE_LOST, F.DRIVER_MISMATCH):
            self.off(kind.value, draw)
        elif kind is F.SHORTAGE:
            self.squeezed("HALF_OPEN", draw)
        elif kind in (F.MISMATCH, F.WRONG_NUMBERS):
            self.wrong_in_a_row += 1
            if self.wrong_in_a_row == 3:
                self.off("output_mismatch", draw)
            else:
                self.trip(draw, "RESTARTING")
        else:
            self.wrong_in_a_row = 0
            if kind in (F.CRASH, F.STICKY):
                self.dead_start(draw)
            else:
                self.trip(draw, "HALF_OPEN" if kind is F.UNKNOWN else "RESTARTING")

    def begin(self, ticket: object) -> None:
        is_asked = (self.mode, ticket) in (("HALF_OPEN", self.canary), ("RESTARTING", self.host))
        if ticket is not None and is_asked and self.until is None:
            self.tried = self.now
            self.ring(self.now + (5.0 if self.mode == "HALF_OPEN" else 120.0))

    def settle_canary(self, ticket: object, outcome: F | str, draw: float) -> None:
        if ticket is not self.canary or ticket is None:
            self.count["stale"] += 1
        elif outcome == "cancel":
            self.canary = None
            assert self.tried is not None
            self.ring(max(self.now, self.tried + 1.0))
        elif outcome == "ok":
            self.good += 1
            if self.good < 2:
                self.probe()
            else:
                self.go("CLOSED", None)
                self.is_back, self.wrong_in_a_row, self.no_room = True, 0, 0
        else:
            self.bad_canary(F(outcome), draw)

    def settle_host(self, ticket: object, outcome: F | str, draw: float) -> None:
        if self.mode != "RESTARTING" or ticket is not self.host:
            self.count["stale"] += 1
        elif outcome == "ok":
            self.halve()
        elif outcome in (F.DEVICE_LOST, F.DRIVER_MISMATCH):
            self.off(str(outcome), draw)
        elif outcome in (F.SHORTAGE, F.OUT_OF_MEMORY):
            self.squeezed("RESTARTING", draw)
        else:
            self.dead_start(draw)

    def stuck(self, draw: float) -> None:
        if self.mode not in BY_HAND and self.why_hard != "unkillable":
            self.calm_down()
            self.off("unkillable", draw)

    def woke(self) -> None:
        if self.mode == "CLOSED":
            self.calm_down()
            self.halve()

    def hurry(self) -> None:
        if self.mode == "OPEN":
            assert self.until is not None
            soon = max(self.now, (self.tried if self.tried is not None else -1e9) + 5.0)
            if soon < self.until and soon > self.now:
                self.ring(soon)
            elif soon < self.until:
                self.respawn() if self.after_open == "RESTARTING" else self.halve()

    def seen(self, ticket: object, machine: str, is_there: bool) -> None:
        if self.mode != "HARD_OPEN" or ticket is not self.look:
            self.count["stale"] += 1
        elif machine != self.machine:
            self.machine = machine
            self.start_anew()
        elif is_there and self.why_hard == "device_lost":
            self.respawn()

    def force(self, mode: Mode | None, lasts: float | None) -> None:
        if mode is not None:
            self.go(mode.value, lasts)
        elif self.mode in ("HARD_OPEN", *BY_HAND):
            self.start_anew()

    def share(self) -> float:
        age = self.now - self.since
        return 1.0 if not self.is_back or age >= 10.0 else 0.1 if age < 5.0 else 0.5


def longer(first: float, times: int, draw: float) -> float:
    """Doubled so many times and jittered, at most a quarter of an hour."""
    return min(900.0, min(900.0, first * 2**times) * (1.0 + 0.2 * (2.0 * draw - 1.0)))


class Pair:
    """A breaker (`module` may be a mutant) and the reference, given the same inputs; `do` compares them."""

    def __init__(self, module: Any = breaker) -> None:
        self.step, self.share = module.step, module.share
        self.now = 1000.0
        self.state: State = module.closed(self.now, "m0")
        self.reference = Reference(self.now)
        self.permits: list[tuple[int, object]] = []
        self.canaries: list[tuple[int, object]] = []
        self.hosts: list[tuple[int, object]] = []
        self.looks: list[tuple[int, object]] = []
        self.changes: set[tuple[str, str]] = set()
        self.steps = 0

    def do(self, event: Any, tell: Callable[[], Any], draw: float = 0.5) -> None:
        self.steps += 1
        reference = self.reference
        reference.time(self.now, draw)
        tell()
        self.state, effects = self.step(self.state, event, self.now, SETTINGS, draw)
        assert len(effects) == len(reference.did), (event, effects, reference.did)
        for effect, deed in zip(effects, reference.did, strict=True):
            self.carry_out(event, effect, deed)
        self.compare(event)

    def carry_out(self, event: Any, effect: Effect, deed: Deed) -> None:
        kind, what = deed
        if isinstance(effect, Changed):
            assert deed == ("changed", (effect.from_mode, effect.to_mode)), (event, effect, deed)
            assert effect.reason
            assert effect.next_step
            self.changes.add((effect.from_mode.value, effect.to_mode.value))
            return
        if isinstance(effect, SetTimer):
            assert deed == ("timer", effect.at_s), (event, effect, deed)
            return
        assert KINDS[type(effect)] == kind, (event, effect, deed)
        if isinstance(effect, Admitted):
            self.permits.append((effect.generation, what))
        elif isinstance(effect, RunCanary):
            self.canaries.append((effect.generation, what))
        elif isinstance(effect, StartHost):
            self.hosts.append((effect.generation, what))
        elif isinstance(effect, LookAtMachine):
            self.looks.append((effect.generation, what))

    def compare(self, event: Any) -> None:
        state, reference = self.state, self.reference
        assert state.mode == reference.mode, (event, state.mode, reference.mode)
        assert state.entered_s == reference.since
        assert state.hard == reference.why_hard
        assert state.fingerprint == reference.machine
        assert state.until_s == reference.until, (event, state.until_s, reference.until)
        for name in COUNTED:
            assert getattr(state.counters, name) == reference.count[name], (event, name)
        assert (state.baseline_calls, state.weight, state.passes) == (
            reference.usual_calls,
            reference.bad,
            reference.good,
        )
        assert state.baseline_s == reference.usual
        assert self.share(state, self.now, SETTINGS) == reference.share()

    def admit(self, draw: float = 0.5) -> None:
        self.do(Admit(), self.reference.admit, draw)

    def settle(self, which: int, outcome: F | str, pace: float | None, draw: float) -> None:
        if self.permits:
            generation, ticket = self.permits.pop(which % len(self.permits))
            event: Any = {"ok": Succeeded(generation, pace), "cancel": Cancelled(generation)}.get(str(outcome))
            event = event or Failed(generation, F(outcome))
            self.do(event, lambda: self.reference.settle(ticket, outcome, pace, draw), draw)

    def begin(self, which: int, draw: float) -> None:
        """A canary or a start that was asked for has the engine for itself now."""
        asked = self.hosts + self.canaries
        if asked:
            generation, ticket = asked[which % len(asked)]
            self.do(Began(generation), lambda: self.reference.begin(ticket), draw)

    def settle_canary(self, which: int, outcome: F | str, draw: float) -> None:
        if self.canaries:
            generation, ticket = self.canaries.pop(which % len(self.canaries))
            event: Any = {"ok": CanaryPassed(generation), "cancel": CanaryCancelled(generation)}.get(str(outcome))
            event = event or CanaryFailed(generation, F(outcome))
            if outcome == "cancel":
                self.canaries.append((generation, ticket))  # who was cancelled may say something yet
            self.do(event, lambda: self.reference.settle_canary(ticket, outcome, draw), draw)

    def settle_host(self, which: int, outcome: F | str, draw: float) -> None:
        if self.hosts:
            generation, ticket = self.hosts.pop(which % len(self.hosts))
            event = HostReady(generation) if outcome == "ok" else HostFailed(generation, F(outcome))
            self.do(event, lambda: self.reference.settle_host(ticket, outcome, draw), draw)

    def look(self, which: int, machine: str, is_there: bool, draw: float) -> None:
        if self.looks:
            generation, ticket = self.looks.pop(which % len(self.looks))
            event = Looked(generation, machine, is_there)
            self.do(event, lambda: self.reference.seen(ticket, machine, is_there), draw)

    def stuck(self, draw: float) -> None:
        self.do(HostUnkillable(), lambda: self.reference.stuck(draw), draw)

    def woke(self, draw: float) -> None:
        self.do(Resumed(), self.reference.woke, draw)

    def hurry(self, draw: float) -> None:
        self.do(Hurry(), self.reference.hurry, draw)

    def force(self, mode: Mode | None, for_s: float | None, draw: float) -> None:
        self.do(Force(mode, for_s), lambda: self.reference.force(mode, for_s), draw)

    def advance(self, by_s: float | None, draw: float) -> None:
        """None: to the very moment at which time changes something; else by so many seconds."""
        if by_s is not None:
            self.now += by_s
        elif self.reference.until is not None:
            self.now = max(self.now, self.reference.until)
        self.do(Tick(), lambda: None, draw)


STEPS_S = [0.0, 1e-6, 0.3, 1.0, 2.9, 4.999, 5.0, 30.0, 59.0, 60.0, 120.0, 599.9, 600.0, 900.0, None]
OUTCOMES: list[F | str] = ["ok", "cancel", *F]
START_OUTCOMES: list[F | str] = ["ok", F.CRASH, F.UNKNOWN, F.SHORTAGE, F.OUT_OF_MEMORY, F.DEVICE_LOST]
FORCED: list[Mode | None] = [Mode.FORCED_OPEN, Mode.FORCED_CLOSED, Mode.METRICS_ONLY, None]
PACES = [None, 0.01, 0.01, 0.01, 0.02]


def walk(module: Any, steps: int, seed: int) -> Pair:
    """A random life in which every mode is visited often; raises AssertionError at the first difference.

    Half of it is spent in moods: streaks of mostly good, mostly bad or mostly slow calls, without which rates would
    never be high and baselines never known.
    """
    rng = random.Random(seed)
    pair = Pair(module)
    mood, left = "any", 0
    while pair.steps < steps:
        if left == 0:
            mood, left = (
                rng.choice(["any", "any", "any", "any", "good", "mixed", "slow", "crashes", "wrong", "lost", "dead"]),
                rng.randrange(20, 60),
            )
        left -= 1
        _act(pair, rng, mood)
        del pair.permits[:-50], pair.canaries[:-5], pair.hosts[:-5], pair.looks[:-5]
    return pair


TROUBLES: dict[str, F] = {"crashes": F.CRASH, "wrong": F.CRASH, "dead": F.CRASH, "lost": F.DEVICE_LOST}
"""Moods in which an engine comes and goes, and what its requests then meet."""


def _act(pair: Pair, rng: random.Random, mood: str) -> None:
    draw = rng.choice([0.0, 0.5, rng.random()])
    which = -1 if rng.random() < 0.9 else rng.randrange(100)
    outcome = rng.choice([F.UNKNOWN, F.UNKNOWN, F.OUT_OF_MEMORY, "cancel", rng.choice(OUTCOMES)])
    chance = rng.random()
    is_off = pair.reference.mode == "HARD_OPEN"
    if mood in TROUBLES:
        _come_and_go(pair, rng, mood, draw)
        return
    if mood != "any" and pair.reference.mode in OPEN_TO_ALL:
        bad = {"good": "ok", "mixed": rng.choice(["ok", F.UNKNOWN]), "slow": "ok"}[mood]
        is_late = mood == "slow" and rng.random() < 0.6
        pace = pair.reference.usual * rng.choice([3.9, 4.1, 9.0]) if is_late else rng.choice(PACES)
        pair.admit(draw)
        pair.settle(-1, bad, pace, draw)
        pair.advance(rng.choice([0.0, 0.1, 0.5, 1.7, 1.7, 9.0]), draw)
        return
    if chance < 0.02 or (is_off and chance < 0.06):
        pair.force(rng.choice(FORCED), rng.choice([None, None, 7.0]), draw)
    elif chance < 0.28:
        pair.admit(draw)
    elif chance < 0.42:
        pair.settle(which, outcome, rng.choice(PACES), draw)
    elif chance < 0.48:
        pair.begin(which, draw)
    elif chance < 0.62:
        good = ["ok"] * (6 if mood != "any" else 2)
        pair.settle_canary(rng.choice([-1, -1, -2]), rng.choice([*good, outcome]), draw)
    elif chance < 0.71:
        pair.settle_host(which, rng.choice(["ok", "ok", "ok", rng.choice(START_OUTCOMES)]), draw)
    elif chance < 0.75:
        pair.look(which, rng.choice([pair.reference.machine, pair.reference.machine, "m1", "m2"]), chance < 0.73, draw)
    elif chance < 0.77:
        rng.choice([pair.stuck, pair.woke])(draw)
    elif chance < 0.8:
        pair.hurry(draw)
    else:
        pair.advance(rng.choice([0.3, None, rng.choice(STEPS_S)]), draw)


def _come_and_go(pair: Pair, rng: random.Random, mood: str, draw: float) -> None:
    """An engine that can always be brought back, and never stays."""
    mode = pair.reference.mode
    if mode == "CLOSED":
        pair.advance(rng.choice([0.0, 20.0, 150.0, 250.0, 600.0]), draw)
        if rng.random() < 0.2:
            pair.woke(draw)
        pair.admit(draw)
        pair.settle(-1, TROUBLES[mood], None, draw)
    elif mode == "RESTARTING":
        if rng.random() < 0.5:
            pair.begin(-1 - len(pair.canaries), draw)
        is_dead = mood == "dead" and rng.random() < 0.6
        is_lost = mood == "lost" and rng.random() < 0.3
        pair.settle_host(-1, F.CRASH if is_dead else F.DEVICE_LOST if is_lost else "ok", draw)
    elif mode == "HALF_OPEN":
        if rng.random() < 0.5:
            pair.begin(-1, draw)
        if rng.random() < 0.2:
            pair.advance(None, draw)  # too late: what it says from now on is stale
            pair.settle_host(-1, "ok", draw)
        if rng.random() < 0.3:
            pair.settle_canary(-2, "ok", draw)
        is_wrong = mood == "wrong" and rng.random() < 0.6
        pair.settle_canary(-1, rng.choice([F.MISMATCH, F.WRONG_NUMBERS]) if is_wrong else "ok", draw)
    elif mode == "OPEN":
        pair.advance(None, draw)
    elif mode == "HARD_OPEN" and mood == "lost":
        pair.advance(None, draw)
        pair.look(-1, pair.reference.machine, True, draw)
    else:
        pair.force(None, None, draw)


PARTS = ("breaker_rates", "breaker_moves", "breaker")
"""The files of the breaker, each importing those before it."""


def mutant(old: str, new: str) -> Any:
    """The breaker with one place of its source changed, loaded beside the real one."""
    folder = Path(breaker.__file__).parent
    sources = {part: (folder / f"{part}.py").read_text() for part in PARTS}
    hits = [part for part in PARTS if old in sources[part]]
    assert len(hits) == 1, f"the mutation must hit one place, not {hits}: {old!r}"
    assert sources[hits[0]].count(old) == 1, f"the mutation must hit one place: {old!r}"
    sources[hits[0]] = sources[hits[0]].replace(old, new)
    for part in PARTS:
        name = f"mutant_{part}"
        source = sources[part]
        for earlier in PARTS:
            source = source.replace(f"from kensho.resilience.{earlier} import", f"from mutant_{earlier} import")
        module = types.ModuleType(name)
        sys.modules[name] = module
        exec(compile(source, name, "exec"), module.__dict__)
    return sys.modules["mutant_breaker"]


def main(steps: int) -> None:
    """The long form: `python tests/resilience/reference_breaker.py 1000000`."""
    began_s, pairs = time.monotonic(), [walk(breaker, steps // 10, seed) for seed in range(10)]
    changes = set[tuple[str, str]]().union(*(pair.changes for pair in pairs))
    done = sum(pair.steps for pair in pairs)
    print(f"breaker: {done} steps, {len(changes)} kinds of change, no difference, {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]))
