"""Every change that a circuit can make, as data, and the diagram of it in docs/resilience.md.

`breaker.step` does not read this table: a test walks along it and finds exactly these changes, no more and no fewer, so
that what the guide shows is what happens.
"""

from kensho.base.structs import Struct
from kensho.resilience.circuit import FORCED, Mode


class Transition(Struct):
    before: Mode
    after: Mode
    because: str


_C, _O, _H, _R, _X = Mode.CLOSED, Mode.OPEN, Mode.HALF_OPEN, Mode.RESTARTING, Mode.HARD_OPEN

TRANSITIONS = (
    Transition(_C, _O, "failures in a row, or rates, too high, or crashes too often"),
    Transition(_C, _R, "crash, hang, sticky error, second want of memory"),
    Transition(_C, _H, "the machine slept"),
    Transition(_C, _X, "device lost, driver mismatch, unkillable"),
    Transition(_O, _H, "the wait is over"),
    Transition(_O, _R, "the wait is over, and the host was killed"),
    Transition(_O, _X, "unkillable"),
    Transition(_R, _H, "the host is up"),
    Transition(_R, _O, "the start failed"),
    Transition(_R, _X, "third failed start, device lost, driver mismatch, unkillable"),
    Transition(_H, _C, "two canaries passed"),
    Transition(_H, _O, "a canary failed or was late"),
    Transition(_H, _X, "third mismatch in a row, third failed start, device lost, driver mismatch, unkillable"),
    Transition(_X, _R, "the machine or the engine changed, the device is back, or a person gave it back"),
    Transition(_X, _X, "unkillable"),
    *(Transition(forced, _R, "a person gave it back, or its time is over") for forced in sorted(FORCED)),
    *(Transition(before, forced, "a person said so") for before in Mode for forced in sorted(FORCED)),
)


def diagram() -> str:
    """A Mermaid state diagram. The three states that a person forces are drawn as one."""
    forced = "FORCED"
    lines = ["stateDiagram-v2", f"    [*] --> {_C}: the program starts"]
    lines += [
        f"    {one.before} --> {one.after}: {one.because}"
        for one in TRANSITIONS
        if not {one.before, one.after} & FORCED and one.before is not one.after
    ]
    lines += [
        f"    [*] --> {forced}: a person says so, in any state",
        f"    {forced} --> {_R}: a person gives it back, or its time is over",
        f'    state "{", ".join(sorted(FORCED))}" as {forced}',
    ]
    return "\n".join(lines)
