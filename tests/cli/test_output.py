import io
import json

import pytest

from kensho.base import errors
from kensho.base.events import CompileStage, DownloadProgress, DownloadRetry
from kensho.base.units import size_text
from kensho.cli import exits
from kensho.cli.output import Output
from kensho.testing.clock import VirtualClock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make(
    *, is_json: bool = False, is_quiet: bool = False, stderr: io.StringIO | None = None
) -> tuple[Output, io.StringIO, io.StringIO, VirtualClock]:
    clock, out, err = VirtualClock(), io.StringIO(), stderr or io.StringIO()
    return Output(is_json=is_json, is_quiet=is_quiet, clock=clock, stdout=out, stderr=err), out, err, clock


def test_json_progress_is_at_most_ten_a_second_and_always_shows_the_end() -> None:
    output, out, _, clock = make(is_json=True)
    for done in range(1001):
        output.on_event(DownloadProgress(model="m", done=done, total=1000))
        clock.sleep(0.001)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert 10 <= len(lines) <= 12
    assert lines[-1] == {"type": "progress", "what": "pull m", "done": 1000, "total": 1000, "unit": "bytes"}


def test_summary_is_the_only_and_last_line_and_carries_the_error() -> None:
    output, out, err, _ = make(is_json=True)
    output.note("a note")
    output.data("data")
    output.piece("text")
    output.summary(6, {"models": []}, errors.NotEnoughSpace("no space", advice="free some"))
    assert err.getvalue() == ""
    assert json.loads(out.getvalue()) == {
        "type": "summary",
        "ok": False,
        "code": 6,
        "models": [],
        "error": "no_space",
        "message": "no space",
        "advice": "free some",
    }


def test_nothing_follows_the_summary() -> None:
    output, out, _, _ = make(is_json=True)
    output.summary(0, {"text": "hi"})
    output.on_event(CompileStage(model="m", stage="parsing", done=2, total=2, unit="tensors"))
    output.summary(1, {}, errors.CompileFailed("too late"))
    assert [json.loads(line)["type"] for line in out.getvalue().splitlines()] == ["summary"]


def test_no_bar_is_drawn_over_an_answer_that_is_being_written() -> None:
    output, _, err, _ = make(stderr=Terminal())
    finished = CompileStage(model="m", stage="parsing", done=2, total=2, unit="tensors")
    output.piece("Hel")
    output.on_event(finished)
    assert err.getvalue() == ""
    output.data("lo")
    output.on_event(finished)
    assert "parsing" in err.getvalue()


def test_people_get_data_on_stdout_and_the_rest_on_stderr() -> None:
    output, out, err, _ = make()
    output.data("answer")
    output.on_event(DownloadRetry(source="usb", reason="gone", attempt=1, delay_s=1))
    output.on_event(CompileStage(model="m", stage="parsing", done=1, total=2, unit="tensors"))
    output.summary(1, {}, errors.ModelError("no model in x", advice="give a model folder"))
    assert out.getvalue() == "answer\n"
    assert "usb failed (gone)" in err.getvalue()
    assert "parsing" not in err.getvalue(), "no progress bar without a terminal"
    assert "kensho: no model in x\n        give a model folder\n" in err.getvalue()


def test_a_bar_is_drawn_on_a_terminal_and_cleared_before_text() -> None:
    output, _, err, _ = make(stderr=Terminal())
    output.progress("pull m", 5, 10, "bytes")
    output.note("done")
    assert "50%" in err.getvalue()
    assert err.getvalue().endswith("\r\x1b[2Kdone\n")


def test_quiet_says_only_data_and_errors() -> None:
    output, out, err, _ = make(is_quiet=True, stderr=Terminal())
    output.note("note")
    output.progress("pull", 1, 2, "bytes")
    output.data("answer")
    assert (out.getvalue(), err.getvalue()) == ("answer\n", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ModelError("x"), 1),
        (errors.EngineCrashed("x"), 1),
        (errors.StorageError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.Damaged("x"), 4),
        (errors.TrustError("x"), 5),
        (errors.ClientTooOld("x"), 5),
        (errors.DigestMismatch("x"), 5),
        (errors.NotEnoughSpace("x"), 6),
        (errors.TransportError("x"), 7),
        (errors.NetworkNotAllowed("x"), 7),
        (errors.Overloaded("x"), 9),
        (errors.DeadlineMissed("x"), 9),
        (errors.NotInstalled("x"), 1),
        (errors.PortInUse("x"), 1),
    ],
)
def test_exit_codes_are_the_contract(error: errors.KenshoError, code: int) -> None:
    assert exits.exit_code(error) == code


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1_234_567, "1.2 MB"), (5e12, "5.0 TB")]
)
def test_sizes_are_decimal(size: float, text: str) -> None:
    assert size_text(size) == text
