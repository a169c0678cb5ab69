from pathlib import Path

from kensho.base.ids import Digest
from kensho.runtime.cache.pins import FileLock
from kensho.runtime.text.tokenizer.files import keep_reason, keep_tables, made_name, note_try
from kensho.runtime.text.tokenizer.made_here import list_made, remove_made

OURS, OTHERS = {"tokenizer.json": Digest("1" * 64)}, {"tokenizer.json": Digest("2" * 64)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_tables_that_nobody_needs_are_removed_and_no_others(tmp_path: Path) -> None:
    keep_tables(b"ours", OURS, tmp_path)
    keep_tables(b"theirs!", OTHERS, tmp_path)
    (tmp_path / ("a" * 64)).mkdir()
    (tmp_path / "tokenizer-notes.txt").touch()
    assert {(made.name, made.size_bytes) for made in list_made(tmp_path)} == {
        (made_name(OURS), 4),
        (made_name(OTHERS), 7),
    }
    remove_made(tmp_path, {made_name(OURS)})
    assert names(tmp_path) == ["a" * 64, f"{made_name(OURS)}.tables", "tokenizer-notes.txt"]


def test_failures_and_what_killed_builders_left_go_with_all_models(tmp_path: Path) -> None:
    for digests in (OURS, OTHERS):
        keep_reason("no", digests, tmp_path)
        note_try(digests, tmp_path)
        (tmp_path / f".{made_name(digests)}.tables.4711").write_bytes(b"half")
        (tmp_path / f"{made_name(digests)}.lock").touch()
    remove_made(tmp_path, {made_name(OURS)})
    assert names(tmp_path) == []


def test_what_is_being_built_stays(tmp_path: Path) -> None:
    lock = FileLock.on_file(tmp_path / f"{made_name(OTHERS)}.lock")
    assert lock
    draft = tmp_path / f".{made_name(OTHERS)}.tables.4711"
    draft.touch()
    remove_made(tmp_path, ())
    assert draft.exists()
    lock.close()


def test_a_folder_that_is_not_there_has_none_and_is_not_made(tmp_path: Path) -> None:
    assert list_made(tmp_path / "none") == []
    remove_made(tmp_path / "none", ())
    assert not (tmp_path / "none").exists()
