import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kensho.base.events as catalogue
from kensho.base.events import DownloadRetry, ErrorRaised, Event
from kensho.base.structs import fields
from kensho.telemetry.record import MAX_TEXT, Record, frames_of

EVENTS = [c for c in vars(catalogue).values() if isinstance(c, type) and issubclass(c, Event) and c is not Event]


EXAMPLES: dict[str, object] = {"str": "x", "int": 3, "float": 1.5, "bool": True}


def example_of(kind: type[Event]) -> Event:
    kinds = {name: of for each in reversed(kind.__mro__) for name, of in getattr(each, "__annotations__", {}).items()}
    return kind(**{name: example_value(str(getattr(kinds[name], "__name__", kinds[name]))) for name in fields(kind)})


def example_value(kind: str) -> object:
    return ("a",) if kind.startswith("tuple") else EXAMPLES[kind.partition(" | ")[0]]


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_every_event_of_the_catalogue_becomes_one_flat_line(kind: type[Event]) -> None:
    line = Record(example_of(kind), 1_800_000_000.25, 7, "boot").encode()
    record = json.loads(line)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert record["timestamp"] == "2027-01-15T08:00:00.250000Z"
    assert record["event.name"] == f"kensho.{kind.name}"
    assert record["level"] == kind.level and record["service"] == kind.service
    assert "{" not in record["message"]
    assert all(not isinstance(value, dict) for value in record.values())


def test_event_names_are_unique() -> None:
    assert len({kind.name for kind in EVENTS}) == len(EVENTS)


@given(st.text(max_size=50))
def test_any_text_stays_one_valid_line(text: str) -> None:
    event = DownloadRetry(source=text, reason=text, attempt=1, delay_s=0.5)
    line = Record(event, 0.0, 1, "b").encode()
    assert line.count(b"\n") == 1
    assert json.loads(line)["kensho.attempt"] == 1


def test_long_text_is_cut() -> None:
    event = ErrorRaised(code="c", reason="x" * 10_000, frames=())
    assert len(json.loads(Record(event, 0.0, 1, "b").encode())["kensho.reason"]) == MAX_TEXT + 3


def test_frames_name_file_line_and_function_innermost_last() -> None:
    def inner() -> None:
        raise ValueError("secret")

    try:
        inner()
    except ValueError:
        frames = frames_of(sys.exc_info()[2])
    assert frames[-1].endswith(":inner")
    assert not any("secret" in frame for frame in frames)
