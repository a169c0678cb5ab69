"""A token stream that outlives its engine (row S8): no token lost, repeated, or changed after it was shown.

When an engine fails in mid-stream, another one gets prompt + accepted ids in one prefill and goes on. Because the
draw at each position depends on (seed, position) alone, nothing else has to travel. What the second engine says after
the accepted prefix is its own opinion: the same for the same arithmetic, and possibly other words for other.

`next_move` decides, purely; `generate_with_failover` acts. A client that goes away is no failure of the engine.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import assert_never

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import EngineError, EngineHung
from kensho.base.events import Emit, StreamMoved
from kensho.base.inference import Engine, Sampling
from kensho.base.structs import Struct
from kensho.resilience.classify import FailureClass, classify
from kensho.resilience.guard import Guard


class FailoverSettings(Struct):
    max_moves: int = 3
    """A stream that was moved this often is given up: the request itself may be what kills engines. Guess."""
    first_token_s: Seconds = 8.0
    """Longest silence before the first token, beside `prefill_id_s` for each id of the prompt. Guess; less than the
    shortest default deadline, so that a hang is found and the stream moved before its reader gives up."""
    prefill_id_s: Seconds = 0.01
    """Ten times what 270 M parameters take for one id on one slow core."""
    token_s: Seconds = 5.0
    """Longest silence between two tokens. Guess; a host with a budget of its own may be quicker."""


class Candidate(Struct):
    """One engine as a stream sees it, in order of preference."""

    admits: bool
    is_loaded: bool
    """It was up at least once: using it does not begin with a load."""
    is_free: bool


class Use(Struct):
    index: int


class Finish(Struct):
    """Everything that was asked for is there."""


class GiveUp(Struct):
    reason: str


Move = Use | Finish | GiveUp


def next_move(candidates: Sequence[Candidate], *, missing: int, moves: int, max_moves: int, failed: int | None) -> Move:
    """Where a stream goes next. Pure.

    `missing`: tokens still to make (max_tokens - accepted). `failed`: index of the engine that just failed, None at
    the beginning. Order: others before the one that just failed, loaded engines before
    those that are not, free ones before busy ones.
    """
    if missing <= 0:
        return Finish()
    if moves > max_moves:
        return GiveUp(f"the stream lost its engine {moves} times")
    open_to_it = [i for i, candidate in enumerate(candidates) if candidate.admits]
    if not open_to_it:
        return GiveUp("no engine can take it now")
    return Use(min(open_to_it, key=lambda i: (i == failed, not candidates[i].is_loaded, not candidates[i].is_free, i)))


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

    def token_made(self, engine: str, now_s: Seconds) -> None:
        if self._tokens == 0:
            self._first_s = now_s
        self._engine, self._last_s = engine, now_s
        self._tokens += 1

    def lost(self, engine: str, why: EngineError, silent_since_s: Seconds) -> None:
        """The engine failed. Of several failures without a token between them the first began the silence."""
        self._failovers += 1
        self._lost = (engine, why, self._lost[2] if self._lost else silent_since_s)

    def resumed(self, engine: str, now_s: Seconds) -> StreamMoved | None:
        """The stream goes on. What to tell, if it had been lost."""
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
    def record(self) -> StreamRecord:
        streaming_s = self._last_s - self._first_s
        return StreamRecord(
            engine=self._engine,
            tokens=self._tokens,
            failovers=self._failovers,
            gap_ms=self._gap_ms,
            first_token_ms=(self._first_s - self._began_s) * 1e3,
            tokens_per_second=(self._tokens - 1) / streaming_s if streaming_s > 0 else 0.0,
        )


async def generate_with_failover(
    guards: Sequence[Guard],
    prompt_ids: Sequence[int],
    sampling: Sampling,
    *,
    progress: StreamProgress,
    settings: FailoverSettings,
    clock: Clock,
    emit: Emit,
) -> AsyncGenerator[int, None]:
    """Token ids of the answer, from the first of `guards` (in order of preference) that can make them.

    Raises EngineError when no engine is left. Closing it cancels the engine's work and counts as nobody's failure.
    """
    accepted: list[int] = []
    failed: int | None = None
    why: EngineError | None = None
    while True:
        missing = sampling.max_tokens - len(accepted)
        index = _choose(
            guards,
            missing=missing,
            moves=progress.record.failovers,
            max_moves=settings.max_moves,
            failed=failed,
            why=why,
        )
        if index is None:
            return
        guard = guards[index]
        async with guard.lane:
            permit = guard.admit()
            if permit is None:  # its circuit opened while the lane was awaited
                continue
            watch = _Watch(guard.engine, clock)
            try:
                await guard.start()
                prefill_s = settings.prefill_id_s * (len(prompt_ids) + len(accepted))
                watch.expect(settings.first_token_s + prefill_s)
                async with aclosing(guard.engine.generate(prompt_ids, tuple(accepted), sampling)) as ids:
                    while (token := await anext(ids, None)) is not None:
                        now_s = watch.pause()
                        if moved := progress.resumed(guard.name, now_s):
                            emit(moved)
                        progress.token_made(guard.name, now_s)
                        accepted.append(token)
                        yield token
                        watch.expect(settings.token_s)
                if moved := progress.resumed(guard.name, clock.monotonic_s()):
                    emit(moved)
            except EngineError as error:
                failed, why = index, watch.explain(error)
                progress.lost(guard.name, why, watch.since_s)
                guard.failed(permit, classify(why) or FailureClass.UNKNOWN)
            except BaseException:
                guard.cancelled(permit)
                raise
            else:
                guard.succeeded(permit)
                return
            finally:
                watch.close()


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
        """A token came; how long its reader takes is not the engine's fault. Returns the moment."""
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
        left_s = self._deadline_s - self._clock.monotonic_s()
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._look)
        else:
            self._killing = asyncio.create_task(self._engine.kill())


def _choose(
    guards: Sequence[Guard], *, missing: int, moves: int, max_moves: int, failed: int | None, why: EngineError | None
) -> int | None:
    """Index of the guard to use; None: the answer is complete. Raises EngineError."""
    seen = [Candidate(guard.admits, guard.was_started, not guard.lane.locked()) for guard in guards]
    move = next_move(seen, missing=missing, moves=moves, max_moves=max_moves, failed=failed)
    match move:
        case Use(index):
            return index
        case Finish():
            return None
        case GiveUp(reason):
            raise _nobody(guards, reason) from why
        case _:
            assert_never(move)


def _nobody(guards: Sequence[Guard], reason: str) -> EngineError:
    states = [(guard.name, guard.snapshot()) for guard in guards]
    waits = [seen.leaves_in_s for _, seen in states if seen.leaves_in_s is not None]
    back = f"try again in {max(1.0, min(waits)):.0f} s" if waits else "see `kensho status`"
    listed = ", ".join(f"{name} is {seen.mode} ({seen.reason})" for name, seen in states)
    return EngineError(f"no answer: {reason}; {listed}", advice=back)
