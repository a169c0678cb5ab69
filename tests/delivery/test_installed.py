"""A verification record is believed only while nothing but our own links touched the file."""

import os
from pathlib import Path

from kensho.base.ids import digest_of
from kensho.delivery.installed import CLOCK_SLACK_S, EXPIRY_S, Record


def test_a_record_vouches_until_the_file_is_touched_or_it_expires(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"abc")
    digest, at = digest_of(b"abc"), 1_000_000.0
    record = Record.of(digest, path.stat(), at)
    assert record.vouches_for(digest, path.stat(), now=at)
    assert not record.vouches_for(digest_of(b"other"), path.stat(), now=at)
    assert not record.vouches_for(digest, path.stat(), now=at + EXPIRY_S + 1)
    assert not record.vouches_for(digest, path.stat(), now=at - CLOCK_SLACK_S - 1)
    os.utime(path, ns=(0, path.stat().st_mtime_ns))  # what puts mtime back still changes ctime
    assert not record.vouches_for(digest, path.stat(), now=at)


def test_a_record_follows_our_own_link_but_not_a_write(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"abc")
    record = Record.of(digest_of(b"abc"), path.stat(), 5.0)
    os.link(path, tmp_path / "name")
    after = record.relinked(path.stat())
    assert after is not None
    assert after.vouches_for(record.digest, (tmp_path / "name").stat(), now=6.0)
    os.utime(path, ns=(0, 1))
    assert record.relinked(path.stat()) is None
