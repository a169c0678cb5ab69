"""Fixtures of the delivery tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kensho.testing.client import FIRST, NOW, SECOND, Client, model_files, weights
from kensho.testing.repository import SimulatedRepository


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    """A temporary folder in memory where there is one: for tests that make a store at every step of another."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=shared))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimulatedRepository:
    """Models voice 1.0 (as published first) and one other. Tests that publish more make their own copy (`grown`)."""
    made = SimulatedRepository(tmp_path_factory.mktemp("world"), now=NOW)
    made.publish("voice", "1.0", model_files(FIRST))
    return made


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory, world: SimulatedRepository) -> SimulatedRepository:
    """The world with voice 2.0 (one tensor of six is new), and other 1.0 (which shares a tensor with voice)."""
    made = world.copy(tmp_path_factory.mktemp("grown"))
    made.publish("voice", "2.0", model_files(SECOND))
    made.publish("other", "1.0", model_files([FIRST[0], weights(3)[0]]))
    return made


@pytest.fixture
def client(ram: Path, world: SimulatedRepository) -> Iterator[Client]:
    made = Client(ram / "store", world)
    yield made
    made.store.close()
