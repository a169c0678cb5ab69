"""Makes `serving_world` importable for the tests of this folder; a program on virtual time."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from serving_world import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    async def soon(work: Callable[..., object], *given: object) -> object:
        """Virtual time does not wait for threads."""
        await asyncio.sleep(0.001)
        return work(*given)

    monkeypatch.setattr(asyncio, "to_thread", soon)
    return World(tmp_path)
