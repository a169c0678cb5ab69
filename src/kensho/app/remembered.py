"""What circuits remember when no program runs them: shown to a person, and changed by one (row S1).

A person's word means here what it means to a running circuit (`resilience.breaker`), from when a program next loads the
model. A program that has the model loaded does not look: whoever can reach it speaks to it instead.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kensho.app.circuit_file import FILE_NAME, read_circuits, write_circuits
from kensho.base.clock import Clock
from kensho.base.events import Emit, circuit_changed
from kensho.base.structs import Struct

if TYPE_CHECKING:
    from kensho.app.activity import LoadedModel
    from kensho.resilience.circuit import Mode
    from kensho.resilience.saved_circuit import SavedCircuit


ENGINES = ("primary", "standby")
"""Of every model."""


class KnownCircuit(Struct, kw_only=True):
    """A circuit in words: one line of `STORE/circuits.json`, or (`is_loaded`) one that runs."""

    model: str
    engine: str
    state: str
    reason: str
    advice: str
    """What a person can do; empty: nothing is needed."""
    next_step: str = ""
    """What happens when a program next loads the model, or until then."""
    is_loaded: bool = False
    is_off: bool = False
    """No program starts the engine until a person, or the machine, says so. Told of what is remembered."""


def look_at_circuits(store: Path, loaded: "Iterable[LoadedModel]" = ()) -> list[KnownCircuit]:
    """What is remembered, by model and engine; nothing on a healthy machine. Of engines that are `loaded` the circuit
    itself is asked instead. Raises no error."""
    path = store / FILE_NAME
    if not path.exists():  # and nothing is imported for it
        return []
    from kensho.runtime.cache.graph_entry import read_boot_id

    boot = read_boot_id()
    running = {(model.model, engine.engine) for model in loaded for engine in model.engines}
    kept = sorted(read_circuits(path).items())
    return [_describe(*key, circuit, boot) for key, circuit in kept if key not in running]


def giving_back(model: str, engine: str) -> str:
    """The command by which a person gives an engine back."""
    return f"kensho circuit {engine} auto --model {model}"


def tell_circuit(
    store: Path, model: str, engine: str, mode: "Mode | None", *, clock: Clock, emit: Emit
) -> KnownCircuit:
    """Keep a person's word: one of the forced modes, or None to give the decision back: an engine that was off, or
    forced, is then proven before it gets requests. Blocks for a sync of the disk. Raises StorageError."""
    from kensho.resilience.circuit import Mode
    from kensho.resilience.saved_circuit import SavedCircuit
    from kensho.runtime.cache.graph_entry import read_boot_id

    path = store / FILE_NAME
    before = read_circuits(path).get((model, engine))
    after = _told(before, mode)
    if after is None:
        begins = SavedCircuit(Mode.CLOSED, 0, "nothing is remembered of it", "")
        return _describe(model, engine, begins, "")
    told = _describe(model, engine, after, read_boot_id())
    if after != before:
        write_circuits(path, {(model, engine): after}, clock=clock)
        emit(
            circuit_changed(
                model=model,
                engine=engine,
                from_state=before.mode.value if before else Mode.CLOSED.value,
                to_state=told.state,
                reason=told.reason,
                next_step=told.next_step,
            )
        )
    return told


def _told(before: "SavedCircuit | None", mode: "Mode | None") -> "SavedCircuit | None":
    """What is kept after a person's word. Pure. None: nothing, as before."""
    from kensho.resilience.circuit import FORCED, Mode
    from kensho.resilience.saved_circuit import SavedCircuit

    fingerprint = before.fingerprint if before else ""
    if mode is not None:
        return SavedCircuit(mode, 0, "a person said so", fingerprint)
    if before is None or before.mode not in (*FORCED, Mode.HARD_OPEN):
        return before
    return SavedCircuit(Mode.HALF_OPEN, 0, "a person gave it back", fingerprint)


def _describe(model: str, engine: str, circuit: "SavedCircuit", boot: str) -> KnownCircuit:
    from kensho.resilience.circuit import ADVICE, Mode

    advice, is_off = "", False
    proven = "when its model is next loaded it is started, and proven before it gets requests"
    match circuit.mode:
        case Mode.HARD_OPEN if boot and not circuit.fingerprint.startswith(boot):
            next_step = f"the machine was booted since: {proven}"
        case Mode.HARD_OPEN:
            is_off = True
            next_step = "it stays off while engine, driver and model are the same ones"
            advice = f"{ADVICE[circuit.hard]}; " if circuit.hard else ""
            advice += f"to try it again: {giving_back(model, engine)}"
        case Mode.FORCED_OPEN:
            is_off = True
            next_step = "it gets no requests until a person gives it back"
        case Mode.FORCED_CLOSED:
            next_step = "it gets requests whatever happens, until a person gives it back"
        case Mode.METRICS_ONLY:
            next_step = "it gets requests, and says when it would have opened, until a person gives it back"
        case Mode.CLOSED:
            next_step = "it gets requests when its model is next loaded"
        case _:
            next_step = proven
    return KnownCircuit(
        model=model,
        engine=engine,
        state=circuit.mode.value,
        reason=circuit.reason,
        advice=advice,
        next_step=next_step,
        is_off=is_off,
    )
