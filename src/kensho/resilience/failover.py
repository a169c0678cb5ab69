"""A token stream that outlives its engine (row S8): no token lost, repeated, or changed after it was shown.

When an engine fails in mid-stream, another one gets prompt + accepted ids in one prefill and goes on. Because the
draw at each position depends on (seed, position) alone, nothing else has to travel. What the second engine says after
the accepted prefix is its own opinion: the same for the same arithmetic, and possibly other words for other.

`after_failure` decides, purely; `use_engine` is one engine's part of a stream, and `hedged` two engines' race for its
first token. A client that goes away is no failure of the engine.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import EngineError, EngineHung, EngineUnkillable
from kensho.base.events import StreamMoved
from kensho.base.inference import Engine, Sampling
from kensho.base.structs import Struct
from kensho.resilience.classify import FailureClass, classify
from kensho.resilience.estimate import EngineTimes
from kensho.resilience.guard import Guard

Part = tuple[str, int]
"""(engine, token id)"""


_LOOP_STALLED_S: Seconds = 0.05
"""A timer that rings later than this says that this process did not run, and nothing about the engine."""


class FailoverSettings(Struct):
    max_moves: int = 3
    """A stream that was moved this often is given up: the request itself may be what kills engines. Guess."""
    first_token_s: Seconds = 8.0
    """Longest silence before the first token, beside `prefill_id_s` for each id of the prompt. Guess; less than the
    shortest default deadline, so that a hang is found and the stream moved before its reader gives up."""
    prefill_id_s: Seconds = 0.01
    """Ten times what 270 M parameters take for one id on one slow core."""
    token_s: Seconds = 5.0
    """Longest silence between two tokens, until the engine's own pace is known (`silence.py`). Guess."""
    retry_share: float = 0.2
    """Of all calls: how many may be made again although the engine that failed still takes requests. One whose circuit
    has opened is left for another without limit: that is no storm."""
    hedge_share: float = 0.05
    """Of CRITICAL calls: how many may run on a second engine too when the first is late; 0 = none."""
    hedge_after: float = 3.0
    """Late: that many times its p95 to the first token."""


class GoOn(Struct):
    """Another engine, or the same one after others, makes the rest."""


class Finish(Struct):
    """Everything that was asked for is there."""


class GiveUp(Struct):
    reason: str


Move = GoOn | Finish | GiveUp


def after_failure(*, missing: int, moves: int, max_moves: int, may_repeat: bool) -> Move:
    """What becomes of a stream whose engine failed. Pure.

    `missing`: tokens still to make (max_tokens - accepted). `moves`: failures so far, this one included. `may_repeat`:
    the engine's circuit has opened, or the budget of repetitions allows one.
    """
    if missing <= 0:
        return Finish()
    if moves > max_moves:
        return GiveUp(f"the stream lost its engine {moves} times")
    return GoOn() if may_repeat else GiveUp("too many calls had to be repeated lately")


class StreamRecord(Struct):
    """The figures of one stream, for its last chunk and for the log."""

    engine: str
    """Name of the engine that made the last token; empty if none did."""
    tokens: int
    failovers: int
    gap_ms: float
    """Longest silence that a failover cost: from the wait that ended in failure to the next token."""
    first_token_ms: float
    tokens_per_second: float
    """After the first token; 0 for fewer than two."""
    pauses: int = 0
    """How often it was interrupted, for an urgent request or because its reader did not read."""
    is_hedged: bool = False
    """A second engine was asked too, since the first was late."""


class StreamProgress:
    """What is measured while a stream runs; read `record` at any time."""

    def __init__(self, began_s: Seconds) -> None:
        self._began_s = began_s
        self._first_s = began_s
        self._last_s = began_s
        self._engine = ""
        self._tokens = 0
        self._failovers = 0
        self._gap_ms = 0.0
        self._lost: tuple[str, EngineError, Seconds] | None = None
        self.pauses = 0
        self.is_hedged = False

    def token_made(self, engine: str, now_s: Seconds) -> StreamMoved | None:
        """What to tell, if the stream had been lost and goes on with this token."""
        moved = self.resumed(engine, now_s)
        if self._tokens == 0:
            self._first_s = now_s
        self._engine, self._last_s = engine, now_s
        self._tokens += 1
        return moved

    def lost(self, engine: str, why: EngineError, silent_since_s: Seconds) -> None:
        """The engine failed. Of several failures without a token between them the first began the silence."""
        self._failovers += 1
        self._lost = (engine, why, self._lost[2] if self._lost else silent_since_s)

    def resumed(self, engine: str, now_s: Seconds) -> StreamMoved | None:
        """The stream goes on, or has found its end on another engine. What to tell, if it had been lost."""
        if self._lost is None:
            return None
        lost_engine, why, silent_since_s = self._lost
        self._lost = None
        gap_ms = (now_s - silent_since_s) * 1e3
        self._gap_ms = max(self._gap_ms, gap_ms)
        return StreamMoved(
            from_engine=lost_engine, to_engine=engine, accepted=self._tokens, reason=why.code, gap_ms=gap_ms
        )

    @property
    def failovers(self) -> int:
        return self._failovers

    @property
    def record(self) -> StreamRecord:
        streaming_s = self._last_s - self._first_s
        return StreamRecord(
            engine=self._engine,
            tokens=self._tokens,
            failovers=self._failovers,
            gap_ms=self._gap_ms,
            first_token_ms=(self._first_s - self._began_s) * 1e3,
            tokens_per_second=(self._tokens - 1) / streaming_s if streaming_s > 0 else 0.0,
            pauses=self.pauses,
            is_hedged=self.is_hedged,
        )


class EngineLost(Exception):  # not an error: the stream may go on elsewhere
    """An engine's part of a stream ended in a failure. Its circuit was told."""

    def __init__(self, engine: str, why: EngineError, silent_since_s: Seconds, *, was_working: bool) -> None:
        super().__init__(str(why))
        self.engine = engine
        self.why = why
        self.silent_since_s = silent_since_s
        self.was_working = was_working
        """It had the request in hand: it may have died of it."""


async def use_engine(
    guard: Guard,
    prompt_ids: Sequence[int],
    accepted_ids: Sequence[int],
    sampling: Sampling,
    *,
    times: EngineTimes,
    settings: FailoverSettings,
    clock: Clock,
) -> AsyncGenerator[Part, None]:
    """One engine's part of a stream: (engine, token id) after prompt + accepted. What it takes goes into `times`.

    Raises EngineLost, also when its circuit no longer admits. Closing it cancels the engine's work within one step and
    counts as nobody's failure.
    """
    known, silence, first_s = len(prompt_ids) + len(accepted_ids), guard.silence, 0.0
    async with guard.lane:
        permit = guard.admit()
        if permit is None:  # its circuit opened while the lane was awaited
            why = EngineError(f"engine {guard.name} takes no requests now", advice="another engine may")
            raise EngineLost(guard.name, why, clock.monotonic_s(), was_working=False)
        watch = _Watch(guard.engine, clock)
        is_working, made = False, 0
        try:
            await guard.start()
            is_working = True
            watch.expect(silence.first_token_s(known, settings.first_token_s + settings.prefill_id_s * known))
            async with aclosing(guard.engine.generate(prompt_ids, tuple(accepted_ids), sampling)) as ids:
                while (token := await anext(ids, None)) is not None:
                    now_s = watch.pause()
                    took_s = now_s - watch.since_s
                    if made:
                        times.stepped(took_s, now_s)
                        silence.gap(took_s)
                    else:
                        first_s = now_s
                        if not accepted_ids:  # one that goes on finds what it had computed, and is no measure
                            times.prefilled(known, took_s, now_s)
                        silence.first(took_s, known)
                    made += 1
                    yield guard.name, token
                    watch.expect(silence.token_s(settings.token_s))
        except EngineError as error:
            why = watch.explain(error)
            guard.failed(permit, classify(why) or FailureClass.UNKNOWN)
            raise EngineLost(guard.name, why, watch.since_s, was_working=is_working) from error
        except BaseException:
            guard.cancelled(permit)
            if is_working and not made:
                now_s = clock.monotonic_s()
                times.stopped(known, now_s - watch.since_s, now_s)
            raise
        else:
            guard.succeeded(permit, (watch.since_s - first_s) / (made - 1) if made > 1 else None)
        finally:
            watch.close()


async def hedged(
    first: AsyncGenerator[Part, None],
    second: Callable[[], AsyncGenerator[Part, None] | None],
    after_s: Seconds,
) -> AsyncGenerator[Part, None]:
    """The parts of `first`, or of what `second` gives if that has a token sooner. `second` is asked once, after
    `after_s` without a token, and may answer None. The loser is closed before the first token is given out.

    Raises EngineLost if nobody is left.
    """
    runners: dict[asyncio.Future[Part | None], AsyncGenerator[Part, None]]
    runners = {asyncio.ensure_future(anext(first, None)): first}
    try:
        await asyncio.wait(runners, timeout=after_s)
        if not any(task.done() for task in runners) and (other := second()) is not None:
            runners[asyncio.ensure_future(anext(other, None))] = other
        winner, part = await _first_part(runners)
        for task, stream in list(runners.items()):
            if stream is not winner:
                await _stop(task, stream)
        while part is not None:
            yield part
            part = await anext(winner, None)
    finally:
        for task, stream in runners.items():
            await _stop(task, stream)


async def _first_part(
    runners: dict["asyncio.Future[Part | None]", AsyncGenerator[Part, None]],
) -> tuple[AsyncGenerator[Part, None], Part | None]:
    running = set(runners)
    while True:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(done, key=lambda task: task.exception() is not None):
            if not isinstance(task.exception(), EngineLost) or not running:
                return runners[task], task.result()


async def _stop(task: "asyncio.Future[Part | None]", stream: AsyncGenerator[Part, None]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    await stream.aclose()


class _Watch:
    """Kills an engine that stays silent longer than expected. One timer a stream, not one a token."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._deadline_s: Seconds | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._killing: asyncio.Task[None] | None = None
        self.since_s = clock.monotonic_s()
        """When the wait for the present token began."""

    def expect(self, within_s: Seconds) -> None:
        """The wait for a token begins."""
        self.since_s = self._clock.monotonic_s()
        self._deadline_s = self.since_s + within_s
        loop = asyncio.get_running_loop()
        if self._timer and self._timer.when() > loop.time() + within_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_later(within_s, self._look)

    def pause(self) -> Seconds:
        """A token came; what is done with it is not the engine's fault. Returns the moment."""
        self._deadline_s = None
        return self._clock.monotonic_s()

    def explain(self, error: EngineError) -> EngineError:
        """`error`, or that the engine hung, if the death it reports was this watch's doing."""
        if self._killing is None:
            return error
        hung = EngineHung(
            f"no token from engine {self._engine.name} in time; its host was killed", advice="another engine goes on"
        )
        hung.__cause__ = error
        return hung

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._deadline_s is None:
            return
        now_s = self._clock.monotonic_s()
        if now_s - self._deadline_s > _LOOP_STALLED_S:  # what the engine said meanwhile is still to be read
            self._deadline_s = now_s + _LOOP_STALLED_S
        left_s = self._deadline_s - now_s
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._look)
        else:
            self._killing = asyncio.create_task(self._kill())

    async def _kill(self) -> None:
        with suppress(EngineUnkillable):  # the circuit kills it too, and acts on that
            await self._engine.kill()


def nobody_left(guards: Sequence[Guard], reason: str) -> EngineError:
    """The last word about a stream that no engine takes: which ones, why, and (`retry_after_s`) when to come back."""
    states = [(guard.name, guard.snapshot()) for guard in guards]
    waits_s = [seen.back_in_s for _, seen in states if seen.back_in_s is not None]
    listed = ", ".join(f"{name} is {seen.mode} ({seen.reason})" for name, seen in states)
    words = f"no answer: {reason}; {listed}"
    if not waits_s:
        return EngineError(words, advice="see `kensho status`")
    retry_after_s = max(1.0, min(waits_s))
    return EngineError(words, advice=f"try again in {retry_after_s:.0f} s", retry_after_s=retry_after_s)
