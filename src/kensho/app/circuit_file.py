"""`STORE/circuits.json`: what the circuits of this store's engines take along over a restart of the program.

A circuit that has nothing to remember has no line, so that a healthy store has no file and a start reads none. Changes
are written by a thread, because a sync of the disk takes longer than the gap of a failover may; the newest state wins.
Several programs may share a store: each writes its own lines over what it finds, and of two that write in the same
instant one may be forgotten. A file that cannot be read or written is as good as none: the circuits begin anew.
"""

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from kensho.base.events import Emit, ErrorRaised
from kensho.resilience.circuit import Mode
from kensho.resilience.saved_circuit import SavedCircuit, from_json

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

FORMAT = 1
_MAX_BYTES = 256 * 1024
_MAX_CIRCUITS = 256


class CircuitFile:
    """Satisfies `resilience.surroundings.CircuitMemory`. Methods may be called from any thread."""

    def __init__(self, path: Path, *, emit: Emit) -> None:
        self._path = path
        self._emit = emit
        self._lock = threading.Lock()
        self._changes: dict[str, SavedCircuit] = {}
        self._being_written: dict[str, SavedCircuit] = {}
        self._writer: ThreadPoolExecutor | None = None

    def load(self, model: str, engine: str) -> SavedCircuit | None:
        """What was kept of this circuit; None: nothing. 20 us while there is no file."""
        key = f"{model}/{engine}"
        with self._lock:
            waiting = self._changes.get(key) or self._being_written.get(key)
        return waiting or self._read().get(key)

    def save(self, model: str, engine: str, circuit: SavedCircuit) -> None:
        """Keep it, soon. Returns at once."""
        from concurrent.futures import ThreadPoolExecutor

        with self._lock:
            self._changes[f"{model}/{engine}"] = circuit
            if self._writer is None:
                self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="circuits")
            self._writer.submit(self._write)

    def close(self) -> None:
        """Returns when everything is written. Idempotent; `save` may be called again after it."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer:
            writer.shutdown(wait=True)

    def _read(self) -> dict[str, SavedCircuit]:
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError:
            return {}
        import json

        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return {}
        lines = document.get("circuits") if isinstance(document, dict) and document.get("format") == FORMAT else None
        if not isinstance(lines, dict) or len(data) > _MAX_BYTES:
            return {}
        read = {key: from_json(line) for key, line in list(lines.items())[:_MAX_CIRCUITS]}
        return {key: circuit for key, circuit in read.items() if circuit is not None}

    def _write(self) -> None:
        with self._lock:
            changes, self._changes = self._changes, {}
            self._being_written = changes
        if changes:
            self._put(changes)
        with self._lock:
            self._being_written = {}

    def _put(self, changes: dict[str, SavedCircuit]) -> None:
        before = self._read()
        kept = {key: one for key, one in (before | changes).items() if one.mode is not Mode.CLOSED}
        if kept == before:
            return
        import json

        lines = {key: kept[key].as_json() for key in sorted(kept)[:_MAX_CIRCUITS]}
        data = json.dumps({"format": FORMAT, "circuits": lines}, indent=1).encode()
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.{id(self)}")
        try:
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            self._emit(
                ErrorRaised(
                    code="storage",
                    reason=f"the states of circuits cannot be kept in {self._path}: {error.strerror}",
                    frames=(),
                )
            )
