"""One case of a TUF conformance suite: a repository, what it was asked for, and the program's folder."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kensho.base.errors import KenshoError
from kensho.testing.memory_source import MemorySource
from kensho.testing.tuf_client import parse, run
from kensho.testing.tuf_repository import RecordingSource, TufRepository

NOW = datetime.now(UTC).replace(microsecond=0)


class Targets(MemorySource):
    """The targets folder of a repository, at an address of its own."""

    def __init__(self, inner: RecordingSource) -> None:
        super().__init__({})
        self._inner = inner

    def read(self, path: str, *, max_bytes: int) -> bytes:
        return self._inner.read(f"targets/{path}", max_bytes=max_bytes)


class Suite:
    """A client and a repository. Each command is True if it succeeded. Without `url` it runs in this process."""

    def __init__(self, folder: Path, repo: TufRepository, url: str = "") -> None:
        self.repo, self._folder, self._url = repo, folder, url
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        for made in (self.metadata, self.targets):
            made.mkdir(parents=True)

    def init(self, root: bytes | None = None) -> bool:
        file = self._folder / "first.json"
        file.write_bytes(self.repo.source.files["metadata/1.root.json"] if root is None else root)
        return self._run(["init", str(file)])

    def refresh(self, *, days: float = 0) -> bool:
        return self._run(["--metadata-url", f"{self._url}/metadata/", "refresh"], days)

    def download(self, *names: str, days: float = 0) -> bool:
        wanted = [part for name in names for part in ("--target-name", name)]
        places = ["--target-base-url", f"{self._url}/targets/", "--target-dir", str(self.targets)]
        return self._run(["--metadata-url", f"{self._url}/metadata/", *wanted, *places, "download"], days)

    def version(self, role: str) -> int:
        version: int = json.loads((self.metadata / f"{role}.json").read_bytes())["signed"]["version"]
        return version

    def trusted(self) -> dict[str, int]:
        """Every JSON file in the folder is metadata of a role, as a suite expects."""
        return {path.stem: self.version(path.stem) for path in sorted(self.metadata.glob("*.json"))}

    def artifacts(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.targets.rglob("*") if path.is_file())

    def _run(self, words: list[str], days: float = 0) -> bool:
        arguments = ["--metadata-dir", str(self.metadata), *words]
        if self._url:
            program = [sys.executable, "-m", "kensho.testing.tuf_client", *arguments]
            done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
            assert "Traceback" not in done.stderr
            assert done.returncode == 0 or done.stderr.count("\n") == 1
            return {0: True, 1: False}[done.returncode]
        try:
            run(
                parse(arguments),
                now=lambda: NOW + timedelta(days=days),
                open_metadata=lambda url: self.repo.source,
                open_targets=lambda url: Targets(self.repo.source),
            )
        except KenshoError as error:
            assert error.message
            return False
        return True
