import asyncio

import pytest

from kensho.base.errors import (
    ConfigError,
    DeadlineMissed,
    EngineCrashed,
    EngineError,
    EngineHung,
    ModelError,
    Overloaded,
    WrongNumbers,
)
from kensho.resilience.classify import FailureClass, classify


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineCrashed("gone"), FailureClass.CRASH),
        (EngineHung("no token"), FailureClass.HANG),
        (WrongNumbers("nan"), FailureClass.WRONG_NUMBERS),
        (EngineError("CUDA error: an Illegal Memory Access was encountered"), FailureClass.STICKY),
        (EngineError("something else"), FailureClass.UNKNOWN),
        (TimeoutError(), FailureClass.TIMEOUT),
    ],
)
def test_an_engines_failure_has_a_kind(error: BaseException, kind: FailureClass) -> None:
    assert classify(error) is kind


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        GeneratorExit(),
        Overloaded("full"),
        DeadlineMissed("late"),
        ConfigError("bad"),
        ModelError("prompt"),
        ValueError("bad input"),
    ],
)
def test_what_says_nothing_about_the_engine_is_not_counted(error: BaseException) -> None:
    assert classify(error) is None
