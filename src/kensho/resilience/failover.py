"""A request that outlives its engine (row S8): no token lost, repeated, or changed after it was shown.

When an engine fails in mid-stream, another one gets prompt + accepted ids in one prefill and goes on. Because the
draw at each position depends on (seed, position) alone, nothing else has to travel. What the second engine says after
the accepted prefix is its own opinion: the same for the same arithmetic, and possibly other words for other.

Here it is decided, purely, what becomes of a request whose engine failed, and what its record says; `engine_use` is one
engine's part of it, and `life` carries it from one to the next.
"""

from collections.abc import Sequence

from kensho.base.clock import Seconds
from kensho.base.errors import EngineError, EnginesOff
from kensho.base.events import StreamMoved
from kensho.base.structs import Struct
from kensho.resilience.circuit import ADVICE
from kensho.resilience.guard import Guard

MEASURABLE_S: Seconds = 0.01
"""Tokens that came within less have no pace: so long a busy machine may not have looked (37 tokens that took 18 ms to
make were read within 0.15 ms), and a short answer took no longer."""


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
    """What becomes of a request whose engine failed. Pure.

    `missing`: tokens still to make (max_tokens - accepted); 1 for an answer in one piece. `moves`: failures so far,
    this one included. `may_repeat`: the engine's circuit has opened, or the budget of repetitions allows one.
    """
    if missing <= 0:
        return Finish()
    if moves > max_moves:
        return GiveUp(f"it failed {'twice' if moves == 2 else f'{moves} times'}")
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
    """After the first token; 0 for fewer than two, and for those that were read at once (`MEASURABLE_S`)."""
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
            tokens_per_second=(self._tokens - 1) / streaming_s if streaming_s >= MEASURABLE_S else 0.0,
            pauses=self.pauses,
            is_hedged=self.is_hedged,
        )


def nobody_left(guards: Sequence[Guard], reason: str) -> EngineError:
    """The last word about a stream that no engine takes: which ones, why, and (`retry_after_s`) when to come back.
    EnginesOff if no engine would take another one either."""
    kind = EngineError if any(guard.admits for guard in guards) else EnginesOff
    states = [(guard.name, guard.snapshot()) for guard in guards]
    waits_s = [seen.back_in_s for _, seen in states if seen.back_in_s is not None]
    listed = ", ".join(f"{name} is {seen.mode} ({seen.reason})" for name, seen in states)
    words = f"no answer: {reason}; {listed}"
    if not waits_s:
        helps = [ADVICE[seen.hard] for _, seen in states if seen.hard][:1]
        give_back = "see `kensho circuit`; `kensho circuit ENGINE auto --model M` gives an engine back"
        return kind(words, advice="; ".join([*helps, give_back]))
    retry_after_s = max(1.0, min(waits_s))
    return kind(words, advice=f"try again in {retry_after_s:.0f} s", retry_after_s=retry_after_s)
