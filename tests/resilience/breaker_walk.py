"""Random lives of a breaker and of its reference, with the same inputs.

`Pair` gives them to a breaker (or a mutant of it) and to the reference, and compares everything that can be seen: the
mode, every counter, and all that is to be done, in its order and with its moments. Numbers are equal to the last bit.
`walk` is a long random life of a pair.
"""

import random
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reference_breaker import COUNTED, OPEN_TO_ALL, Deed, Reference

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
            before = len(self.canaries)
            self.do(event, lambda: self.reference.settle_canary(ticket, outcome, draw), draw)
            self.canaries.insert(before, (generation, ticket))  # it may say something once more, which is stale

    def settle_host(self, which: int, outcome: F | str, draw: float) -> None:
        if self.hosts:
            generation, ticket = self.hosts.pop(which % len(self.hosts))
            event = HostReady(generation) if outcome == "ok" else HostFailed(generation, F(outcome))
            before = len(self.hosts)
            self.do(event, lambda: self.reference.settle_host(ticket, outcome, draw), draw)
            self.hosts.insert(before, (generation, ticket))

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
                rng.choice(["any", "any", "any", "any", "good", "mixed", "slow", *TROUBLES]),
                rng.randrange(20, 60),
            )
        left -= 1
        _act(pair, rng, mood)
        del pair.permits[:-50], pair.canaries[:-5], pair.hosts[:-5], pair.looks[:-5]
    return pair


TROUBLES: dict[str, tuple[F, list[F], list[F]]] = {
    "crashes": (F.CRASH, [], []),
    "wrong": (F.CRASH, [], [F.MISMATCH, F.WRONG_NUMBERS]),
    "dead": (F.CRASH, [F.CRASH], []),
    "lost": (F.DEVICE_LOST, [F.DEVICE_LOST], []),
    "poor": (F.CRASH, [F.SHORTAGE, F.OUT_OF_MEMORY], [F.SHORTAGE]),
}
"""Moods in which an engine comes and goes: what its requests then meet, and half of its starts, and of its canaries."""


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
    mode, (met, at_start, at_canary) = pair.reference.mode, TROUBLES[mood]
    if mode == "CLOSED":
        pair.advance(rng.choice([0.0, 20.0, 150.0, 250.0, 600.0]), draw)
        if rng.random() < 0.2:
            pair.woke(draw)
        pair.admit(draw)
        pair.settle(-1, met, None, draw)
    elif mode == "RESTARTING":
        if rng.random() < 0.5:
            pair.begin(-1 - len(pair.canaries), draw)
        if rng.random() < 0.2:
            pair.settle_host(-2, "ok", draw)
        pair.settle_host(-1, rng.choice(at_start) if at_start and rng.random() < 0.5 else "ok", draw)
    elif mode == "HALF_OPEN":
        if rng.random() < 0.5:
            pair.begin(-1, draw)
        if rng.random() < 0.2:
            pair.advance(None, draw)  # too late: what it says from now on is stale
            pair.settle_host(-1, "ok", draw)
        if rng.random() < 0.3:
            pair.settle_canary(-2, "ok", draw)
        pair.settle_canary(-1, rng.choice(at_canary) if at_canary and rng.random() < 0.5 else "ok", draw)
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
    """The long form: `python tests/resilience/breaker_walk.py 1000000`."""
    began_s, pairs = time.monotonic(), [walk(breaker, steps // 10, seed) for seed in range(10)]
    changes = set[tuple[str, str]]().union(*(pair.changes for pair in pairs))
    done = sum(pair.steps for pair in pairs)
    print(f"breaker: {done} steps, {len(changes)} kinds of change, no difference, {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]))
