"""The file of compiled tokenizer tables: sections on 4 KiB borders, memory-mapped, each block checked when first used.

    header   one block: magic, format, size of the file, places of the sections, CRC-32 of `sums`, CRC-32 of itself
    sums     CRC-32 of every block from the end of this section to the end of the file
    meta     JSON (`meta`): which files it was made from, how text is normalised and cut, how ids become text
    added    UTF-8 of the added tokens, each ended by NUL, and their ids (`added_tokens`)
    classes  character classes for the patterns (`classes`)
    joints   bits: which pairs of characters a merge can join (`cuts`)
    borders  JSON: merges of parts of characters (`borders`)
    kinds    u8[n]: what the id is to the decoder (`decode`) and to the merges (`lookup`)
    offsets  u32[n + 1] and `blob`: the bytes of token `id` are blob[offsets[id]:offsets[id + 1]]
    vocab    u64 slots, open addressing: crc32(bytes) << 32 | canonical << 31 | id + 1 (`lookup`)
    merges   pairs of u64, open addressing: (left << 24 | right) + 1, rank << 24 | new id (`lookup`)

A load reads the header, the sums and the small sections (100 KB); no other byte is hashed until it is used. So a
damaged block is found before anything is made of it, whether the file was shipped (signed, and hashed at installation)
or made here. A CRC finds accidents, not forgers: who may write the store may also replace the model. Little-endian
machines only.
"""

import json
import mmap
import os
import stat
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

from kensho.runtime.text.tokenizer.refuse import NotCovered, TablesRefused

FILE_NAME = "tokenizer.tables"
"""Its name in a model folder."""
MAGIC = b"KENSHOTK"
FORMAT = 1
BLOCK_BYTES = 4096
MAX_FILE_BYTES = 256 << 20
"""16 times the tables of 262k tokens."""
SECTIONS = ("meta", "added", "classes", "joints", "borders", "kinds", "offsets", "vocab", "blob", "merges")
"""Those that every load reads first, so that a cold one reads the beginning of the file in one go."""
_HEADER = struct.Struct("<8sIIQI4x")
_PLACE = struct.Struct("<QQ")
_CRC = struct.Struct("<I")


class Tables:
    """An opened file. Its views live as long as this object does; they must not be used before `check`.

    Not changed after it is made, but for the marks of what was checked: safe to use from several threads.
    """

    def __init__(self, data: memoryview, name: str) -> None:
        """`data`: the whole file. Raises TablesRefused."""
        self.name = name
        self._data = data
        self._places = _parse_header(data)
        first = self._places["sums"][0]
        self._sums = self._section("sums").cast("I")
        self._first_block = (first + _round_up(self._places["sums"][1])) // BLOCK_BYTES
        if len(self._sums) != len(data) // BLOCK_BYTES - self._first_block:
            raise TablesRefused("its list of sums has another length")
        self.is_checked = bytearray(len(data) // BLOCK_BYTES)
        """By block of the file: 1 if it was found right. For `lookup`, which looks before each use."""
        self.meta = self._read_meta()

    @classmethod
    def open(cls, path: Path) -> "Tables":
        """Map the file (0.2 ms). Raises TablesRefused; OSError where there is none or it may not be read."""
        if sys.byteorder != "little":
            raise TablesRefused("this machine is big-endian")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or not BLOCK_BYTES < found.st_size <= MAX_FILE_BYTES:
                raise TablesRefused("it is no file of a possible size")
            mapped = mmap.mmap(descriptor, found.st_size, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        return cls(memoryview(mapped), path.name)

    def view(self, section: str) -> tuple[memoryview, int]:
        """The bytes of a section and the number of its first block in `is_checked`."""
        return self._section(section), self._places[section][0] // BLOCK_BYTES

    def check(self, block: int) -> None:
        """Compare one block with its sum (1 us), once. Raises TablesRefused."""
        if self.is_checked[block]:
            return
        start = block * BLOCK_BYTES
        if crc32(self._data[start : start + BLOCK_BYTES]) != self._sums[block - self._first_block]:
            raise TablesRefused(f"block {block} is damaged")
        self.is_checked[block] = 1

    def read(self, section: str) -> memoryview:
        """A whole section, checked. For the small ones."""
        offset, size = self._places[section]
        for block in range(offset // BLOCK_BYTES, (offset + _round_up(size)) // BLOCK_BYTES):
            self.check(block)
        return self._section(section)

    def _section(self, name: str) -> memoryview:
        offset, size = self._places[name]
        return self._data[offset : offset + size]

    def _read_meta(self) -> dict[str, object]:
        try:
            meta = json.loads(bytes(self.read("meta")))
        except (ValueError, RecursionError) as error:
            raise TablesRefused("its description is not readable") from error
        if not isinstance(meta, dict):
            raise TablesRefused("its description is no object")
        return meta


def dump_tables(meta: Mapping[str, object], sections: Mapping[str, bytes]) -> bytes:
    """The file's bytes. The same content always gives the same bytes. Raises NotCovered (too large)."""
    text = json.dumps(meta, sort_keys=True, separators=(",", ":")).encode()
    contents = {"meta": text, **sections}
    payload = b"".join(_padded(contents[name]) for name in SECTIONS)
    blocks = range(0, len(payload), BLOCK_BYTES)
    sums = struct.pack(f"<{len(blocks)}I", *(crc32(payload[at : at + BLOCK_BYTES]) for at in blocks))
    offset = BLOCK_BYTES
    places = [(offset, len(sums))]
    offset += _round_up(len(sums))
    for name in SECTIONS:
        places.append((offset, len(contents[name])))
        offset += _round_up(len(contents[name]))
    if offset > MAX_FILE_BYTES:
        raise NotCovered(f"they would have {offset} bytes")
    header = _HEADER.pack(MAGIC, FORMAT, len(places), offset, crc32(sums))
    header += b"".join(_PLACE.pack(*place) for place in places)
    header = header.ljust(BLOCK_BYTES - _CRC.size, b"\0")
    return b"".join((header, _CRC.pack(crc32(header)), _padded(sums), payload))


def _parse_header(data: memoryview) -> dict[str, tuple[int, int]]:
    """Offset and size of each section, in order, on borders of blocks, without gaps, up to the end of the file."""
    header = bytes(data[:BLOCK_BYTES])
    if header[: len(MAGIC)] != MAGIC:
        raise TablesRefused("it is no file of tokenizer tables")
    _, found_format, count, size, sums_crc = _HEADER.unpack_from(header)
    if found_format != FORMAT:
        raise TablesRefused(f"it has format {found_format}, this Kensho reads {FORMAT}")
    if len(header) != BLOCK_BYTES or _CRC.unpack_from(header, BLOCK_BYTES - _CRC.size)[0] != crc32(
        header[: -_CRC.size]
    ):
        raise TablesRefused("its header is damaged")
    if size != len(data) or size % BLOCK_BYTES:
        raise TablesRefused(f"it has {len(data)} bytes, its header says {size}")
    names = ("sums", *SECTIONS)
    if count != len(names):
        raise TablesRefused("it has other sections")
    places, expected = {}, BLOCK_BYTES
    for index, name in enumerate(names):
        offset, length = _PLACE.unpack_from(header, _HEADER.size + index * _PLACE.size)
        if offset != expected or length > size - offset:
            raise TablesRefused(f"section {name} is not where it must be")
        places[name] = (offset, length)
        expected = offset + _round_up(length)
    if expected != size:
        raise TablesRefused("its sections leave a gap at its end")
    offset, length = places["sums"]
    if length % _CRC.size or crc32(data[offset : offset + length]) != sums_crc:
        raise TablesRefused("its list of sums is damaged")
    return places


def _round_up(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _padded(data: bytes) -> bytes:
    return data.ljust(_round_up(len(data)), b"\0")
