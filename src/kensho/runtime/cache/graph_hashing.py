"""Hash the files of a compiled graph: what its header's sections are made of, and what they are held against.

SHA-256 in blocks of 4 MiB, 0.7 ms per MiB; the GIL is released while hashing. Several threads where there
are processors: a graph of 280 MB takes 190 ms of CPU.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kensho.base.errors import Damaged
from kensho.base.ids import Digest, digest_of
from kensho.base.structs import Struct
from kensho.runtime.cache.header import BLOCK_BYTES, GraphHeader, Role, Section
from kensho.runtime.system.cpus import read_cpus

_MAX_THREADS = 4
"""Guess: more only wait for the memory."""
_FEW_BLOCKS = 4
"""Starting threads takes as long as hashing so many."""


class _Block(Struct):
    section: Section
    index: int
    offset: int
    size_bytes: int
    expected: Digest


def hash_section(name: str, file: str, offset: int, data: memoryview, role: Role = "weights") -> Section:
    """The section of a file's bytes `data`, which begin at `offset`."""
    blocks = tuple(digest_of(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES))
    return Section(name, role, file, offset, len(data), blocks)


def verify_graph(
    folder: Path, header: GraphHeader, progress: Callable[[int], None] | None = None, *, threads: int | None = None
) -> None:
    """Hash every byte of the entry's files against the header. Raises Damaged, which names file and block: drop the
    entry and compile again.

    `progress` is called, from any thread, with the size of each block found right. `threads`: None = as many as this
    process may use, at most 4.
    """
    verify_files(folder, header, {section.file for section in header.sections}, progress, threads=threads)


def verify_files(
    folder: Path,
    header: GraphHeader,
    files: set[str],
    progress: Callable[[int], None] | None = None,
    *,
    threads: int | None = None,
) -> None:
    """The same for some of the files only."""
    for name in sorted(files):
        blocks = [block for section in header.sections if section.file == name for block in _blocks(section)]
        try:
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size > sum(block.size_bytes for block in blocks):
                    raise _refuse(f"{name} of the compiled graph is longer than its header says", file=name)
                _verify_blocks(descriptor, blocks, progress, threads or _threads())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _refuse(f"{name} of the compiled graph: {error.strerror}", "unreadable", file=name) from error


def verify_steps(folder: Path, header: GraphHeader) -> Iterator[int]:
    """Hash all of it block by block, for somebody who has time: yields the size of each block found right.

    Raises Damaged. Each step reads and hashes 4 MiB, 2 ms of what is in the page cache.
    """
    for name in sorted({section.file for section in header.sections}):
        try:
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for section in header.sections:
                    for block in _blocks(section) if section.file == name else ():
                        _verify_block(descriptor, block)
                        yield block.size_bytes
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _refuse(f"{name} of the compiled graph: {error.strerror}", "unreadable", file=name) from error


def _blocks(section: Section) -> list[_Block]:
    return [
        _Block(
            section,
            index,
            section.offset + index * BLOCK_BYTES,
            min(BLOCK_BYTES, section.size_bytes - index * BLOCK_BYTES),
            expected,
        )
        for index, expected in enumerate(section.blocks)
    ]


def _verify_blocks(descriptor: int, blocks: list[_Block], progress: Callable[[int], None] | None, threads: int) -> None:
    def verify(block: _Block) -> None:
        _verify_block(descriptor, block)
        if progress:
            progress(block.size_bytes)

    if len(blocks) <= _FEW_BLOCKS or threads == 1:
        for block in blocks:
            verify(block)
        return
    from concurrent.futures import ThreadPoolExecutor  # not on the start path: a graph is hashed once a boot

    with ThreadPoolExecutor(threads, "verify") as pool:
        try:
            for _ in pool.map(verify, blocks):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _verify_block(descriptor: int, block: _Block) -> None:
    with memoryview(bytearray(block.size_bytes)) as data:
        at = 0
        while at < block.size_bytes and (count := os.preadv(descriptor, [data[at:]], block.offset + at)):
            at += count
        is_right = at == block.size_bytes and digest_of(data) == block.expected
    if not is_right:
        section = block.section
        raise _refuse(
            f"{section.file} of the compiled graph is damaged (section {section.name}, block {block.index})",
            file=section.file,
            section=section.name,
            block=block.index,
        )


def _threads() -> int:
    return min(_MAX_THREADS, read_cpus())


def _refuse(message: str, reason: str = "damaged", **facts: object) -> Damaged:
    return Damaged(message, advice="the entry is dropped and the model compiled again", reason=reason, **facts)
