import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kensho.base.errors import Damaged, StorageError
from kensho.base.events import Event, GraphDropped
from kensho.base.ids import GraphKey
from kensho.base.structs import as_dict, replace
from kensho.runtime.cache import graph_cache
from kensho.runtime.cache.graph_cache import GraphCache, Hit, Miss
from kensho.runtime.cache.graph_entry import read_boot_id, read_record, write_record
from kensho.runtime.cache.graph_record import TRUSTED_FOR_S, stamp_of
from kensho.runtime.cache.header import GraphHeader, dump_header
from kensho.runtime.cache.temp_folder import TempFolder
from kensho.testing.clock import VirtualClock

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
    make_cache().confirm(key)
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


def rot(folder: Path, name: str) -> None:
    """Flip a bit as a disk does: the kernel says the same of the file as before. No program can set ctime, so what was
    recorded of it is changed instead."""
    path = folder / name
    before = path.lstat()
    data = bytearray(path.read_bytes())
    data[7] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.lstat().st_size, path.lstat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    record = read_record(folder)
    assert record
    files = {**record.files, name: stamp_of(path.lstat())}
    write_record(folder, replace(record, files=files), lambda: "t")


def test_bits_that_rot_in_the_graph_itself_are_found_at_the_next_use(make_cache: MakeCache, put: Put) -> None:
    key, made = put(make_cache(), "a")
    rot(made.folder, "graph.onnx")
    assert miss(make_cache().lookup(key)) == "damaged"


def test_bits_that_rot_in_the_weights_are_found_at_the_first_use_after_a_boot(make_cache: MakeCache, put: Put) -> None:
    key, made = put(make_cache(), "a")
    rot(made.folder, "weights.bin")
    assert hit(make_cache().lookup(key)).is_proved  # the window of detection, see docs/graphs.md
    assert miss(make_cache(boot="second boot").lookup(key)) == "damaged"


def test_bits_that_rot_in_the_weights_are_found_after_a_week(
    make_cache: MakeCache, put: Put, clock: VirtualClock
) -> None:
    key, made = put(make_cache(), "a")
    rot(made.folder, "weights.bin")
    clock.sleep(TRUSTED_FOR_S - 1)
    hit(make_cache().lookup(key))
    clock.sleep(1)
    assert miss(make_cache().lookup(key)) == "damaged"


def test_an_entry_is_hashed_in_each_boot_until_it_has_passed_its_self_test(
    make_cache: MakeCache, put: Put, hashed: list[Path]
) -> None:
    key, _ = put(make_cache(), "a")
    hashed.clear()
    first = hit(make_cache(boot="second").lookup(key))
    assert (first.is_proved, len(hashed)) == (False, 1)
    assert not hit(make_cache(boot="second").lookup(key)).is_proved
    assert len(hashed) == 2
    make_cache(boot="second").confirm(key)
    assert hit(make_cache(boot="second").lookup(key)).is_proved
    assert len(hashed) == 2


def test_where_the_kernel_names_no_boot_nothing_is_trusted(make_cache: MakeCache, put: Put, hashed: list[Path]) -> None:
    key, _ = put(make_cache(boot=""), "a")
    make_cache(boot="").confirm(key)
    assert not hit(make_cache(boot="").lookup(key)).is_proved
    assert len(hashed) == 2


def test_a_wall_clock_that_was_set_back_costs_a_hashing(
    make_cache: MakeCache, put: Put, clock: VirtualClock, hashed: list[Path]
) -> None:
    key, _ = put(make_cache(), "a")
    clock.step_wall(-3600)
    hit(make_cache().lookup(key))
    assert len(hashed) == 2


def test_what_changed_between_its_hashing_and_its_self_test_is_not_confirmed(make_cache: MakeCache, put: Put) -> None:
    key, made = put(make_cache(), "a")
    hit(make_cache(boot="second").lookup(key))
    os.utime(made.folder / "weights.bin")
    make_cache(boot="second").confirm(key)
    assert not hit(make_cache(boot="second").lookup(key)).is_proved


def test_confirming_what_is_gone_is_no_error(make_cache: MakeCache) -> None:
    make_cache().confirm(GraphKey("1" * 64))


def test_an_entry_of_an_older_format_serves_as_it_is(make_cache: MakeCache, put: Put, hashed: list[Path]) -> None:
    key, made = put(make_cache(), "a")
    old = as_format_1(made.header)
    (made.folder / "header.json").write_bytes(old)
    found = hit(make_cache().lookup(key))
    assert found.header == made.header
    assert (made.folder / "header.json").read_bytes() == old  # an older Kensho may go on using it


def as_format_1(header: GraphHeader) -> bytes:
    """What Kensho wrote before sections had roles."""
    body = as_dict(replace(header, format=(1, 1)))
    for section in body["sections"]:
        del section["role"]

    def dump(document: object) -> bytes:
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    return dump({"body": body, "sha256": hashlib.sha256(dump(body)).hexdigest()})


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
    cache = GraphCache(folder, limit_bytes=1, boot="b", clock=VirtualClock(), token=lambda: "t", emit=print)
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


def test_the_boot_is_named_by_the_kernel_or_not_at_all(tmp_path: Path) -> None:
    assert read_boot_id(tmp_path) == ""
    folder = tmp_path / "proc/sys/kernel/random"
    folder.mkdir(parents=True)
    (folder / "boot_id").write_text("8bb29d38-d8e4\n" + "x" * 100)
    assert read_boot_id(tmp_path).startswith("8bb29d38-d8e4")
    assert len(read_boot_id(tmp_path)) <= 64


def test_an_entry_of_a_later_kensho_is_neither_used_nor_dropped_and_evicted_after_all_others(
    make_cache: MakeCache, put: Put
) -> None:
    cache = make_cache()
    keys = {}
    for content in "abc":
        keys[content], made = put(cache, content)
        made.pin.close()
        if content == "a":
            header = made.header
            folder = made.folder
    (folder / "header.json").write_bytes(dump_header(replace(header, format=(99, 0))))
    assert miss(make_cache().lookup(keys["a"])) == "format_newer"
    assert [entry.is_newer for entry in cache.entries()] == [True, False, False]
    assert cache.evict(7000) == 2
    assert [entry.key for entry in cache.entries()] == [keys["a"]]
