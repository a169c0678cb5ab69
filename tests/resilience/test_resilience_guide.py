"""docs/resilience.md shows what the code does, or this fails and prints what the page should say."""

from pathlib import Path

from kensho.resilience.circuit import ADVICE, BreakerSettings, Mode
from kensho.resilience.transitions import TRANSITIONS, diagram

PAGE = (Path(__file__).parents[2] / "docs" / "resilience.md").read_text()


def test_the_diagram_is_the_one_of_the_transition_table() -> None:
    assert f"```mermaid\n{diagram()}\n```" in PAGE, diagram()


def test_every_reason_for_a_hard_open_is_listed_with_what_helps() -> None:
    for reason, advice in ADVICE.items():
        assert f"| `{reason}` | {advice} |" in PAGE, f"| `{reason}` | {advice} |"


def test_the_diagram_names_every_state_and_every_reason_for_a_change() -> None:
    assert all(mode.value in diagram() for mode in Mode)
    shown = [one for one in TRANSITIONS if one.before is not one.after and "person said" not in one.because]
    assert all(one.because in diagram() or "gave it back, or its time" in one.because for one in shown)


def test_the_numbers_are_the_defaults() -> None:
    settings = BreakerSettings()
    assert (settings.open_s, settings.open_cap_s, settings.restart_open_s, settings.jitter) == (60.0, 900.0, 5.0, 0.2)
    assert (settings.success_threshold, settings.canary_timeout_s, settings.free_restarts) == (2, 5.0, 3)
    assert (settings.window_s, settings.min_calls, settings.oom_window_s) == (30.0, 10, 60.0)
