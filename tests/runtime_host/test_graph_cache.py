import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kensho.base.errors import Damaged, StorageError
from kensho.base.events import Event, GraphDropped
from kensho.base.ids import GraphKey
from kensho.runtime import graph_cache
from kensho.runtime.graph_cache import GraphCache, Hit, Miss
from kensho.runtime.temp_folder import TempFolder

Put = Callable[..., tuple[GraphKey, Hit]]
MakeCache = Callable[..., GraphCache]
FILES = ["header.json", "graph.onnx", "weights.bin"]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders whose every byte was hashed."""
    seen: list[Path] = []
    real = graph_cache.verify_graph

    def count(folder: Path, header: graph_cache.GraphHeader) -> None:
        seen.append(folder)
        real(folder, header)

    monkeypatch.setattr(graph_cache, "verify_graph", count)
    return seen


def miss(found: Hit | Miss) -> str:
    assert isinstance(found, Miss), found
    return found.reason


def hit(found: Hit | Miss) -> Hit:
    assert isinstance(found, Hit), found
    return found


def test_a_published_graph_is_found_by_another_process_without_hashing(
    make_cache: MakeCache, put: Put, hashed: list[Path]
) -> None:
    key, made = put(make_cache(), "a")
    assert len(hashed) == 1
    found = hit(make_cache().lookup(key))
    assert len(hashed) == 1
    assert (found.folder, found.header) == (made.folder, made.header)


def test_what_was_never_compiled_is_a_miss(make_cache: MakeCache) -> None:
    assert miss(make_cache().lookup(GraphKey("0" * 64))) == "absent"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_byte_in_any_file_is_never_served(
    make_cache: MakeCache, put: Put, name: str, where: str, hashed: list[Path]
) -> None:
    key, made = put(make_cache(), "a")
    path = made.folder / name
    data = bytearray(path.read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1
    path.write_bytes(data)
    assert miss(make_cache().lookup(key)) == "damaged"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["absent", "shorter", "longer", "a link"])
def test_a_file_that_is_not_as_it_was_written_is_never_served(
    make_cache: MakeCache, put: Put, name: str, change: str, tmp_path: Path
) -> None:
    key, made = put(make_cache(), "a")
    path = made.folder / name
    match change:
        case "absent":
            path.unlink()
        case "shorter":
            path.write_bytes(path.read_bytes()[:-1])
        case "longer":
            path.write_bytes(path.read_bytes() + b" ")
        case "a link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
    assert miss(make_cache().lookup(key)) == "damaged"


def test_touched_files_are_hashed_once_more_and_then_trusted(
    make_cache: MakeCache, put: Put, hashed: list[Path]
) -> None:
    key, made = put(make_cache(), "a")
    os.utime(made.folder / "weights.bin")
    hit(make_cache().lookup(key))
    hit(make_cache().lookup(key))
    assert len(hashed) == 2


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"format":1,"used":"x","files":{}}', b"\xff" * 99])
def test_a_broken_record_costs_a_hashing_and_nothing_else(
    make_cache: MakeCache, put: Put, record: bytes, hashed: list[Path]
) -> None:
    key, made = put(make_cache(), "a")
    (made.folder / "verified.json").write_bytes(record)
    hit(make_cache().lookup(key))
    assert len(hashed) == 2


def test_bits_that_rot_under_an_unchanged_stamp_are_found_by_verify(make_cache: MakeCache, put: Put) -> None:
    key, made = put(make_cache(), "a")
    path = made.folder / "weights.bin"
    data = bytearray(path.read_bytes())
    data[7] ^= 4
    path.write_bytes(data)
    record = graph_cache.parse_record((made.folder / "verified.json").read_bytes())
    assert record
    forged = {**record.files, "weights.bin": graph_cache.stamp_of(path.lstat())}
    (made.folder / "verified.json").write_bytes(graph_cache.dump_record(graph_cache.GraphRecord(forged, 1)))
    hit(make_cache().lookup(key))
    with pytest.raises(Damaged):
        make_cache().verify(key)


def test_an_entry_under_another_key_is_never_served(make_cache: MakeCache, put: Put) -> None:
    key, made = put(make_cache(), "a")
    other = GraphKey("f" * 64)
    made.folder.rename(made.folder.parent / other)
    assert miss(make_cache().lookup(other)) == "damaged"
    assert miss(make_cache().lookup(key)) == "absent"


def test_a_dropped_entry_is_gone_and_said_so_while_its_user_keeps_the_bytes(
    make_cache: MakeCache, put: Put, events: list[Event]
) -> None:
    cache = make_cache()
    key, made = put(cache, "a")
    with (made.folder / "weights.bin").open("rb") as mapped:
        lock = cache.compile_lock(key)
        assert lock
        cache.drop(key, "damaged")
        cache.drop(key, "damaged")
        assert mapped.read(1) == b"a"
    assert events == [GraphDropped(key=key, reason="damaged")]
    assert [path.name for path in made.folder.parent.iterdir()] == [f"{key}.lock"]
    lock.close()


def test_one_process_compiles_a_key(make_cache: MakeCache) -> None:
    first = make_cache().compile_lock(GraphKey("1" * 64))
    assert first
    assert make_cache().compile_lock(GraphKey("1" * 64)) is None
    assert make_cache().compile_lock(GraphKey("2" * 64))
    first.close()
    assert make_cache().compile_lock(GraphKey("1" * 64))


def test_a_lock_on_a_removed_file_keeps_nobody_out_and_is_not_handed_out(make_cache: MakeCache) -> None:
    key = GraphKey("1" * 64)
    first = make_cache().compile_lock(key)
    assert first
    first.close(remove=True)
    second = make_cache().compile_lock(key)
    assert second
    assert make_cache().compile_lock(key) is None


def test_what_is_used_longest_ago_goes_first_and_pinned_entries_stay(make_cache: MakeCache, put: Put) -> None:
    cache = make_cache(3 * 7000)
    keys = {}
    for content in "abc":
        keys[content], made = put(cache, content)
        made.pin.close()
    pinned = hit(cache.lookup(keys["a"]))  # used again: now b is the oldest
    hit(cache.lookup(keys["c"])).pin.close()
    keys["d"], made = put(cache, "d")
    assert [entry.key for entry in cache.entries()] == [keys["a"], keys["c"], keys["d"]]
    assert cache.evict(0) == 1
    assert [entry.key for entry in cache.entries()] == [keys["a"], keys["d"]]
    assert not (made.folder.parent / f"{keys['c']}.lock").exists()
    pinned.pin.close()
    made.pin.close()
    assert cache.evict(0) == 2
    assert cache.entries() == []


def test_an_entry_that_is_pinned_at_the_last_moment_is_not_evicted(
    make_cache: MakeCache, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache()
    key, made = put(cache, "a")
    made.pin.close()
    pins: list[Hit] = []
    monkeypatch.setattr(graph_cache, "choose_evictions", lambda *_: [pins.append(hit(make_cache().lookup(key))) or key])
    assert cache.evict(0) == 0
    assert pins[0].folder.is_dir()


def test_an_entry_that_is_being_compiled_is_not_evicted(make_cache: MakeCache, put: Put) -> None:
    cache = make_cache()
    key, made = put(cache, "a")
    made.pin.close()
    lock = make_cache().compile_lock(key)
    assert lock
    assert cache.evict(0) == 0
    assert miss(cache.lookup(GraphKey("0" * 64))) == "absent"
    assert hit(cache.lookup(key))


def test_a_graph_larger_than_the_whole_cache_is_not_kept(make_cache: MakeCache, put: Put) -> None:
    with pytest.raises(StorageError, match="raise graph_cache_bytes"):
        put(make_cache(1000), "a")
    assert make_cache().entries() == []


def test_a_graph_that_is_not_what_its_header_says_is_never_published(make_cache: MakeCache, put: Put) -> None:
    cache = make_cache()
    key, made = put(cache, "a")
    temp = cache.make_temp()
    for path in made.folder.iterdir():
        (temp.path / path.name).write_bytes(path.read_bytes())
    (temp.path / "weights.bin").write_bytes(b"other")
    with pytest.raises(Damaged):
        cache.publish(GraphKey("3" * 64), temp)
    assert [entry.key for entry in cache.entries()] == [key]


def test_what_killed_compilers_left_is_swept_and_what_living_ones_use_is_not(make_cache: MakeCache) -> None:
    cache = make_cache()
    dead = cache.make_temp()
    (dead.path / "half").write_bytes(b"x")
    dead._lock.close()  # what the kernel does when a process is killed
    living = cache.make_temp()
    assert not dead.path.exists()
    newest = cache.make_temp()
    assert living.path.exists()
    living.close()
    newest.close()
    assert list(living.path.parent.iterdir()) == []


def test_a_published_temporary_folder_is_not_removed_by_its_owner(make_cache: MakeCache, put: Put) -> None:
    _, made = put(make_cache(), "a")
    assert sorted(path.name for path in made.folder.iterdir()) == sorted([*FILES, "verified.json"])


@pytest.mark.parametrize("place", ["proc/kensho", "a file"])
def test_a_disk_that_refuses_is_a_storage_error_and_a_lookup_a_miss(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = Path("/proc/kensho/graphs") if place == "proc/kensho" else tmp_path / "file" / "graphs"
    cache = GraphCache(folder, limit_bytes=1, token=lambda: "t", emit=print)
    key = GraphKey("1" * 64)
    assert isinstance(cache.lookup(key), Miss)
    assert cache.entries() == []
    for refused in (lambda: cache.compile_lock(key), cache.make_temp):
        with pytest.raises(StorageError, match="graph cache"):
            refused()


def test_a_temporary_folder_that_is_swept_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["a", "b"])
    real = graph_cache.FileLock.on_folder
    taken = []

    def swept_before(path: Path) -> object:
        if not taken:
            path.rmdir()
        taken.append(path)
        return real(path)

    monkeypatch.setattr(graph_cache.FileLock, "on_folder", swept_before)
    temp = TempFolder.make(tmp_path, lambda: next(names))
    assert temp.path.is_dir()
    assert len(taken) == 2
    temp.close()
