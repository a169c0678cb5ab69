"""The files of a compiled graph on a disk that refuses: one clear error, which says what is needed."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from kensho.base.errors import CompileFailed, ModelError, NotEnoughSpace, StorageError
from kensho.runtime.cache.graph_hashing import hash_section
from kensho.runtime.cache.header import BLOCK_BYTES
from kensho.runtime.compiling.artefact import WeightsFile, count_blocks, storage_errors, write_file
from kensho.runtime.graph.weights_layout import Layout, Matrix, Place

LAYOUT = Layout(
    {"w": Matrix("w", ("w",), (3,), 5)},
    {"w": Place("w", 0, 15), "w.sums": Place("w.sums", 4096, BLOCK_BYTES + 4)},
    frozenset({"w"}),
)


SUMS = np.arange(15, dtype=np.int32).reshape(5, 3).sum(axis=0, dtype=np.int32)
CONSTANTS = {"w.sums": np.full(BLOCK_BYTES // 4 + 1, 7, np.int32), "inline": np.zeros(1, np.int32)}


@pytest.mark.parametrize("at", [0, 7, 14, 4096, 4096 + BLOCK_BYTES + 3])
def test_a_byte_that_is_wrong_before_it_is_hashed_is_found(tmp_path: Path, at: int) -> None:
    with WeightsFile(tmp_path, LAYOUT) as weights:
        weights.matrix(LAYOUT.matrices["w"])[:] = np.arange(15, dtype=np.int8).reshape(5, 3)
        weights.write(CONSTANTS)
        with (tmp_path / "weights.bin").open("r+b") as file:  # the same pages as the map's
            byte = os.pread(file.fileno(), 1, at)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 1]), at)
        weights.seal(LAYOUT.matrices["w"], SUMS)
        with pytest.raises(CompileFailed, match=r"weights.bin for w"):
            list(weights.sections(lambda _: None))


def test_a_constant_that_was_never_written_is_found(tmp_path: Path) -> None:
    with WeightsFile(tmp_path, LAYOUT) as weights:
        weights.matrix(LAYOUT.matrices["w"])[:] = np.arange(15, dtype=np.int8).reshape(5, 3)
        weights.seal(LAYOUT.matrices["w"], SUMS)
        with pytest.raises(CompileFailed, match=r"weights.bin for w.sums"):
            list(weights.sections(lambda _: None))


def test_matrices_and_constants_land_in_their_places_and_the_hashes_cover_the_padding(tmp_path: Path) -> None:
    blocks: list[int] = []
    with WeightsFile(tmp_path, LAYOUT) as weights:
        matrix = weights.matrix(LAYOUT.matrices["w"])
        matrix[:] = np.arange(15, dtype=np.int8).reshape(5, 3)
        del matrix
        weights.seal(LAYOUT.matrices["w"], SUMS)
        weights.write(CONSTANTS)
        sections = list(weights.sections(blocks.append))
        weights.flush()
    data = (tmp_path / "weights.bin").read_bytes()
    assert data[:15] == bytes(range(15))
    assert data[4096:4108] == bytes([7, 0, 0, 0] * 3)
    assert len(data) == LAYOUT.size_bytes == sum(section.size_bytes for section in sections)
    assert sum(blocks) == count_blocks(LAYOUT) == 3
    for section in sections:
        part = memoryview(data)[section.offset : section.offset + section.size_bytes]
        role = "table" if section.name == "w" else "weights"
        assert section == hash_section(section.name, "weights.bin", section.offset, part, role)


def test_a_full_disk_says_how_much_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(NotEnoughSpace, match="need 5 MiB") as caught,
        storage_errors(tmp_path, LAYOUT.size_bytes),
        WeightsFile(tmp_path, LAYOUT),
    ):
        pass
    assert caught.value.facts["needed_bytes"] == LAYOUT.size_bytes


def test_other_refusals_of_the_disk_are_storage_errors_and_our_own_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"), storage_errors(tmp_path, 1):
        write_file(tmp_path / "nowhere", "graph.onnx", b"")
    with pytest.raises(ModelError, match="mine"), storage_errors(tmp_path, 1):
        raise ModelError("mine")
