"""What a circuit must do, told a second time and in another way: mutable, with live tickets instead of generation
numbers, lists of moments instead of buckets and counters, and the default settings written out as numbers.

`breaker_walk` gives it and a breaker the same inputs. Nothing is copied from one to the other.
"""

from typing import Any

from kensho.resilience.circuit import Mode
from kensho.resilience.failure_class import FailureClass as F

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
