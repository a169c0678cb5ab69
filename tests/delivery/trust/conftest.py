"""The publishers and clients of these tests; makes their modules importable."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kensho.testing.tuf_repository import TufRepository

sys.path.append(str(Path(__file__).parent))
import delegating
import trusting
import tuf_suite


@pytest.fixture
def publisher() -> trusting.Publisher:
    return trusting.Publisher()


@pytest.fixture
def client(publisher: trusting.Publisher, ram: Path) -> trusting.Client:
    """A client that has refreshed once, on day 0."""
    found = trusting.Client(ram / "trusted", publisher.source.files["metadata/1.root.json"])
    found.trust.refresh(publisher.source)
    return found


@pytest.fixture
def made(ram: Path) -> Callable[..., delegating.Client]:
    """Makes a client of a repository with these delegations, and targets by the role that signs them."""

    def make(
        *delegations: delegating.Delegation, targets: dict[str, str] | None = None, has_hashes: bool = True
    ) -> delegating.Client:
        repo = TufRepository(delegating.NOW, has_hashes=has_hashes)
        for delegator, role, terms in delegations:
            repo.delegate(delegator, role, **terms)  # type: ignore[arg-type]
        for path, role in (targets or {}).items():
            repo.add_target(role, path, path.encode())
        roles = dict.fromkeys(role for _, role, _ in delegations)
        repo.publish(*roles, "targets", "snapshot", "timestamp")
        return delegating.Client(ram / "trusted", repo)

    return make


@pytest.fixture
def suite(ram: Path) -> tuf_suite.Suite:
    """A client that has been given the first root."""
    found = tuf_suite.Suite(ram / "client", TufRepository(tuf_suite.NOW))
    assert found.init()
    return found
