"""A model whose circuits let no engine be tried: that is told as what it is, and not as a model that does not start."""

from typing import Any

import pytest
from scheduling import WHOLE, World, in_world

from kensho.base.errors import EngineError, EnginesOff
from kensho.resilience.circuit import HardReason, Mode
from kensho.resilience.saved_circuit import SavedCircuit
from kensho.resilience.surroundings import MachineSeen, Surroundings


class Remembered:
    """The same of both engines."""

    def __init__(self, mode: Mode, hard: HardReason | None = None) -> None:
        self.circuit = SavedCircuit(mode, 0, "because", "boot 1", hard)

    def load(self, model: str, engine: str) -> SavedCircuit | None:
        return self.circuit

    def save(self, model: str, engine: str, circuit: SavedCircuit) -> None:
        return None

    @property
    def surroundings(self) -> Surroundings:
        return Surroundings(look=lambda: MachineSeen("boot 1", is_device_there=False), memory=self)


async def never(_: World) -> None:
    raise AssertionError("must not be reached")


@pytest.mark.parametrize(
    ("mode", "hard"), [(Mode.FORCED_OPEN, None), (Mode.HARD_OPEN, HardReason.DRIVER_MISMATCH)], ids=str
)
def test_engines_that_may_not_be_started_are_not_engines_that_do_not_start(mode: Mode, hard: Any) -> None:
    with pytest.raises(EnginesOff, match=r"primary is .*_OPEN .because.*standby is .*_OPEN .because") as caught:
        in_world(never, surroundings=Remembered(mode, hard).surroundings)
    assert "kensho circuit" in caught.value.advice


def test_engines_that_were_tried_and_do_not_come_are() -> None:
    def prepare(world: World) -> None:
        world.primary.refuse_starts(9)
        world.standby.refuse_starts(9)

    with pytest.raises(EngineError, match="no engine of model 'm' starts") as caught:
        in_world(never, prepare=prepare, surroundings=Remembered(Mode.OPEN).surroundings)
    assert not isinstance(caught.value, EnginesOff)


def test_engines_that_remember_trouble_are_waited_for() -> None:
    async def use(world: World) -> None:
        assert await world.ask() == WHOLE

    in_world(use, surroundings=Remembered(Mode.OPEN).surroundings)
