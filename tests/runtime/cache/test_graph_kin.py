from kensho.base.ids import GraphKey, digest_of
from kensho.base.structs import replace
from kensho.runtime.cache.graph_kin import STORM, Kinship, find_kin, find_replaced
from kensho.runtime.cache.header import KeyFields, graph_key

NEW = KeyFields(
    weights_digest=digest_of(b"w"),
    config_digest=digest_of(b"c"),
    tokenizer_digest=digest_of(b"t"),
    engine_version="2",
    arch="x86_64",
    system="linux",
    cpu_features=("avx2",),
    max_positions=4096,
)


def entries(*fields: KeyFields) -> dict[GraphKey, KeyFields]:
    return {graph_key(each): each for each in fields}


def test_the_nearest_relative_explains_a_miss_and_other_models_do_not() -> None:
    far = replace(NEW, engine_version="1", arch="aarch64")
    near = replace(NEW, cpu_features=())
    other = replace(NEW, weights_digest=digest_of(b"other"), engine_version="1")
    assert find_kin(NEW, entries(far, near, other)) == Kinship(("cpu_features",), 2)
    assert find_kin(NEW, entries(other, NEW)) == Kinship((), 0)


def test_many_graphs_of_one_content_are_a_storm() -> None:
    kin = [replace(NEW, engine_version=str(number)) for number in range(10, 10 + STORM)]
    assert not find_kin(NEW, entries(*kin[1:])).is_storm
    assert find_kin(NEW, entries(*kin)).is_storm


def test_only_what_an_older_engine_or_compiler_made_is_replaced() -> None:
    old = replace(NEW, engine_version="1", compiler=NEW.compiler - 1)
    kept = [replace(old, cpu_features=()), replace(old, max_positions=64), replace(old, config_digest=digest_of(b"x"))]
    assert find_replaced(NEW, entries(NEW, old, *kept)) == {graph_key(old): ("engine_version", "compiler")}
