"""Makes `serving_world` importable for the tests of this folder; a program on virtual time."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from serving_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
