"""Headers of older formats go on serving: no compile for a format that changed. The golden headers are what the
compilers of those days wrote for a tiny model."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import Damaged
from kensho.base.structs import as_dict, replace
from kensho.runtime.cache.header import FORMAT, GraphHeader, dump_header, graph_key, parse_header
from kensho.runtime.cache.header_migrations import MIGRATIONS, migrate

GOLDENS = Path(__file__).parents[2] / "goldens"
OLD = ("1_0", "1_1")


def golden(version: str) -> bytes:
    return (GOLDENS / f"header_{version}.json").read_bytes()


def signed(body: object) -> bytes:
    def dump(document: object) -> bytes:
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    return dump({"body": body, "sha256": hashlib.sha256(dump(body)).hexdigest()})


def roles(header: GraphHeader) -> list[tuple[str, str]]:
    return [(section.name, section.role) for section in header.sections]


def test_there_is_a_step_from_every_older_format() -> None:
    assert set(MIGRATIONS) == set(range(1, FORMAT[0]))


@pytest.mark.parametrize("version", OLD)
def test_an_old_header_says_after_migration_what_it_said_before(version: str) -> None:
    body = json.loads(golden(version))["body"]
    header = parse_header(golden(version))
    assert header.format == FORMAT
    now = json.loads(json.dumps(as_dict(header)))
    for section in now["sections"]:
        del section["role"]
    assert {**now, "format": body["format"], "speeds": body.get("speeds", [])} == {"speeds": [], **body}
    assert graph_key(header.key) == graph_key(parse_header(dump_header(header)).key)


def test_what_a_section_is_for_was_known_by_its_name() -> None:
    first, second = parse_header(golden("1_0")), parse_header(golden("1_1"))
    assert roles(first)[:3] == [
        ("graph", "graph"),
        ("model.embed_tokens.weight", "table"),
        ("model.layers.0.self_attn.q_proj.weight", "weights"),
    ]
    assert roles(second)[:3] == [("graph", "graph"), ("mixed", "mixed"), ("model.embed_tokens.weight", "table")]
    assert {role for _, role in roles(second)[3:]} == {"weights"}
    assert (first.speeds, len(second.speeds) >= 1) == ((), True)
    assert second.bytes_of("table") == 262144


@pytest.mark.parametrize("version", OLD)
def test_a_migrated_header_is_written_in_the_format_of_today(version: str) -> None:
    header = parse_header(golden(version))
    assert parse_header(dump_header(header)) == header
    assert json.loads(dump_header(header))["body"]["format"] == list(FORMAT)


@pytest.mark.parametrize("version", OLD)
def test_an_old_header_with_one_changed_byte_is_damaged(version: str) -> None:
    data = golden(version)
    for at in range(0, len(data), 11):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(Damaged):
            parse_header(bytes(changed))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["sections", "speeds", "key", "self_test", "form", "format"]), JSON)
def test_nonsense_that_is_hashed_right_is_damage_in_an_old_format_too(name: str, value: object) -> None:
    body = {**json.loads(golden("1_1"))["body"], name: value}
    try:
        parse_header(signed(body))
    except Damaged:
        return
    assert value == [] or name == "form"  # no speeds, or some text for people


def test_an_old_format_does_not_get_in_fields_that_it_did_not_have() -> None:
    body = json.loads(golden("1_1"))["body"]
    with pytest.raises(Damaged, match="unknown fields: gift"):
        parse_header(signed({**body, "gift": 1}))


def test_migrating_nothing_changes_nothing() -> None:
    body = json.loads(dump_header(parse_header(golden("1_1"))))["body"]
    assert migrate(body, FORMAT[0], FORMAT[0]) == body
    assert replace(parse_header(signed(body))) == parse_header(golden("1_1"))
