from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.runtime.compiling.compile_failures import (
    BARRED_S,
    FAILURES,
    CompileFailures,
    add_failure,
    dump_failures,
    parse_failures,
    read_failures,
    write_failures,
)

RECORDS = st.builds(CompileFailures, st.integers(0, 99), st.floats(0, 2e9), st.text(max_size=9), st.text(max_size=99))


@settings(max_examples=50, deadline=None)
@given(RECORDS, st.floats(-1e9, 3e9))
def test_only_a_key_that_failed_often_and_lately_is_barred(record: CompileFailures, now_s: float) -> None:
    barred_s = record.barred_s(now_s)
    assert 0 <= barred_s <= BARRED_S
    if record.count < FAILURES or now_s < record.at_wall_s or now_s >= record.at_wall_s + BARRED_S:
        assert barred_s == 0


@settings(max_examples=50, deadline=None)
@given(RECORDS)
def test_a_record_is_read_as_written(record: CompileFailures) -> None:
    assert parse_failures(dump_failures(record)) == record


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=99) | st.sampled_from([b"[]", b"[1,2,3,4]", b'[1,1.0,"a","b",1]', b"[" * 9999]))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    parse_failures(data)


def test_after_the_time_of_a_bar_one_more_failure_bars_again() -> None:
    record = None
    for _ in range(FAILURES):
        record = add_failure(record, 1000.0, "compiling", "killed")
    assert record
    assert record.barred_s(1000.0 + BARRED_S) == 0
    assert add_failure(record, 9000.0, "compiling", "x" * 9999).barred_s(9000.0) == BARRED_S


def test_a_disk_that_refuses_the_record_costs_nothing(tmp_path: Path) -> None:
    write_failures(tmp_path / "none" / "x", add_failure(None, 1.0, "a", "b"))
    assert read_failures(tmp_path / "none" / "x") is None
