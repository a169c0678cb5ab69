from typing import Any

import pytest

from kensho.base.errors import ConfigError
from kensho.resilience.circuit import BreakerSettings


@pytest.mark.parametrize(
    "bad",
    [
        {"failure_threshold": 0},
        {"success_threshold": 0},
        {"open_s": 0.0},
        {"jitter": 1.0},
        {"jitter": -0.1},
        {"open_s": float("nan")},
        {"failed_starts_window_s": -1.0},
    ],
)
def test_unusable_settings_are_refused_with_advice(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        BreakerSettings(**bad)
    assert caught.value.advice


def test_the_defaults_are_the_documented_ones() -> None:
    settings = BreakerSettings()
    assert (settings.failure_threshold, settings.success_threshold) == (3, 2)
    assert (settings.open_s, settings.canary_timeout_s, settings.open_cap_s) == (60.0, 5.0, 900.0)
