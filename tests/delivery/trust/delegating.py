"""A client of a repository with delegated roles."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from kensho.base.errors import TrustError
from kensho.delivery.trust import Trust
from kensho.testing.tuf_repository import TufRepository

NOW = datetime(2026, 11, 20, tzinfo=UTC)


class Client:
    """A trusted folder that has refreshed from the repository; `find` returns a target's length."""

    def __init__(self, folder: Path, repo: TufRepository) -> None:
        self.folder, self.repo, self.now = folder, repo, NOW
        Trust.initialise(folder, repo.source.files["metadata/1.root.json"])
        self.again()

    def again(self) -> None:
        """As a new process would."""
        self.trust = Trust(self.folder, now=lambda: self.now, emit=lambda event: None)
        self.trust.refresh(self.repo.source)

    def find(self, path: str) -> int:
        return self.trust.find_target(self.repo.source, path).length

    def visited(self, path: str) -> list[str]:
        """The delegated roles that are asked for in a search of `path`, which nobody has."""
        self.repo.source.paths.clear()
        with pytest.raises(TrustError, match="has not signed"):
            self.find(path)
        return [name.removeprefix("1.").removesuffix(".json") for name in self.repo.requests]

    def roles(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.json")}


Delegation = tuple[str, str, dict[str, object]]


def edge(delegator: str, role: str, **terms: object) -> Delegation:
    return delegator, role, terms
