"""Rows 2, 3 and 19 of `test_cache_failures`: entries of which a byte is wrong, or all of them."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from missing import MakeCache, Put, reason

from kensho.runtime.cache.loaded_graph import LoadedGraph

pytestmark = pytest.mark.store

ONCE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.real
def test_02_no_flipped_byte_of_a_really_compiled_entry_is_ever_served(
    compiled: LoadedGraph, make_cache: MakeCache
) -> None:
    folder, key = compiled.graph_folder, compiled.key
    sizes = {name: (folder / name).stat().st_size for name in ("graph.onnx", "weights.bin", "header.json")}
    assert reason(make_cache().lookup(key)) == "hit"

    @ONCE
    @given(st.sampled_from(sorted(sizes)), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
    def flip(name: str, where: float, bits: int) -> None:
        path, at = folder / name, int(where * sizes[name])
        data = bytearray(path.read_bytes())
        data[at] ^= bits
        path.write_bytes(data)
        assert reason(make_cache().lookup(key)) == "damaged"
        data[at] ^= bits
        path.write_bytes(data)

    flip()
    assert reason(make_cache().lookup(key)) == "hit"


@pytest.mark.real
def test_03_no_byte_of_a_real_header_can_change(compiled: LoadedGraph, make_cache: MakeCache) -> None:
    path = compiled.graph_folder / "header.json"
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert reason(make_cache().lookup(compiled.key)) == "damaged", at


@ONCE
@given(st.binary(max_size=300), st.sampled_from(["header.json", "verified.json", "graph.onnx", "weights.bin"]))
def test_19_no_bytes_make_a_lookup_fail_or_hit(make_cache: MakeCache, put: Put, data: bytes, name: str) -> None:
    cache = make_cache()
    key, made = put(cache, "a")
    made.pin.close()
    (made.folder / name).write_bytes(data)
    assert reason(make_cache().lookup(key)) == ("hit" if name == "verified.json" else "damaged")
    assert [entry.key for entry in cache.entries()] == [key]
    cache.keys()
    cache.evict(0)


@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling link", "no folder"])
def test_19_what_is_no_plain_file_is_a_miss_and_never_waited_for(make_cache: MakeCache, put: Put, kind: str) -> None:
    cache = make_cache()
    key, made = put(cache, "a")
    made.pin.close()
    for name in ("header.json", "weights.bin"):
        path = made.folder / name
        path.unlink()
        match kind:
            case "fifo":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "dangling link":
                path.symlink_to("/nowhere")
            case "no folder":
                shutil.rmtree(made.folder)
                made.folder.write_text("a file")
                break
    assert reason(make_cache().lookup(key)) != "hit"
    cache.entries()
    cache.keys()


@pytest.mark.parametrize("name", ["header.json", "graph.onnx", "weights.bin"])
def test_19_a_file_that_another_user_may_write_is_never_used(make_cache: MakeCache, put: Put, name: str) -> None:
    before = os.umask(0)
    try:
        key, made = put(make_cache(), "a")
    finally:
        os.umask(before)
    assert reason(make_cache().lookup(key)) == "hit"
    (made.folder / name).chmod(0o666)
    assert reason(make_cache().lookup(key)) == "damaged"


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_19_another_users_entry_is_never_used_unless_the_folder_is_theirs(make_cache: MakeCache, put: Put) -> None:
    key, made = put(make_cache(), "a")
    os.chown(made.folder / "graph.onnx", 65534, 65534)
    assert reason(make_cache().lookup(key)) == "damaged"
    os.chown(made.folder.parent, 65534, 65534)
    assert reason(make_cache().lookup(key)) == "hit"
