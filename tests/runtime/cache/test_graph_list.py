import shutil
from collections.abc import Callable
from pathlib import Path

from kensho.base.ids import GraphKey, digest_of
from kensho.base.structs import replace
from kensho.runtime.cache.graph_cache import GraphCache, Hit
from kensho.runtime.cache.graph_list import Content, content_of, judge_graph, list_failed, list_graphs, prune_graphs
from kensho.runtime.cache.header import FormSpeed, KeyFields, dump_header, graph_key, read_header
from kensho.runtime.compiling.compile_failures import BARRED_S
from kensho.runtime.system.machine import Machine

Put = Callable[..., tuple[GraphKey, Hit]]
MakeCache = Callable[..., GraphCache]
HERE = Machine("x86_64", "linux", (), "1")


def content(name: str) -> Content:
    return digest_of(name.encode()), digest_of(b"config"), digest_of(b"tokenizer")


INSTALLED = {content(name): (f"model-{name} 1",) for name in "abcde"}


def test_an_entry_is_told_with_what_people_ask_for(make_cache: MakeCache, put: Put) -> None:
    key, made = put(make_cache(), "a")
    (info,) = list_graphs(make_cache(), HERE, INSTALLED)
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
    assert [info.key for info in list_graphs(cache, HERE, INSTALLED)] == keys
    assert [info.key for info in list_graphs(cache, HERE, INSTALLED)] == keys


def test_the_state_says_of_what_use_a_graph_is_here(make_cache: MakeCache, put: Put) -> None:
    fields = read_header(put(make_cache(), "a")[1].folder).key
    assert judge_graph(fields, HERE, INSTALLED) == "ready"
    assert judge_graph(fields, replace(HERE, cpu_features=("avx2",)), INSTALLED) == "other_machine"
    assert judge_graph(fields, replace(HERE, engine_version="2"), INSTALLED) == "obsolete"
    assert judge_graph(replace(fields, compiler=0), HERE, INSTALLED) == "obsolete"


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
    cache.note_failure(entries["e"][0], 1.0, "compiling", "killed", "m 1")
    assert [info.state for info in list_graphs(cache, HERE, INSTALLED)] == [
        "damaged",
        "obsolete",
        "format_newer",
        "damaged",
        "ready",
    ]
    assert prune_graphs(cache, HERE, INSTALLED) == [entries[content][0] for content in "abd"]
    assert [info.key for info in list_graphs(cache, HERE, INSTALLED)] == [entries["c"][0], entries["e"][0]]
    assert cache.failures(entries["e"][0]) is None


def test_prune_spares_what_is_in_use(make_cache: MakeCache, put: Put) -> None:
    cache = make_cache()
    key, made = put(cache, "a")
    assert prune_graphs(cache, replace(HERE, engine_version="2"), INSTALLED) == []
    made.pin.close()
    assert prune_graphs(cache, replace(HERE, engine_version="2"), INSTALLED) == [key]


def test_a_graph_of_a_version_that_is_gone_is_an_orphan_and_pruned_and_others_on_the_same_bytes_keep_it(
    make_cache: MakeCache, put: Put
) -> None:
    cache = make_cache()
    keys = {}
    for name in "ab":
        keys[name], made = put(cache, name)
        made.pin.close()
    installed = {content("a"): ("voice 2", "voice-small 7")}
    kept, gone = list_graphs(cache, HERE, installed)
    assert (kept.state, kept.used_by) == ("ready", ("voice 2", "voice-small 7"))
    assert (gone.state, gone.used_by) == ("orphaned", ())
    assert prune_graphs(cache, HERE, installed) == [keys["b"]]
    assert [info.key for info in list_graphs(cache, HERE, installed)] == [keys["a"]]
    in_use = cache.lookup(keys["a"])
    assert prune_graphs(cache, HERE, {}) == []
    assert isinstance(in_use, Hit)
    in_use.pin.close()
    assert prune_graphs(cache, HERE, {}) == [keys["a"]]


def test_a_compile_that_failed_is_told_with_its_model_and_for_how_long_it_is_barred(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    cache = make_cache()
    key = GraphKey("1" * 64)
    assert list_failed(cache, 0.0) == []
    (tmp_path / "graphs").mkdir()
    for at_s in (10.0, 20.0, 30.0):
        cache.note_failure(key, at_s, "compiling", "killed: SIGKILL", "voice 2")
    (tmp_path / "graphs" / f"{'2' * 64}.failed").write_bytes(b"no record at all")
    (failed,) = list_failed(cache, 31.0)
    assert failed.as_json() == {
        "key": key,
        "model": "voice 2",
        "failures": 3,
        "stage": "compiling",
        "reason": "killed: SIGKILL",
        "last": 30.0,
        "barred_seconds": BARRED_S - 1,
    }


def test_a_graph_says_how_fast_the_forms_were_that_were_tried(make_cache: MakeCache, put: Put) -> None:
    _, made = put(make_cache(), "a")
    header = replace(made.header, speeds=(FormSpeed("u8", 13_000), FormSpeed("s8", 26_000)))
    (made.folder / "header.json").write_bytes(dump_header(header))
    (info,) = list_graphs(make_cache(), HERE, INSTALLED)
    assert info.as_json()["speeds_us"] == {"u8": 13_000, "s8": 26_000}


def test_the_list_of_no_folder_is_empty(make_cache: MakeCache) -> None:
    assert list_graphs(make_cache(), HERE, INSTALLED) == []
    assert prune_graphs(make_cache(), HERE, INSTALLED) == []


def test_a_key_is_only_of_this_machine_if_all_of_it_fits() -> None:
    fields = KeyFields(
        *(read for read in ("0" * 64, "1" * 64, "2" * 64)),  # type: ignore[arg-type]
        engine_version="1",
        arch="aarch64",
        system="linux",
        cpu_features=(),
        max_positions=64,
    )
    installed = {content_of(fields): ("m 1",)}
    assert judge_graph(fields, HERE, installed) == "other_machine"
    assert len(graph_key(fields)) == 64
