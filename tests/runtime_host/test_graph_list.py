import shutil
from collections.abc import Callable
from pathlib import Path

from kensho.base.ids import GraphKey
from kensho.base.structs import replace
from kensho.runtime.graph_cache import GraphCache, Hit
from kensho.runtime.graph_list import judge_graph, list_graphs, prune_graphs
from kensho.runtime.header import KeyFields, dump_header, graph_key, read_header
from kensho.runtime.machine import Machine

Put = Callable[..., tuple[GraphKey, Hit]]
MakeCache = Callable[..., GraphCache]
HERE = Machine("x86_64", "linux", (), "1")


def test_an_entry_is_told_with_what_people_ask_for(make_cache: MakeCache, put: Put) -> None:
    key, made = put(make_cache(), "a")
    (info,) = list_graphs(make_cache(), HERE)
    told = info.as_json()
    assert {name: told[name] for name in ("key", "model", "version", "form", "state", "in_use", "engine_version")} == {
        "key": key,
        "model": "m",
        "version": "1",
        "form": "u8",
        "state": "ready",
        "in_use": True,
        "engine_version": "1",
    }
    assert isinstance(told["size_bytes"], int)
    assert told["size_bytes"] > 5000
    assert isinstance(told["last_use"], float)
    made.pin.close()


def test_looking_is_no_use(make_cache: MakeCache, put: Put) -> None:
    cache = make_cache()
    keys = [put(cache, content)[0] for content in "ab"]
    assert [info.key for info in list_graphs(cache, HERE)] == keys
    assert [info.key for info in list_graphs(cache, HERE)] == keys


def test_the_state_says_of_what_use_a_graph_is_here(make_cache: MakeCache, put: Put) -> None:
    fields = read_header(put(make_cache(), "a")[1].folder).key
    assert judge_graph(fields, HERE) == "ready"
    assert judge_graph(fields, replace(HERE, cpu_features=("avx2",))) == "other_machine"
    assert judge_graph(fields, replace(HERE, engine_version="2")) == "obsolete"
    assert judge_graph(replace(fields, compiler=0), HERE) == "obsolete"


def with_format(folder: Path, major: int) -> None:
    (folder / "header.json").write_bytes(dump_header(replace(read_header(folder), format=(major, 0))))


def test_prune_removes_what_nothing_can_use_and_keeps_the_rest(make_cache: MakeCache, put: Put) -> None:
    cache = make_cache()
    entries = {content: put(cache, content) for content in "abcde"}
    for _, made in entries.values():
        made.pin.close()
    folders = {content: made.folder for content, (_, made) in entries.items()}
    (folders["a"] / "header.json").write_bytes(b"junk")
    with_format(folders["b"], 0)
    with_format(folders["c"], 99)
    shutil.rmtree(folders["d"] / "weights.bin", ignore_errors=True)
    (folders["d"] / "weights.bin").unlink()
    cache.note_failure(entries["e"][0], 1.0, "compiling", "killed")
    assert [info.state for info in list_graphs(cache, HERE)] == [
        "damaged",
        "obsolete",
        "format_newer",
        "damaged",
        "ready",
    ]
    assert prune_graphs(cache, HERE) == [entries[content][0] for content in "abd"]
    assert [info.key for info in list_graphs(cache, HERE)] == [entries["c"][0], entries["e"][0]]
    assert cache.failures(entries["e"][0]) is None


def test_prune_spares_what_is_in_use(make_cache: MakeCache, put: Put) -> None:
    cache = make_cache()
    key, made = put(cache, "a")
    assert prune_graphs(cache, replace(HERE, engine_version="2")) == []
    made.pin.close()
    assert prune_graphs(cache, replace(HERE, engine_version="2")) == [key]


def test_the_list_of_no_folder_is_empty(make_cache: MakeCache) -> None:
    assert list_graphs(make_cache(), HERE) == []
    assert prune_graphs(make_cache(), HERE) == []


def test_a_key_is_only_of_this_machine_if_all_of_it_fits() -> None:
    fields = KeyFields(
        *(read for read in ("0" * 64, "1" * 64, "2" * 64)),  # type: ignore[arg-type]
        engine_version="1",
        arch="aarch64",
        system="linux",
        cpu_features=(),
        max_positions=64,
    )
    assert judge_graph(fields, HERE) == "other_machine"
    assert len(graph_key(fields)) == 64
