from typing import Any

import pytest

from kensho.base.errors import ConfigError
from kensho.base.inference import Sampling
from kensho.base.structs import replace


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": -1},
        {"max_tokens": 2**32},
        {"temperature": -1e-9},
        {"temperature": 5.01},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"seed": 2**63},
        {"seed": -(2**63) - 1},
        {"stop_ids": tuple(range(65))},
        {"stop_ids": (3, -1)},
        {"stop_ids": (2**32, 3)},
    ],
    ids=str,
)
def test_sampling_that_no_engine_takes_is_the_callers_error(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ConfigError, match=f"{name} cannot be ") as caught:
        Sampling(**bad)
    assert caught.value.advice
    assert caught.value.facts["param"] == name
    with pytest.raises(ConfigError):
        replace(Sampling(), **bad)


@pytest.mark.parametrize(
    "good",
    [
        {"max_tokens": 0},
        {"max_tokens": 2**32 - 1},
        {"temperature": 5.0},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"stop_ids": (0, 2**32 - 1) * 32},
    ],
    ids=str,
)
def test_the_ends_of_the_ranges_are_within(good: dict[str, Any]) -> None:
    Sampling(**good)
