import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.runtime.cache.graph_statistics import (
    STATISTICS_FILE,
    GraphStatistics,
    count_load,
    parse_statistics,
    read_statistics,
)


def test_hits_and_misses_and_their_times_add_up(tmp_path: Path) -> None:
    assert read_statistics(tmp_path) == GraphStatistics()
    count_load(tmp_path, 2.0, is_hit=False)
    count_load(tmp_path, 0.25, is_hit=True)
    count_load(tmp_path, 0.5, is_hit=True)
    assert read_statistics(tmp_path) == GraphStatistics(2, 1, 0.75, 2.0)


def test_no_count_is_lost_between_programs(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda: [count_load(tmp_path, 1.0, is_hit=True) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_statistics(tmp_path).hits == 200


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=99) | st.sampled_from([b"{}", b"[]", b'{"hits":"x"}', b"[" * 9999]))
def test_a_broken_file_counts_from_nothing(data: bytes) -> None:
    assert parse_statistics(data) == GraphStatistics()


@pytest.mark.parametrize("place", ["absent/folder", "file/below"])
def test_a_disk_that_refuses_costs_nothing(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    count_load(tmp_path / place, 1.0, is_hit=True)
    (tmp_path / STATISTICS_FILE).symlink_to(tmp_path / "file")
    count_load(tmp_path, 1.0, is_hit=True)
    assert (tmp_path / "file").read_text() == ""
