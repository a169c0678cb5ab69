"""A GPU that hangs for 300 of 600 s at 8 requests a second, in virtual time: Kensho beside Python's circuit breakers.

    python -m venv build/breaker-peers && build/breaker-peers/bin/pip install -r requirements/breaker-peers.in
    python bench/hang.py --peers build/breaker-peers [--seeds 3]

Everybody has the same two engines (`kensho.testing.hang`): the primary answers in 50 ms, the standby in 100, one at a
time. A peer's breaker stands before the primary, opens after 3 failures and tries again after 60 s; a call that takes
longer than its time-out is cancelled, and goes to the standby, as every call does while the breaker is open. Five
seconds is the time-out that people write; one second is as soon as Kensho takes an engine for hung. Their clocks are
those of the event loop. Floor: the standby alone serves everybody.

Touched: requests that were sent to the primary while it hung. Probes: those that were sent to it while it was known to
be ill. Late: answers that took more than 2 s. Bars (issue 6): Kensho's at most 7 touched, 0 late, 0 probes.
"""

import argparse
import asyncio
import contextlib
import datetime
import importlib
import importlib.metadata
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest import mock

from breaker_peers import AioBreaker, CircuitBreaker, Hyx, Peer, Purgatory
from harness import print_bar, print_machine
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import ScriptedEngine
from kensho.testing.hang import TOKENS, Ask, Contestant, Hang, HangingEngine, Seen, kensho, play_hang, standby_alone

KINDS: tuple[type[Peer], ...] = (CircuitBreaker, AioBreaker, Purgatory, Hyx)
OPEN_S = 60.0
TIMEOUTS_S = (5.0, 1.0)


def peer(kind: type[Peer] | None, timeout_s: float) -> Contestant:
    """A breaker before the primary, the standby behind it. None: no breaker, only the time-out."""

    @contextlib.asynccontextmanager
    async def contestant(primary: HangingEngine, standby: ScriptedEngine, _: VirtualClock) -> AsyncIterator[Ask]:
        await asyncio.gather(primary.start(), standby.start())
        breaker, is_known = kind(OPEN_S) if kind else None, False

        async def ask(prompt_ids: Sequence[int]) -> tuple[list[int], str]:
            nonlocal is_known
            was_sent = False

            async def fast() -> list[int]:
                nonlocal was_sent
                was_sent = True
                async with asyncio.timeout(timeout_s):
                    return [token async for token in primary.generate(prompt_ids, (), TOKENS)]

            try:
                ids = await (breaker.guard_async(fast) if breaker else fast)()
            except Exception:  # the time-out, or the breaker's word for "open"
                is_known = is_known or not was_sent
                return [token async for token in standby.generate(prompt_ids, (), TOKENS)], standby.name
            is_known = False
            return ids, primary.name

        primary.is_trusted = lambda: not is_known
        yield ask

    return contestant


@contextlib.contextmanager
def on_virtual_time(clock: VirtualClock, kinds: Sequence[type[Peer]]) -> Iterator[None]:
    """The clocks that the peers read, wherever they have imported them to."""

    class Virtual(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.fromtimestamp(clock.wall_s(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return datetime.datetime.fromtimestamp(clock.wall_s(), datetime.UTC).replace(tzinfo=None)

    clocks: dict[type[Peer], list[tuple[str, str, object]]] = {
        CircuitBreaker: [("circuitbreaker", "monotonic", clock.monotonic_s)],
        AioBreaker: [("aiobreaker.state", "datetime", Virtual), ("aiobreaker.circuitbreaker", "datetime", Virtual)],
        Purgatory: [("purgatory.domain.model", "time", SimpleNamespace(time=clock.wall_s))],
        Hyx: [("hyx.circuitbreaker.states", "datetime", Virtual)],
    }
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            for module, name, instead in clocks[kind]:
                stack.enter_context(mock.patch.object(importlib.import_module(module), name, instead))
        yield


def installed() -> tuple[list[type[Peer]], list[str]]:
    there: list[type[Peer]] = []
    absent = []
    for kind in KINDS:
        try:
            kind(OPEN_S)
        except ImportError:
            absent.append(kind.name)
        else:
            there.append(kind)
    return there, absent


def show(name: str, seen: Sequence[Seen]) -> None:
    def mid(of: Callable[[Seen], float]) -> float:
        return median(of(one) for one in seen)

    longest = max(one.took_s for seed in seen for one in seed.answered)
    print(
        f"{name:<32} {mid(lambda s: s.touched):8.0f} {mid(lambda s: s.probes):7.0f} {mid(lambda s: s.late):6.0f}"
        f" {mid(lambda s: s.p99_s):7.2f} s {longest:7.1f} s {mid(lambda s: len(s.failed)):7.0f}"
        f"    {mid(lambda s: s.back_after_s):6.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("build/breaker-peers"), help="their virtual environment")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    sys.path += map(str, args.peers.glob("lib/python*/site-packages"))
    print_machine()
    kinds, absent = installed()
    names = [kind.name for kind in kinds]
    print("beside: " + (", ".join(f"{name} {importlib.metadata.version(name)}" for name in names) or "nobody"))
    if absent:
        print(f"absent, so not measured: {', '.join(absent)} (see requirements/breaker-peers.in)")
    hang = Hang()
    print(
        f"\nvirtual: {hang.per_s:g} requests/s, a hang from {hang.begins_s:g} to {hang.ends_s:g} s of {hang.until_s:g}"
    )
    print(f"medians of {args.seeds} seeds{'touched':>22}  probes   late     p99   longest  failed   back after")
    contestants: dict[str, Contestant] = {"kensho": kensho(), "floor: the standby alone": standby_alone()}
    for timeout_s in TIMEOUTS_S:
        contestants[f"no breaker, {timeout_s:g} s"] = peer(None, timeout_s)
        contestants |= {f"{kind.name}, {timeout_s:g} s": peer(kind, timeout_s) for kind in kinds}
    found: dict[str, list[Seen]] = {}
    for name, contestant in contestants.items():
        for seed in range(1, args.seeds + 1):
            clock = VirtualClock()
            with on_virtual_time(clock, kinds):
                found.setdefault(name, []).append(play_hang(hang, contestant, seed=seed, clock=clock))
        show(name, found[name])
    own = found["kensho"]
    bars = [
        print_bar("requests that touched the hanging engine", max(seen.touched for seen in own), 7, ""),
        print_bar("answers later than 2 s", max(seen.late for seen in own), 0, ""),
        print_bar("requests without an answer", max(len(seen.failed) for seen in own), 0, ""),
        print_bar("requests of users as probes", max(seen.probes for seen in own), 0, ""),
    ]
    sys.exit(not all(bars))


if __name__ == "__main__":
    main()
