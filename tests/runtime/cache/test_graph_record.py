from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.ids import GraphKey
from kensho.runtime.cache.graph_record import (
    TRUSTED_FOR_S,
    CachedGraph,
    GraphRecord,
    choose_evictions,
    dump_record,
    is_trusted,
    parse_record,
)

NUMBER = st.integers(0, 2**63)
RECORDS = st.builds(
    GraphRecord,
    st.dictionaries(st.text(max_size=9), st.tuples(*[NUMBER] * 5), max_size=3),
    NUMBER,
    st.text(max_size=9),
    st.floats(0, 1e12),
)
ENTRIES = st.lists(
    st.builds(
        CachedGraph,
        st.uuids().map(lambda u: GraphKey(u.hex)),
        NUMBER,
        NUMBER,
        st.booleans(),
        is_newer=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda entry: entry.key,
)


@settings(max_examples=30, deadline=None)
@given(RECORDS)
def test_a_record_is_read_as_written(record: GraphRecord) -> None:
    assert parse_record(dump_record(record)) == record


@settings(max_examples=30, deadline=None)
@given(
    st.binary(max_size=200) | st.sampled_from([b"null", b'{"format":1}', b'{"format":1,"used":1,"files":{"a":[1]}}'])
)
def test_no_bytes_make_the_reader_of_records_fail(data: bytes) -> None:
    parse_record(data)


@settings(max_examples=30, deadline=None)
@given(ENTRIES, NUMBER)
def test_evictions_fit_the_bound_spare_pins_and_go_from_oldest_to_newest(
    entries: list[CachedGraph], limit_bytes: int
) -> None:
    chosen = choose_evictions(entries, limit_bytes)
    gone = [entry for entry in entries if entry.key in chosen]
    kept = [entry for entry in entries if entry.key not in chosen]
    assert not any(entry.is_pinned for entry in gone)
    loose = [entry for entry in kept if not entry.is_pinned]
    assert sum(entry.size_bytes for entry in kept) <= limit_bytes or not loose
    assert all(_turn(old) <= _turn(new) for old in gone for new in loose)
    if gone:  # not one too many
        newest = max(gone, key=_turn)
        assert sum(entry.size_bytes for entry in kept) + newest.size_bytes > limit_bytes or newest.size_bytes == 0


def _turn(entry: CachedGraph) -> tuple[bool, int]:
    """A later Kensho's entries go after all others."""
    return entry.is_newer, entry.used


STAMP = (1, 2, 3, 4, 5)
RECORD = GraphRecord({"a": STAMP}, 1, "boot", 1000.0)


def test_a_record_vouches_for_the_same_files_in_the_same_boot_for_a_week() -> None:
    assert is_trusted(RECORD, {"a": STAMP}, "boot", 1000.0)
    assert is_trusted(RECORD, {"a": STAMP}, "boot", 999.0 + TRUSTED_FOR_S)
    for files, boot, now in (
        ({"a": (1, 2, 3, 4, 6)}, "boot", 1000.0),
        ({}, "boot", 1000.0),
        ({"a": STAMP}, "other", 1000.0),
        ({"a": STAMP}, "", 1000.0),
        ({"a": STAMP}, "boot", 999.0),
        ({"a": STAMP}, "boot", 1000.0 + TRUSTED_FOR_S),
    ):
        assert not is_trusted(RECORD, files, boot, now)
    assert not is_trusted(GraphRecord({"a": STAMP}, 1), {"a": STAMP}, "", 0.0)


def test_a_record_of_before_boots_were_noted_vouches_for_nothing_and_keeps_its_turn() -> None:
    old = parse_record(b'{"files":{"a":[1,2,3,4,5]},"format":1,"used":7}')
    assert old == GraphRecord({"a": STAMP}, 7)
