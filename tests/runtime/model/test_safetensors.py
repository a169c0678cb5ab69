"""A safetensors file comes from a stranger: whatever it holds, the answer is a table or a ModelError."""

import json
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kensho.base.errors import ModelError
from kensho.runtime.model.safetensors import SHARD_INDEX, WEIGHTS, Tensor, parse_table, read_tensors


def _entry(begin: int, end: int, shape: list[int], dtype: str = "BF16") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _file(table: object, data: bytes) -> bytes:
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + data


TABLE = {"__metadata__": {"format": "pt"}, "b": _entry(12, 20, [2], "F32"), "a": _entry(0, 12, [2, 3])}


def test_a_table_gives_the_absolute_place_of_every_tensor(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(_file(TABLE, bytes(20)))
    begin = 8 + len(json.dumps(TABLE))
    assert read_tensors(tmp_path) == {
        "a": Tensor("a", "BF16", (2, 3), WEIGHTS, begin, 12),
        "b": Tensor("b", "F32", (2,), WEIGHTS, begin + 12, 8),
    }


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = _file(TABLE, bytes(20))
    for size in range(len(whole)):
        (tmp_path / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(ModelError):
            read_tensors(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        _entry(0, 12, [2, 4]),
        _entry(0, 14, [7]),
        _entry(12, 0, [2, 3]),
        _entry(-12, 0, [2, 3]),
        _entry(0, 12, [2, 3], "F4"),
        _entry(0, 12, [-2, -3]),
        _entry(0, 2**62, [2**61]),
        _entry(0, 0, [2**40, 2**40, 0] * 4),
        {"dtype": "BF16", "shape": [True], "data_offsets": [0, 2]},
        {"dtype": "BF16", "shape": None, "data_offsets": [0, 2]},
        {"dtype": ["BF16"], "shape": [1], "data_offsets": [0, 2]},
        {"dtype": "BF16", "shape": [1], "data_offsets": [0.0, 2.0]},
        [],
        None,
    ],
)
def test_an_impossible_tensor_is_refused(entry: object) -> None:
    with pytest.raises(ModelError):
        parse_table(json.dumps({"x": entry}).encode(), 12, file=WEIGHTS, data_offset=8)


def test_tensors_that_share_bytes_are_refused() -> None:
    table = json.dumps({"x": _entry(0, 8, [4]), "y": _entry(6, 12, [3])}).encode()
    with pytest.raises(ModelError, match="overlaps"):
        parse_table(table, 12, file=WEIGHTS, data_offset=8)


def test_a_name_that_occurs_twice_is_refused() -> None:
    one = json.dumps(_entry(0, 2, [1]))
    with pytest.raises(ModelError, match="twice"):
        parse_table(f'{{"x": {one}, "x": {one}}}'.encode(), 2, file=WEIGHTS, data_offset=8)


@pytest.mark.parametrize("header", [b"", b"\xff\xfe", b"[]", b"[" * 200_000, b'{"x":' * 50_000, b"9" * 10_000])
def test_hostile_json_is_refused(header: bytes) -> None:
    with pytest.raises(ModelError):
        parse_table(header, 0, file=WEIGHTS, data_offset=8)


def test_a_header_length_beyond_the_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ModelError, match="longer than"):
        read_tensors(tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["BF16", "F32", "I4", ""]) | _JSON,
        "shape": st.lists(st.integers(-1, 9), max_size=3) | _JSON,
        "data_offsets": st.lists(st.integers(-1, 70), max_size=3) | _JSON,
    }
)


@given(table=_JSON | st.dictionaries(st.text(max_size=3), _ENTRY | _JSON, max_size=4), size=st.integers(0, 64))
def test_any_table_gives_tensors_inside_the_file_or_a_model_error(table: object, size: int) -> None:
    try:
        tensors = parse_table(json.dumps(table).encode(), size, file=WEIGHTS, data_offset=8)
    except ModelError:
        return
    places = sorted((t.offset, t.offset + t.size_bytes) for t in tensors.values())
    assert all(8 <= begin <= end <= 8 + size for begin, end in places)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(places))


@given(data=st.binary(max_size=64))
def test_any_bytes_give_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        parse_table(b"\x00" + data, 0, file=WEIGHTS, data_offset=8)


def test_shards_are_joined_by_their_index(tmp_path: Path) -> None:
    (tmp_path / "s1.safetensors").write_bytes(_file({"a": _entry(0, 2, [1])}, bytes(2)))
    (tmp_path / "s2.safetensors").write_bytes(_file({"b": _entry(0, 2, [1]), "stray": _entry(2, 4, [1])}, bytes(4)))
    (tmp_path / SHARD_INDEX).write_text(json.dumps({"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}}))
    assert {name: tensor.file for name, tensor in read_tensors(tmp_path).items()} == {
        "a": "s1.safetensors",
        "b": "s2.safetensors",
    }


@pytest.mark.parametrize(
    "weight_map", [None, {}, {"a": "../s1.safetensors"}, {"a": "/s1.safetensors"}, {"a": 5}, {"b": "s1.safetensors"}]
)
def test_an_index_that_leaves_the_folder_or_lies_is_refused(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "s1.safetensors").write_bytes(_file({"a": _entry(0, 2, [1])}, bytes(2)))
    (tmp_path / SHARD_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError):
        read_tensors(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"):
        read_tensors(tmp_path)
