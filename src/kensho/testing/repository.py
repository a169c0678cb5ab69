"""A signed repository for tests of the updater: made by the real publisher, read from memory, faulty on demand.

world = SimulatedRepository(tmp_path, now=datetime.now(UTC))
world.publish("voice", "1.0", {"config.json": b"{}", "model.safetensors": ...})
source = world.source()                        # a `MemorySource`: see there for faults
"""

import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from kensho.delivery.disk import RealDisk
from kensho.delivery.keys import keygen
from kensho.delivery.layout import manifest_target
from kensho.delivery.manifest import Manifest, parse_manifest
from kensho.delivery.publisher import publish
from kensho.delivery.releases import describe_release
from kensho.delivery.repository import Repository, repository_lock
from kensho.delivery.signing import validity_of
from kensho.testing.memory_source import MemorySource


class SimulatedRepository:
    """A repository made by the real publisher with real keys, in a scratch folder. Each `source()` is a copy of it."""

    def __init__(self, scratch: Path, *, now: datetime) -> None:
        self._scratch, self._now = scratch, now
        self.folder, self._keys, self._models = scratch / "repo", scratch / "keys", scratch / "models"
        if not self._keys.exists():
            keygen(self._keys)

    def copy(self, scratch: Path) -> "SimulatedRepository":
        """The same publisher, whose further releases this one does not see."""
        shutil.copytree(self._scratch, scratch, dirs_exist_ok=True)
        return SimulatedRepository(scratch, now=self._now)

    @property
    def root(self) -> bytes:
        """What a client is given to trust."""
        return (self.folder / "metadata" / "1.root.json").read_bytes()

    def source(self, name: str = "memory") -> MemorySource:
        """The repository as it is now."""
        return MemorySource.of_folder(self.folder, name=name)

    def publish(
        self,
        model: str,
        version: str,
        files: Mapping[str, bytes],
        *,
        min_client: str = "0.1.0",
        is_required: bool = True,
        fallback_model: str | None = None,
        rollout_percent: int = 100,
    ) -> None:
        folder = self._models / model / version
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        publish(
            folder,
            self.folder,
            self._keys,
            model=model,
            version=version,
            min_client=min_client,
            is_required=is_required,
            fallback_model=fallback_model,
            rollout_percent=rollout_percent,
            now=self._now,
            emit=lambda event: None,
        )

    def sign(self, model: str, version: str, release: int, manifest: bytes) -> None:
        """Sign any bytes as the manifest of a release: what a careless publisher could do."""
        disk = RealDisk()
        with repository_lock(disk, self.folder):
            repository = Repository.open(self.folder, self._keys, disk)
            repository.add_target(manifest_target(model, version), manifest, describe_release(model, version, release))
            repository.commit(self._now, validity_of(None))

    def manifest(self, model: str, version: str) -> Manifest:
        repository = Repository.open(self.folder, self._keys, RealDisk())
        return parse_manifest(repository.read_target(manifest_target(model, version)))
