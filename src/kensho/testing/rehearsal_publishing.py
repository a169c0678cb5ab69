"""The operations of a publisher, rehearsed as `rehearsal` says: making keys, publishing, replacing the root's key."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

from kensho.base.errors import ConfigError
from kensho.delivery.disk import Disk, RealDisk
from kensho.delivery.folder_source import FolderSource
from kensho.delivery.keys import ROLES, keygen, load_public_key, load_signer, next_key_id
from kensho.delivery.publisher import publish
from kensho.delivery.repository import resign
from kensho.testing.client import NOW
from kensho.testing.stage import Look, Operation, Stage, check_content, copy_tree, hold


def _prepare_nothing(stage: Stage, root: Path) -> None:
    del stage, root


def _keygen(stage: Stage, root: Path, disk: Disk) -> None:
    del stage
    keygen(root / "keys", disk)


def _look_at_keys(stage: Stage, root: Path) -> Look:
    """All keys or none, and those that are there fit."""
    is_new = (root / "keys").exists()
    if not is_new:
        _keygen(stage, root, RealDisk())
    for role in ROLES:
        hold(load_signer(root / "keys", role).public_key == load_public_key(root / "keys", role), f"{role} is torn")
    return Look(is_new)


def _prepare_repository(stage: Stage, root: Path) -> None:
    copy_tree(stage.first.folder, root / "repo")


def _publish(stage: Stage, root: Path, disk: Disk) -> None:
    _publish_with(stage.scratch / "1" / "keys", stage, root, disk)


def _publish_with(keys: Path, stage: Stage, root: Path, disk: Disk) -> None:
    publish(
        stage.scratch / "2" / "models" / "voice" / "2.0",
        root / "repo",
        keys,
        model="voice",
        version="2.0",
        now=NOW,
        emit=lambda event: None,
        disk=disk,
    )


def _look_at_repository(stage: Stage, root: Path) -> Look:
    """Clients get the old release or the new one, whole; publishing again works."""
    served = _served(stage, root, "served")
    with suppress(ConfigError):  # it is published already
        _publish(stage, root, RealDisk())
        hold(served == "1.0", "the version could be published twice")
    hold(_served(stage, root, "served-again") == "2.0", "publishing again did not bring the new release")
    return Look(served == "2.0")


def _served(stage: Stage, root: Path, name: str) -> str:
    client = stage.client(root / name)
    report = client.pull(FolderSource(root / "repo"))
    hold(not report.first_error, report.first_error)
    version = client.store.model("voice").version
    check_content(client)
    client.store.close()
    return version


def _prepare_repository_and_keys(stage: Stage, root: Path) -> None:
    _prepare_repository(stage, root)
    copy_tree(stage.scratch / "1" / "keys", root / "keys")


def _rotate(stage: Stage, root: Path, disk: Disk) -> None:
    del stage
    resign(root / "repo", root / "keys", rotate="root", now=NOW + timedelta(days=1), disk=disk)


def _look_at_rotation(stage: Stage, root: Path) -> Look:
    """Clients are served all the time; the rotation can be finished, and the new key publishes."""
    hold(_served(stage, root, "served") == "1.0", "clients are not served")
    newest = max((root / "repo" / "metadata").glob("?.root.json"))
    key = load_public_key(root / "keys", "root").keyid
    is_done = key in newest.read_text() and next_key_id(root / "keys", "root") is None
    is_new = is_done and newest.name != "1.root.json"
    if not is_new:
        _rotate(stage, root, RealDisk())
    _publish_with(root / "keys", stage, root, RealDisk())
    hold(_served(stage, root, "served-again") == "2.0", "nothing that clients take can be published after it")
    return Look(is_new)


PUBLISHING: Final[Mapping[str, Operation]] = {
    "keygen": Operation(_prepare_nothing, _keygen, _look_at_keys),
    "rotate": Operation(_prepare_repository_and_keys, _rotate, _look_at_rotation),
    "publish": Operation(_prepare_repository, _publish, _look_at_repository),
}
