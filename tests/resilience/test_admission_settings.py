"""The words, limits and bounds that admission is set up with."""

from typing import Any

import pytest

from kensho.base.errors import ConfigError, DeadlineMissed, Overloaded
from kensho.resilience.admission import Priority, Refused, Ticket, parse_priority
from kensho.resilience.admission_settings import AdmissionSettings


def test_each_reason_has_its_words_and_its_kind_of_error() -> None:
    ticket = Ticket(0, Priority.LOW, 0.0, 1.0)
    said = {
        "full": "too many requests are waiting; come back in 2.0 s",
        "evicted": "a more important request needed its place; come back in 2.0 s",
        "deadline": "it could not be answered by its deadline; allow more time, or come back in 2.0 s",
        "pressured": "requests wait too long, and low ones are paused; come back in 2.0 s",
        "saturated": "overloaded, pausing unimportant work; come back in 2.0 s",
    }
    for reason, words in said.items():
        error = Refused(ticket, reason, 2.0).error()  # type: ignore[arg-type]
        assert str(error) == f"low request refused: {words}"
        assert type(error) is (DeadlineMissed if reason == "deadline" else Overloaded)


def test_priorities_are_words() -> None:
    assert [parse_priority(word) for word in ("critical", "HIGH", "Normal", "low")] == list(Priority)
    with pytest.raises(ConfigError) as caught:
        parse_priority("u" * 50)
    assert str(caught.value) == f"priority '{'u' * 40}' is unknown; use critical, high, normal or low"


@pytest.mark.parametrize(
    "bad",
    [
        {"bound": 0},
        {"bound": 10, "bound_least": 11},
        {"bound_most": 99},
        {"lifo_per_slot": -1},
        {"critical_reserve": -1},
        {"pressured_share": 0},
        {"pressured_share": 1.1},
        {"bound_least": 0},
        {"low_turn": 0},
        {"saturated_rejections": 0},
        {"bound_budget_s": 0.0},
        {"saturated_window_s": 0.0},
        {"pressured_after_s": 0.0},
        {"deadlines_s": (1.0, 1.0, 0.0, 1.0)},
    ],
)
def test_unusable_settings_are_refused_with_advice(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        AdmissionSettings(**bad)
    assert caught.value.message.startswith("admission settings cannot be used: AdmissionSettings(")
    assert caught.value.advice == (
        "counts are at least 1, times are positive seconds, shares are between 0 and 1, "
        "and bound_least <= bound <= bound_most"
    )


def test_settings_at_their_limits_are_taken() -> None:
    least = AdmissionSettings(
        bound=1,
        bound_least=1,
        bound_most=1,
        critical_reserve=0,
        low_turn=1,
        lifo_per_slot=0,
        saturated_rejections=1,
        pressured_share=1,
        bound_budget_s=0.5,
        saturated_window_s=0.5,
        pressured_after_s=0.5,
        deadlines_s=(0.1, 0.1, 0.1, 0.1),
    )
    assert least.bound_for(0.0, 1) == 1


def test_the_bound_follows_what_can_be_served_within_the_budget() -> None:
    settings = AdmissionSettings()
    assert settings.bound_for(0.0, 1) == 100
    assert settings.bound_for(0.1, 2) == 200
    assert settings.bound_for(5.0, 1) == 16
    assert settings.bound_for(0.001, 1) == 400
