"""The database keeps what it was told, switches models in one step, and explains what is wrong with its file."""

from pathlib import Path

import pytest

from kensho.base.errors import StorageError
from kensho.base.ids import digest_of
from kensho.base.structs import replace
from kensho.delivery import state as state_module
from kensho.delivery.installed import InstalledFile, ModelRow, Record, Release, Shortfall
from kensho.delivery.state import State

FILE = InstalledFile("a.bin", 3, digest_of(b"abc"), digest_of(b"list"), 1, True, digest_of(b"abc"), None)
FIRST = Release("m", "1", 1, digest_of(b"manifest"), 5.0, (FILE,))
SECOND = replace(FIRST, version="2", release=2)
RECORD = Record(2**40, 2**62, digest_of(b"abc"), 3, 2**61, 2**61 + 1, 5.5)


@pytest.fixture
def state(tmp_path: Path) -> State:
    State.create(tmp_path / "state.db")
    return State(tmp_path / "state.db")


def test_an_installed_release_is_current_and_survives_reopening(state: State, tmp_path: Path) -> None:
    state.install(FIRST, [RECORD], now=5.0)
    state.close()
    again = State(tmp_path / "state.db")
    assert again.models() == [ModelRow("m", "1", None, None, 0, None)]
    assert again.releases("m") == again.releases() == [FIRST]
    assert again.records() == {(RECORD.dev, RECORD.inode): RECORD}
    assert [(entry.at, entry.what, entry.how) for entry in again.history(FILE.digest)] == [(5.0, "installed", "m 1")]
    again.close()


def test_switching_remembers_the_previous_version_and_goes_both_ways(state: State) -> None:
    for release in (FIRST, SECOND, SECOND):
        state.install(release, [], now=1.0)
    assert [(row.current, row.previous) for row in state.models()] == [("2", "1")]
    state.switch("m", "1")
    assert [(row.current, row.previous) for row in state.models()] == [("1", "2")]
    assert [release.version for release in state.releases("m")] == ["2", "1"]


def test_a_release_installed_again_replaces_its_files(state: State) -> None:
    degraded = replace(FIRST, files=(replace(FILE, used=None, reason="not found"),))
    state.install(degraded, [], now=1.0)
    assert state.releases("m")[0].is_degraded
    state.install(FIRST, [], now=2.0)
    assert state.releases("m") == [FIRST]
    assert not FIRST.is_degraded


def test_a_failed_change_leaves_nothing_behind(state: State) -> None:
    state.install(FIRST, [], now=1.0)
    with pytest.raises(StorageError):
        state.install(replace(SECOND, files=(FILE, FILE)), [], now=2.0)  # the same path twice
    assert state.releases() == [FIRST]
    assert state.models()[0].current == "1"


def test_pins_uses_checks_settings_and_removal(state: State) -> None:
    state.install(FIRST, [RECORD], now=1.0)
    state.pin("m", "1")
    state.note_use("m", now=9.0)
    state.finish_check("full", good=[replace(RECORD, inode=7)], bad=[(RECORD.dev, RECORD.inode)], damaged=2, now=7.0)
    state.set_setting("source", "http://x")
    state.set_setting("source", "http://y")
    assert state.models() == [ModelRow("m", "1", None, "1", 1, 9.0)]
    assert state.checks() == {"full": (7.0, 2)}
    assert (state.setting("source"), state.setting("none")) == ("http://y", None)
    assert set(state.records()) == {(RECORD.dev, 7)}
    state.keep_records({(1, 1)})
    state.remove_release("m", "1")
    assert (state.records(), state.releases()) == ({}, [])


def test_history_is_bounded(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "MAX_HISTORY", 3)
    for at in range(10):
        state.note({FILE.digest: "quick"}, "verified", now=float(at))
    assert [entry.at for entry in state.history(FILE.digest)] == [9.0, 8.0, 7.0]


def test_records_are_bounded_and_the_longest_unverified_are_dropped_first(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "MAX_RECORDS", 3)
    for inode in range(6):
        state.put_records([replace(RECORD, inode=inode, verified_at=float(inode))])
    state.put_records([replace(RECORD, inode=3, verified_at=9.0)])  # verified again: young again
    state.finish_check("quick", good=[replace(RECORD, inode=9, verified_at=8.0)], bad=[], damaged=0, now=9.0)
    assert {record.inode for record in state.records().values()} == {3, 5, 9}


def test_a_shortfall_is_kept_with_the_install_and_ends_with_a_whole_one(state: State) -> None:
    lacking = Shortfall("m", "1", 5.0, "a.bin: not found", "the next pull", "small")
    state.install(FIRST, [], now=5.0, shortfall=lacking)
    assert state.shortfalls() == {"m": lacking}
    state.put_shortfall(replace(lacking, model="other", fallback_model=None))
    state.install(FIRST, [], now=6.0)
    assert set(state.shortfalls()) == {"other"}
    state.end_shortfall("other")
    assert state.shortfalls() == {}


def test_an_open_reader_sees_the_old_state_until_the_commit(state: State, tmp_path: Path) -> None:
    reader = State(tmp_path / "state.db")
    with state._writing() as db:
        State._switch(db, "m", "1")
        assert reader.models() == []
    assert reader.models()[0].current == "1"
    reader.close()


def test_a_file_that_is_no_database_or_absent_is_a_sentence_with_advice(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"garbage" * 1000)
    for path in (tmp_path / "state.db", tmp_path / "none" / "state.db"):
        with pytest.raises(StorageError) as caught:
            State(path)
        assert caught.value.advice
    assert (tmp_path / "state.db").read_bytes() == b"garbage" * 1000
