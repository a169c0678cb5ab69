import json

from kensho.base.events import DownloadProgress, DownloadRetry, Event
from kensho.telemetry.pipeline import Pipeline


class Lines:
    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def write(self, line: bytes) -> None:
        self.lines.append(json.loads(line))

    def close(self) -> None:
        pass


class StoppedClock:
    def monotonic_s(self) -> float:
        return 0.0

    def wall_s(self) -> float:
        return 0.0

    def sleep(self, duration_s: float) -> None:
        raise AssertionError("a pipeline never sleeps")


RETRY = DownloadRetry(source="usb", reason="unplugged", attempt=1, delay_s=0.1)
PROGRESS = DownloadProgress(model="m", done=1, total=2)


def test_level_of_a_service_changes_at_run_time() -> None:
    lines = Lines()
    pipeline = Pipeline([lines], clock=StoppedClock())
    pipeline.emit(PROGRESS)
    pipeline.set_level("delivery", "debug")
    pipeline.emit(PROGRESS)
    pipeline.set_level("delivery", "error")
    pipeline.emit(RETRY)
    assert [line["event.name"] for line in lines.lines] == ["kensho.delivery.download.progress"]


def test_sequence_numbers_rise_without_a_gap() -> None:
    lines = Lines()
    pipeline = Pipeline([lines], clock=StoppedClock())
    for _ in range(5):
        pipeline.emit(RETRY)
    assert [line["seq"] for line in lines.lines] == [1, 2, 3, 4, 5]


def test_listener_gets_every_level_and_may_fail_without_harm() -> None:
    heard: list[Event] = []
    pipeline = Pipeline([], clock=StoppedClock(), level="error")

    def broken(event: Event) -> None:
        raise RuntimeError("listener")

    pipeline.listen(broken)
    stop = pipeline.listen(heard.append)
    pipeline.emit(PROGRESS)
    stop()
    pipeline.emit(PROGRESS)
    assert heard == [PROGRESS]
    assert pipeline.failed_listeners == 2
