"""The 22 ways in which a cache of compiled graphs fails, each with the test that holds it. Numbers as in the issue;
files without a folder lie beside this one, the others below tests/ or tests/runtime/. Rows 2, 3 and 19 are in
`test_cache_failures_in_files`, rows 12, 13, 16 and 17 in `test_cache_failures_on_disks`.

| # | failure | test |
|---|---|---|
| 1 | torn write, power cut | test_01..., test_graph_cache `what_killed_compilers_left_is_swept` |
| 2 | flipped bit in the weights | test_02... (a compiled entry), test_graph_cache `a_flipped_byte`, `bits_that_rot`; |
|   | | before hashing: compiling/test_artefact `wrong_before_it_is_hashed`, |
|   | | compiling/test_stages `a_writer_that_spoils`; |
|   | | while loaded: app/test_serving `damaged_under_its_engines`, app/test_serving_room `rots_while_it_is_loaded` |
| 3 | flipped bit in header or graph | test_03... (every byte of a real header), test_header |
| 4 | weights replaced, same size and time | test_04... |
| 5 | another CPU | test_05... |
| 6 | another engine or device | test_06... |
| 7 | another engine version | test_07... |
| 8 | older or newer format | test_08..., test_header_migrations, test_graph_cache `an_older_format_serves`, |
|   | | `of_a_later_kensho`, test_loader `an_entry_of_a_later_format` |
| 9 | two processes, one key | test_loader_processes `two_processes_compile_a_key_once` |
| 10 | compiler killed | test_10..., compiling/test_compiler `a_compiler_that_dies`, |
|   | | test_loader_processes `killed_while_compiling` |
| 11 | compile hangs | compiling/test_compiler `a_compiler_that_hangs_is_killed` |
| 12 | disk full while saving | test_12... (a real full disk), test_loader_trouble `no_space` |
| 13 | read-only, no permission, missing | test_13... (a real read-only disk), test_loader_trouble `cannot_be_written` |
| 14 | over its limit | test_graph_record (property), test_graph_cache, test_loader_trouble `larger_than_the_cache` |
| 15 | larger than free memory | app/test_tiers, app/test_serving_room `cannot_fit`, system/test_memory (cgroups), |
|   | | app/test_memory_pressure (a real cgroup) |
| 16 | file cut short under a live mapping | test_16..., hosts/test_host_loss `cut_short_under_a_running_host` |
| 17 | deleted while mapped | test_17... |
| 18 | clock jumps | test_18... |
| 19 | hostile file | test_19..., test_header `hostile_json`, test_graph_cache `a_link` |
| 20 | loads, then fails | test_loader `proves_bad_in_use`, app/test_serving `no_engine_can_start_with`, |
|   | | `answers_otherwise_than_when_it_was_made`, compiling/test_stages `answers_otherwise_than_its_trial` |
| 21 | storm of recompiles | test_21... |
| 22 | eviction and a request at once | test_22..., test_graph_cache `pinned_at_the_last_moment` |
"""

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from missing import MakeCache, Put, reason

from kensho.base.errors import CompileFailed, StorageError
from kensho.base.events import Event, GraphDropped, GraphMissed, RecompileStorm
from kensho.base.ids import digest_of
from kensho.base.structs import replace
from kensho.runtime.cache.graph_cache import GraphCache, Hit
from kensho.runtime.cache.header import GraphHeader, dump_header, graph_key, read_header
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.cache.loader import ModelLoader
from kensho.runtime.compiling.compile_failures import BARRED_S
from kensho.runtime.compiling.compile_job import CompileJob
from kensho.runtime.system.machine import Machine
from kensho.testing.clock import VirtualClock

pytestmark = pytest.mark.store

HERE = Machine("x86_64", "linux", ("avx2", "avx512_vnni"), "1.31.1")
DIGESTS = {name: digest_of(name.encode()) for name in ("config.json", "tokenizer.json", "model.safetensors")}


class Scripted:
    """A compiler that writes what a real one would leave, or fails as told."""

    def __init__(self, write: Callable[..., GraphHeader]) -> None:
        self._write = write
        self.compiles = 0
        self.errors: list[Exception] = []

    async def compile(self, job: CompileJob, on_stage: object = None) -> None:
        self.compiles += 1
        if self.errors:
            raise self.errors.pop(0)
        self._write(Path(job.out_folder), job.model, key=job.key)


class World:
    """One disk; a loader for each program and machine that uses it."""

    def __init__(self, root: Path, write: Callable[..., GraphHeader]) -> None:
        self.graphs = root / "graphs"
        self.scratch = root / "scratch"
        self.clock = VirtualClock()
        self.boot = "first boot"
        self.events: list[Event] = []
        self.compiler = Scripted(write)
        self._numbers = count()

    def cache(self) -> GraphCache:
        return GraphCache(
            self.graphs,
            limit_bytes=1 << 30,
            boot=self.boot,
            clock=self.clock,
            token=self._token,
            emit=self.events.append,
        )

    def load(self, machine: Machine = HERE, **digests: bytes) -> LoadedGraph:
        """As a program does that starts, loads the model and ends."""
        loader = ModelLoader(
            cache=self.cache(),
            compiler=self.compiler,
            scratch=self.scratch,
            token=self._token,
            machine=machine,
            clock=self.clock,
            emit=self.events.append,
            max_context=2048,
            threads=1,
        )
        changed = {name.replace("_", "."): digest_of(data) for name, data in digests.items()}
        try:
            return asyncio.run(loader.load("m", "1", self.graphs, {**DIGESTS, **changed}, tier="mapped"))
        finally:
            loader.close()

    def missed(self) -> list[tuple[str, str]]:
        return [(event.reason, event.differing) for event in self.events if isinstance(event, GraphMissed)]

    def dropped(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, GraphDropped)]

    def _token(self) -> str:
        return f"t{next(self._numbers)}"


@pytest.fixture
def world(tmp_path: Path, write: Callable[..., GraphHeader]) -> World:
    return World(tmp_path, write)


def test_01_an_entry_appears_only_after_its_bytes_are_on_the_disk(
    make_cache: MakeCache, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        steps.append("fsync " + Path(f"/proc/self/fd/{descriptor}").readlink().name[:4])
        real_fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        steps.append("rename")
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    put(make_cache(), "a")
    assert steps == ["fsync .tmp", "rename", "fsync grap"]


def test_04_replaced_weights_of_the_same_size_and_time_have_another_graph(world: World) -> None:
    first, second = world.load(), world.load(model_safetensors=b"other weights")
    assert first.key != second.key
    assert world.compiler.compiles == 2
    assert first.graph_folder.is_dir()


def test_05_a_graph_for_another_cpu_is_not_executed_and_not_removed(world: World) -> None:
    there = world.load()
    here = world.load(Machine("x86_64", "linux", ("avx2",), "1.31.1"))
    assert (here.source, here.key == there.key) == ("compile", False)
    assert world.missed()[-1] == ("absent", "cpu_features")
    assert world.load().source == "disk"
    shutil.rmtree(here.graph_folder)
    there.graph_folder.rename(here.graph_folder)  # even if somebody puts it there
    assert reason(world.cache().lookup(here.key)) == "damaged"


def test_06_a_graph_for_another_engine_or_device_is_another_entry(world: World) -> None:
    made = world.load()
    fields = read_header(made.graph_folder).key
    for other in (replace(fields, engine="onnxruntime-cuda"), replace(fields, arch="aarch64")):
        assert reason(world.cache().lookup(graph_key(other))) == "absent"


def test_07_the_graph_of_an_older_engine_stays_until_the_new_one_has_passed(world: World) -> None:
    old = world.load()
    newer = replace(HERE, engine_version="1.32.0")
    world.compiler.errors = [CompileFailed("it does not answer like the exact one")] * 2
    with pytest.raises(CompileFailed):
        world.load(newer)
    assert world.load().source == "disk"
    new = world.load(newer)
    assert new.source == "compile"
    assert world.missed()[-1] == ("absent", "engine_version")
    assert not old.graph_folder.exists()
    assert world.dropped() == ["replaced: another engine_version"]


def test_07_the_graph_of_an_older_engine_that_is_in_use_stays(world: World) -> None:
    old = world.load()
    user = world.cache().lookup(old.key)
    assert isinstance(user, Hit)
    world.load(replace(HERE, engine_version="1.32.0"))
    assert (old.graph_folder / "weights.bin").exists()


@pytest.mark.parametrize(("major", "is_kept"), [(0, False), (99, True)])
def test_08_an_older_format_is_made_anew_and_a_newer_one_left_alone(world: World, major: int, is_kept: bool) -> None:
    made = world.load()
    path = made.graph_folder / "header.json"
    other = dump_header(replace(read_header(made.graph_folder), format=(major, 0)))
    path.write_bytes(other)
    again = world.load()
    assert again.source == "compile"
    assert (path.read_bytes() == other) is is_kept
    assert world.load().source == ("compile" if is_kept else "disk")


def test_10_a_compile_that_fails_again_and_again_is_left_alone_for_an_hour(world: World) -> None:
    world.compiler.errors = [CompileFailed("killed: SIGKILL", stage="compiling")] * 5
    for _ in range(2):
        with pytest.raises(CompileFailed, match="killed"):
            world.load()
    assert world.compiler.compiles == 4
    with pytest.raises(CompileFailed, match="failed 4 times, last in compiling: killed: SIGKILL") as caught:
        world.load()
    assert caught.value.advice.startswith("it is tried again in 60 min")
    assert world.compiler.compiles == 4
    world.clock.sleep(BARRED_S)
    assert world.load().source == "compile"  # one failure more, and then it works
    assert world.compiler.compiles == 6
    assert world.cache().failures(world.load().key) is None


def test_18_wrong_times_change_neither_what_is_served_nor_what_is_evicted(make_cache: MakeCache, put: Put) -> None:
    cache = make_cache()
    keys = []
    for content, time_s in (("a", 4_000_000_000), ("b", 0), ("c", 1_700_000_000)):
        key, made = put(cache, content)
        made.pin.close()
        keys.append(key)
        for path in made.folder.iterdir():
            os.utime(path, (time_s, time_s))
    for key in keys:
        found = make_cache().lookup(key)
        assert isinstance(found, Hit)
        found.pin.close()
    assert [entry.key for entry in cache.entries()] == keys
    cache.evict(2 * 7000)
    assert [entry.key for entry in cache.entries()] == keys[1:]


def test_18_a_clock_that_was_set_back_bars_nothing(world: World) -> None:
    world.compiler.errors = [CompileFailed("killed")] * 4
    for _ in range(2):
        with pytest.raises(CompileFailed):
            world.load()
    world.clock.step_wall(-10 * BARRED_S)
    assert world.load().source == "compile"


def test_21_a_miss_names_the_key_field_that_differs_and_a_storm_is_an_alarm(world: World) -> None:
    versions = [f"1.31.{number}" for number in range(5)]
    users = []
    for version in versions:
        graph = world.load(replace(HERE, engine_version=version))
        found = world.cache().lookup(graph.key)  # in use: nothing is removed
        users.append(found)
    assert world.missed() == [("absent", "")] + [("absent", "engine_version")] * 4
    alarms = [event for event in world.events if isinstance(event, RecompileStorm)]
    assert [(event.graphs, event.differing) for event in alarms] == [(3, "engine_version"), (4, "engine_version")]


def test_22_what_a_lookup_hands_out_is_whole_while_others_evict_and_compile(make_cache: MakeCache, put: Put) -> None:
    has_ended = threading.Event()
    wrong: list[str] = []
    key, made = put(make_cache(), "a")
    made.pin.close()
    hits = 0

    def evict() -> None:
        cache = make_cache()
        while not has_ended.wait(0.001):
            cache.evict(0)

    def compile_again() -> None:
        cache = make_cache()
        while not has_ended.is_set():
            # Another holds the key's lock, or the entry is there already: a loader would have waited and looked.
            with contextlib.suppress(AssertionError, StorageError):
                pin = put(cache, "a")[1].pin
                has_ended.wait(0.002)
                pin.close()

    threads = [threading.Thread(target=work) for work in (evict, compile_again)]
    for thread in threads:
        thread.start()
    cache = make_cache()
    while hits < 20:
        found = cache.lookup(key)
        if isinstance(found, Hit):
            hits += 1
            if (found.folder / "weights.bin").read_bytes() != b"a" * 5000:
                wrong.append("bytes")
            found.pin.close()
    has_ended.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_table_names_every_failure_and_tests_that_exist() -> None:
    assert __doc__
    rows = [line for line in __doc__.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 23))
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_cache_failures*.py"))
    tests = Path(__file__).parents[2]
    everything = "".join(path.read_text() for path in tests.rglob("test_*.py"))
    for row in rows:
        names = row.split("|")[3]
        for word in names.split("`")[1::2]:
            assert f"{word}" in everything.replace(__doc__, ""), word
        for word in names.replace(",", " ").split():
            if word.startswith("test_") and word.endswith("..."):
                assert f"def {word[:-3]}" in here, word
