"""The operations that change a store or a repository, each with what must hold after it was ended at any moment.

    stage = Stage(scratch)                        # three releases of a tiny model, published by the real publisher
    operation = OPERATIONS["update"]
    operation.prepare(stage, folder)              # the state before it
    operation.act(stage, folder, RealDisk())      # killed, failed or cut off somewhere in here
    operation.look(stage, folder)                 # AssertionError if what is left is neither old nor new

`look` looks as an engine would (the bytes of every listed version), as `verify --full` does, then runs the operation
again with no cleaning up, and looks once more. Time is virtual, one connection: every run is the same.
"""

import sys
from collections.abc import Callable, Mapping
from errno import EPERM
from pathlib import Path
from typing import Final

from kensho.base.errors import KenshoError
from kensho.delivery.checker import verify
from kensho.delivery.disk import Disk, RealDisk
from kensho.delivery.folder_source import FolderSource
from kensho.delivery.leases import lease_version
from kensho.delivery.repair import Repairer
from kensho.delivery.retention import gc, pin, rollback
from kensho.testing.client import Client
from kensho.testing.memory_source import read_folder
from kensho.testing.rehearsal_publishing import PUBLISHING
from kensho.testing.repository import SimulatedRepository
from kensho.testing.stage import DAMAGED_AT, FILES, Look, Operation, Stage, check_content, hold

# --- init ---


def _prepare_nothing(stage: Stage, root: Path) -> None:
    del stage, root


def _init(stage: Stage, root: Path, disk: Disk) -> None:
    client = stage.client(root, disk)
    try:
        with client.store.writing():
            client.store.state.set_setting("source", "here")
    finally:
        client.store.close()


def _look_at_init(stage: Stage, root: Path) -> Look:
    is_new = (root / "format").exists() and (root / "trusted" / "root.json").exists()
    if is_new:
        client = stage.client(root)
        is_new = client.store.state.setting("source") == "here"
        client.store.close()
    return Look(is_new, _look_at_store(stage, root, _pull(stage.first), before=None, after="1.0").bytes_fetched)


# --- install, update, repair, rollback, gc ---


def _pull(world: SimulatedRepository) -> Callable[[Client], int]:
    def act(client: Client) -> int:
        report = client.pull(FolderSource(world.folder))
        if report.first_error:
            raise report.first_error
        return report.bytes_fetched

    return act


def _repair_from(world: SimulatedRepository) -> Callable[[Client], int]:
    def act(client: Client) -> int:
        emit = client.events.append
        damaged = verify(client.store, is_full=True, clock=client.clock, emit=emit).damaged
        sources = [FolderSource(world.folder)]
        repairer = Repairer(client.store, sources, emit=emit, clock=client.clock, rng=lambda: 0.5, connections=1)
        report = repairer.repair(damaged)
        if report.error:
            raise report.error
        return report.bytes_fetched

    return act


def _roll_back(client: Client) -> int:
    rollback(client.store, "voice", "1.0", clock=client.clock, emit=client.events.append)
    return 0


def _collect(client: Client) -> int:
    gc(client.store, clock=client.clock)
    return 0


def _prepared(*steps: Callable[[Stage], Callable[[Client], int]]) -> Callable[[Stage, Path], None]:
    def prepare(stage: Stage, root: Path) -> None:
        client = stage.client(root)
        for step in steps:
            step(stage)(client)
        client.store.close()

    return prepare


def _prepare_three_versions(stage: Stage, root: Path) -> None:
    """The first one is in use while the third comes, so that the pull does not remove it by itself."""
    client = stage.client(root)
    _pull(stage.first)(client)
    lease = lease_version(client.store.versions.path("voice", "1.0"))
    for world in (stage.second, stage.third):
        _pull(world)(client)
    if lease:
        lease.close()
    client.store.close()


def _acting(step: Callable[[Stage], Callable[[Client], int]]) -> Callable[[Stage, Path, Disk], None]:
    def act(stage: Stage, root: Path, disk: Disk) -> None:
        client = stage.client(root, disk)
        try:
            step(stage)(client)
        finally:
            client.store.close()

    return act


def _install_copies(stage: Stage, root: Path, disk: Disk) -> None:
    """On a file system without hard links."""

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(EPERM, "no hard links here", str(target))

    disk.link = refuse  # type: ignore[method-assign]
    _acting(lambda s: _pull(s.first))(stage, root, disk)


def _prepare_damage(stage: Stage, root: Path) -> None:
    """One byte of the weights is wrong, a name of the version and a chunk list are gone."""
    client = stage.client(root)
    _pull(stage.first)(client)
    model = client.store.model("voice")
    weights_file = model.folder / "model.safetensors"
    weights_file.chmod(0o644)
    with weights_file.open("r+b") as file:
        file.seek(DAMAGED_AT)
        byte = file.read(1)
        file.seek(DAMAGED_AT)
        file.write(bytes([byte[0] ^ 1]))
    weights_file.chmod(0o444)
    (model.folder / "config.json").unlink()
    chunk_list = next(file.chunk_list for file in model.files if file.path == "config.json")
    client.store.blob_path(chunk_list).unlink()
    client.store.close()


def _look_at_store(stage: Stage, root: Path, again: Callable[[Client], int], *, before: str | None, after: str) -> Look:
    client = stage.client(root)
    try:
        installed = {model.model: model.version for model in client.store.installed()}
        hold(installed.get("voice") in (before, after), installed)
        check_content(client)
        fetched = again(client)
        hold(client.store.model("voice").version == after, "doing it again did not bring the new version")
        check_content(client)
    finally:
        client.store.close()
    return Look(installed.get("voice") == after, fetched)


def _look_at_pull(
    world: Callable[[Stage], SimulatedRepository], before: str | None, after: str
) -> Callable[[Stage, Path], Look]:
    def look(stage: Stage, root: Path) -> Look:
        for folder in (root / "versions").glob("*/*"):
            # Listed or not: a version appears as a whole.
            hold(read_folder(folder) == FILES[folder.name], f"{folder.name} is visible and not whole")
        return _look_at_store(stage, root, _pull(world(stage)), before=before, after=after)

    return look


def _look_at_repair(stage: Stage, root: Path) -> Look:
    """What was right stays right; what was wrong is known to be wrong, or is right."""
    client = stage.client(root)
    try:
        folder, right = client.store.model("voice").folder, FILES["1.0"]
        found = read_folder(folder)
        wrong = {path for path in right if found.get(path) != right[path]}
        hold(wrong <= {"model.safetensors", "config.json"}, wrong)
        quick = verify(client.store, is_full=False, clock=client.clock, emit=client.events.append)
        hold(wrong <= {damage.path for damage in quick.damaged}, "a wrong file passes the check")
        is_new = not quick.damaged
        fetched = _repair_from(stage.first)(client)
        check_content(client)
    finally:
        client.store.close()
    return Look(is_new, fetched)


def _look_at_rollback(stage: Stage, root: Path) -> Look:
    return _look_at_store(stage, root, _roll_back, before="2.0", after="1.0")


def _hold_version(client: Client) -> int:
    pin(client.store, "voice", "1.0")
    return 0


def _look_at_pin(stage: Stage, root: Path) -> Look:
    client = stage.client(root)
    is_new = client.store.model("voice").pinned == "1.0"
    client.store.close()
    return Look(is_new, _look_at_store(stage, root, _hold_version, before="1.0", after="1.0").bytes_fetched)


def _look_at_gc(stage: Stage, root: Path) -> Look:
    """Done is: no longer listed. After a power cut removed files may be back; the next gc removes them again."""
    client = stage.client(root)
    is_new = {release.version for release in client.store.state.releases()} == {"2.0", "3.0"}
    client.store.close()
    look = _look_at_store(stage, root, _collect, before="3.0", after="3.0")
    kept = {folder.name for folder in (root / "versions" / "voice").iterdir()}
    hold(kept == {"2.0", "3.0"}, kept)
    client = stage.client(root)
    rollback(client.store, "voice", clock=client.clock, emit=client.events.append)
    check_content(client)
    client.store.close()
    return Look(is_new, look.bytes_fetched)


# --- trusted metadata alone ---


def _refresh(stage: Stage, root: Path, disk: Disk) -> None:
    client = stage.client(root, disk)
    try:
        client.clock.sleep(2 * 86400.0)
        client.trust().refresh(FolderSource(stage.resigned.folder))
    finally:
        client.store.close()


def _look_at_refresh(stage: Stage, root: Path) -> Look:
    """Every document is one that was accepted, and what the store trusts can be used before and after going on."""
    accepted = {
        path.read_bytes() for world in (stage.first, stage.resigned) for path in (world.folder / "metadata").iterdir()
    }
    trusted = root / "trusted"
    for name in ("root", "timestamp", "snapshot", "targets"):
        hold((trusted / f"{name}.json").read_bytes() in accepted, f"{name} is torn")
    newest = stage.resigned.folder / "metadata" / "timestamp.json"
    is_new = (trusted / "timestamp.json").read_bytes() == newest.read_bytes()
    client = stage.client(root)
    hold(client.trust().releases("voice")[0].version in ("1.0", "3.0"), "the trusted targets cannot be used")
    client.store.close()
    _refresh(stage, root, RealDisk())
    client = stage.client(root)
    hold(client.trust().releases("voice")[0].version == "3.0", "a second refresh did not bring the new targets")
    hold((trusted / "timestamp.json").read_bytes() == newest.read_bytes(), "nor the timestamp")
    client.store.close()
    return Look(is_new)


def act_in_process(scratch: str, name: str, folder: str) -> int:
    """For `system_calls`: the operation on the machine's own disk. 0: done; 3: it ended with one of our errors."""
    try:
        OPERATIONS[name].act(Stage(Path(scratch)), Path(folder), RealDisk())
    except KenshoError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 3
    return 0


OPERATIONS: Final[Mapping[str, Operation]] = {
    "init": Operation(_prepare_nothing, _init, _look_at_init),
    "install": Operation(_prepared(), _acting(lambda s: _pull(s.first)), _look_at_pull(lambda s: s.first, None, "1.0")),
    "install-copies": Operation(_prepared(), _install_copies, _look_at_pull(lambda s: s.first, None, "1.0")),
    "update": Operation(
        _prepared(lambda s: _pull(s.first)),
        _acting(lambda s: _pull(s.second)),
        _look_at_pull(lambda s: s.second, "1.0", "2.0"),
    ),
    "repair": Operation(_prepare_damage, _acting(lambda s: _repair_from(s.first)), _look_at_repair),
    "rollback": Operation(
        _prepared(lambda s: _pull(s.first), lambda s: _pull(s.second)),
        _acting(lambda s: _roll_back),
        _look_at_rollback,
    ),
    "gc": Operation(
        _prepare_three_versions,
        _acting(lambda s: _collect),
        _look_at_gc,
    ),
    "pin": Operation(_prepared(lambda s: _pull(s.first)), _acting(lambda s: _hold_version), _look_at_pin),
    "refresh": Operation(_prepared(lambda s: _pull(s.first)), _refresh, _look_at_refresh),
    **PUBLISHING,
}
