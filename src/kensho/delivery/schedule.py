"""When work that nobody waits for is due: the pace of a scrub, the start of a pull. Pure.

A scrub goes through a fixed list of pieces in passes. Each pass is spread evenly over less than half of the period, so
two readings of the same byte are never further apart than the period, however the pieces are cut.

A pull that every machine of a fleet starts by the same crontab line would meet all the others at the server: each
waits a random time first (list item 24 of the delivery design).
"""

from collections.abc import Sequence

from kensho.base.backoff import Rng
from kensho.base.clock import Seconds
from kensho.base.structs import Struct

PASS_SHARE = 0.45
"""Of the period: two passes, and a tenth of the period to spare for a machine that is late."""
SLICE_BYTES = 16 << 20
"""Some 30 ms of hashing: about as long as closing the application waits. A guess."""
IDLE_WAIT_S: Seconds = 3600.0
"""With nothing installed, or nothing due for longer, look again after this: models come and clocks are set. At most a
hundredth of the period, so that a new model does not wait for its first reading."""


class ScrubState(Struct):
    """A pass: the first `done` of its pieces were hashed since `started_at` (wall clock)."""

    ends: Sequence[int]
    """For each piece: bytes of the pass up to and with it."""
    done: int
    started_at: Seconds
    period_s: Seconds

    @property
    def pass_s(self) -> Seconds:
        return self.period_s * PASS_SHARE

    @property
    def idle_s(self) -> Seconds:
        return min(IDLE_WAIT_S, self.period_s / 100)


class Slice(Struct):
    """Hash the pieces from `first` up to, not with, `last` now; if that is none, wait and ask again."""

    first: int
    last: int
    wait_s: Seconds
    started_at: Seconds
    """Of the pass that the slice belongs to."""
    is_new_pass: bool = False


def next_slice(state: ScrubState, now: Seconds) -> Slice:
    """What is due at `now` (wall clock). O(size of the slice).

    Every piece is due in proportion to the bytes before it, the first at the start and all within `pass_s`. The next
    pass starts `pass_s` after this one, or when this one is done if that is later. A clock that was set back shifts
    the pass and keeps what is done; one that was set forward makes it late, and what is late is due at once.
    """
    ends, pass_s = state.ends, state.pass_s
    total = ends[-1] if ends else 0

    def bytes_before(index: int) -> int:
        return ends[index - 1] if index else 0

    first, started_at, is_new_pass = state.done, state.started_at, False
    if now < started_at:
        started_at = now - pass_s * (bytes_before(first) / total if total else 0.0)
    if not ends:
        return Slice(0, 0, state.idle_s, started_at)
    if first == len(ends):
        wait_s = started_at + pass_s - now
        if wait_s > 0:
            return Slice(first, first, min(wait_s, state.idle_s), started_at)
        first, started_at, is_new_pass = 0, now, True
    bytes_due = min((now - started_at) / pass_s, 1.0) * total
    last = first
    while last < len(ends) and bytes_before(last) <= bytes_due:
        if last > first and ends[last] - bytes_before(first) > SLICE_BYTES:
            break
        last += 1
    wait_s = 0.0
    if last == first:
        due_at = started_at + pass_s * bytes_before(first) / total
        wait_s = min(max(due_at - now, 0.001), state.idle_s)  # 1 ms: rounding must not make it spin
    return Slice(first, last, wait_s, started_at, is_new_pass)


def start_delay(jitter_s: Seconds, rng: Rng) -> Seconds:
    """How long to wait before a pull that nobody waits for: uniform in [0, `jitter_s`). One draw from `rng`."""
    return jitter_s * rng()
