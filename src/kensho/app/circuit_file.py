"""`STORE/circuits.json`: what the circuits of this store's engines take along over a restart of the program.

A circuit that has nothing to remember has no line, so that a healthy store has no file and a start reads none. Changes
are written by a thread, because a sync of the disk takes longer than the gap of a failover may; the newest state wins.
Several programs may share a store: each writes its own lines over what it finds, one program after the other (a kernel
lock on the store's folder). A file that cannot be read or written is as good as none: the circuits begin anew.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import StorageError, StoreBusy
from kensho.base.events import Emit, ErrorRaised

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from kensho.resilience.saved_circuit import SavedCircuit

FILE_NAME = "circuits.json"
FORMAT = 1
LOCK_S: Seconds = 2.0
"""How long to wait for another writer (guess: a hundred syncs); one that was stopped in the middle holds its lock."""
_RETRY_S: Seconds = 0.01
_MAX_BYTES = 256 * 1024
_MAX_CIRCUITS = 256

Key = tuple[str, str]
"""Model and engine."""


class CircuitFile:
    """Satisfies `resilience.surroundings.CircuitMemory`. Methods may be called from any thread."""

    def __init__(self, path: Path, *, clock: Clock, emit: Emit) -> None:
        self._path = path
        self._clock = clock
        self._emit = emit
        self._lock = threading.Lock()
        self._changes: dict[Key, SavedCircuit] = {}
        self._being_written: dict[Key, SavedCircuit] = {}
        self._writer: ThreadPoolExecutor | None = None

    def load(self, model: str, engine: str) -> "SavedCircuit | None":
        """What was kept of this circuit; None: nothing. 20 us while there is no file."""
        key = (model, engine)
        with self._lock:
            waiting = self._changes.get(key) or self._being_written.get(key)
        return waiting or read_circuits(self._path).get(key)

    def save(self, model: str, engine: str, circuit: "SavedCircuit") -> None:
        """Keep it, soon. Returns at once."""
        from concurrent.futures import ThreadPoolExecutor

        with self._lock:
            self._changes[model, engine] = circuit
            if self._writer is None:
                self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="circuits")
            self._writer.submit(self._write)

    def close(self) -> None:
        """Returns when everything is written. Idempotent; `save` may be called again after it."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer:
            writer.shutdown(wait=True)

    def _write(self) -> None:
        with self._lock:
            changes, self._changes = self._changes, {}
            self._being_written = changes
        if changes:
            try:
                write_circuits(self._path, changes, clock=self._clock)
            except StorageError as error:
                self._emit(ErrorRaised(code=error.code, reason=error.message, frames=()))
        with self._lock:
            self._being_written = {}


def read_circuits(path: Path) -> "dict[Key, SavedCircuit]":
    """What is kept now; empty for a file that is not there or makes no sense. Raises no error."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError:
        return {}
    import json

    from kensho.resilience.saved_circuit import from_json

    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    lines = document.get("circuits") if isinstance(document, dict) and document.get("format") == FORMAT else None
    if not isinstance(lines, dict) or len(data) > _MAX_BYTES:
        return {}
    read = {_key(name): from_json(line) for name, line in list(lines.items())[:_MAX_CIRCUITS]}
    return {key: circuit for key, circuit in read.items() if circuit is not None}


def write_circuits(path: Path, changes: "Mapping[Key, SavedCircuit]", *, clock: Clock) -> None:
    """Keep `changes` beside what others keep, in one rename. Blocks for a sync of the disk. Raises StoreBusy when
    another program does not come to an end of its writing, StorageError where the disk refuses or is not there."""
    from kensho.delivery.store import is_store, store_missing
    from kensho.resilience.circuit import Mode

    if not is_store(path.parent):
        raise store_missing(path.parent)
    with _writing(path, clock):
        before = read_circuits(path)
        kept = {key: one for key, one in {**before, **changes}.items() if one.mode is not Mode.CLOSED}
        if kept == before:
            return
        import json

        lines = {"/".join(key): kept[key].as_json() for key in sorted(kept)[:_MAX_CIRCUITS]}
        data = json.dumps({"format": FORMAT, "circuits": lines}, indent=1).encode()
        draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise StorageError(
                f"the states of circuits cannot be kept in {path}: {error.strerror}",
                advice="is the disk mounted, and may this user write there?",
            ) from error


@contextlib.contextmanager
def _writing(path: Path, clock: Clock) -> Iterator[None]:
    """The right to change the file. On a file system without locks nobody has it alone, and everybody goes on."""
    from kensho.runtime.cache.pins import FileLock

    until_s = clock.monotonic_s() + LOCK_S
    lock: FileLock | None = None
    with contextlib.suppress(OSError):
        while (lock := FileLock.on_folder(path.parent)) is None:
            if clock.monotonic_s() >= until_s:
                raise StoreBusy(f"another program is writing {path}", advice="try again when it has finished")
            clock.sleep(_RETRY_S)
    try:
        yield
    finally:
        if lock:
            lock.close()


def _key(name: str) -> Key:
    model, _, engine = name.partition("/")
    return model, engine
