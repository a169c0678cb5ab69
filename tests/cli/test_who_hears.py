"""Of what happens in a daemon, each client hears what is its own."""

import pytest

from kensho.base.events import (
    AdmissionSaturated,
    ConnectionsScarce,
    DownloadProgress,
    ErrorRaised,
    Event,
    RequestPoisoned,
    RequestRejected,
    StreamMoved,
)
from kensho.cli.commands.serve import concerns

MODELS = (None, "demo")


@pytest.mark.parametrize("is_own", [True, False])
def test_what_happens_to_single_requests_is_told_as_their_errors(is_own: bool) -> None:
    rejected = RequestRejected(model="demo", request=7, priority="low", reason="full", retry_after_s=1.0)
    poisoned = RequestPoisoned(model="demo", prompt_tokens=3, hosts=2)
    assert not concerns(rejected, MODELS, is_own=is_own) and not concerns(poisoned, MODELS, is_own=is_own)


@pytest.mark.parametrize(
    "event",
    [
        ErrorRaised(code="engine", reason="req_1: of another client", frames=()),
        ConnectionsScarce(interface="HTTP", places=9, closed=1, refused=2),
    ],
)
def test_the_daemon_s_affairs_are_for_its_log(event: Event) -> None:
    assert not concerns(event, MODELS, is_own=True)


def test_a_stream_that_moved_is_told_to_its_client_only() -> None:
    moved = StreamMoved(from_engine="primary", to_engine="standby", accepted=3, reason="crash", gap_ms=12.0)
    assert concerns(moved, MODELS, is_own=True) and not concerns(moved, MODELS, is_own=False)


def test_what_concerns_other_models_is_for_other_clients() -> None:
    for model, is_heard in (("demo", True), ("other", False)):
        assert concerns(DownloadProgress(model=model, done=1, total=2), MODELS, is_own=False) is is_heard
        saturated = AdmissionSaturated(model=model, from_level="NORMAL", to_level="SATURATED", next_step="wait")
        assert concerns(saturated, MODELS, is_own=False) is is_heard
