"""Properties of the one function that decides what travels."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import NotEnoughSpace
from kensho.base.ids import Digest, digest_of
from kensho.delivery import plan as plan_module
from kensho.delivery.chunk_list import Chunk
from kensho.delivery.plan import Have, Place, Plan, Slot, WantedFile, make_plan

PLENTY = 1 << 40


def _digest(text: str) -> Digest:
    return digest_of(text.encode())


class World:
    """Files made of lettered chunks, packed one after the other with gaps, and a disk for the plan."""

    def __init__(self, files: list[str], gaps: list[int] | None = None) -> None:
        self.content: dict[Digest, bytes] = {}
        self.chunks: dict[str, Chunk] = {}
        self.packs: dict[Digest, bytearray] = {}
        for position, letter in enumerate(dict.fromkeys("".join(files))):
            self.chunks[letter] = self._pack(letter, gaps[position % len(gaps)] if gaps else 0)
        self.files = [self._file(letters) for letters in files]

    def _pack(self, letter: str, gap: int) -> Chunk:
        data = letter.encode() * (ord(letter) % 7 + 1)
        pack = _digest(f"pack {ord(letter) % 2}")
        body = self.packs.setdefault(pack, bytearray())
        body += b"." * gap
        chunk = Chunk(digest_of(data), len(data), pack, len(body), len(data), "raw")
        body += data
        self.content[chunk.digest] = data
        return chunk

    def _file(self, letters: str) -> WantedFile:
        chunks = tuple(self.chunks[letter] for letter in letters)
        data = b"".join(self.content[chunk.digest] for chunk in chunks)
        return WantedFile(digest_of(data), len(data), chunks)

    def apply(self, plan: Plan, have: Have) -> dict[Digest, bytes]:
        """The blobs after the plan: kept and copied bytes come from `have` alone, fetched ones from the packs alone."""
        staging = {file.digest: bytearray(b"?" * file.size_bytes) for file in plan.files}
        for slot in plan.kept:
            chunk = next(file for file in plan.files if file.digest == slot.file).chunks[slot.index]
            assert slot.index in have.staged[slot.file]
            self._put(staging, slot, self.content[chunk.digest])
        for copy in plan.copies:
            assert have.chunks[copy.item.chunk.digest] == (copy.source,)
            for slot in copy.item.slots:
                self._put(staging, slot, self.content[copy.item.chunk.digest])
        for fetch in plan.fetches:
            body = bytes(self.packs[fetch.pack][fetch.offset : fetch.offset + fetch.length])
            for item in fetch.items:
                start = item.chunk.pack_offset - fetch.offset
                for slot in item.slots:
                    self._put(staging, slot, body[start : start + item.chunk.encoded_bytes])
        return {digest: bytes(data) for digest, data in staging.items()}

    @staticmethod
    def _put(staging: dict[Digest, bytearray], slot: Slot, data: bytes) -> None:
        target = staging[slot.file]
        assert target[slot.offset : slot.offset + len(data)] == b"?" * len(data), "covered twice"
        target[slot.offset : slot.offset + len(data)] = data


FILES = st.lists(st.text(alphabet="abcdefghij", max_size=12), min_size=1, max_size=4)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[World, Have]:
    world = World(draw(FILES), draw(st.lists(st.integers(0, 20), min_size=1, max_size=5)))
    letters = sorted(world.chunks)
    local = draw(st.sets(st.sampled_from(letters))) if letters else set()
    chunks = {world.chunks[letter].digest: (Place("blobs/x", draw(st.integers(0, 99))),) for letter in sorted(local)}
    files = frozenset(file.digest for file in world.files if draw(st.booleans()) and draw(st.booleans()))
    staged = {
        file.digest: frozenset(draw(st.sets(st.integers(0, len(file.chunks) - 1))))
        for file in world.files
        if file.chunks
    }
    return world, Have(files=files, staged=staged, chunks=chunks)


@settings(max_examples=150, deadline=None)
@given(worlds(), st.integers(0, 25), st.integers(1, 60))
def test_applying_a_plan_yields_the_wanted_bytes(made: tuple[World, Have], gap: int, size: int) -> None:
    world, have = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "MAX_GAP_BYTES", gap)
        patch.setattr(plan_module, "MAX_RANGE_BYTES", size)
        plan = make_plan("m", "1", world.files, have, free_bytes=PLENTY)
    blobs = world.apply(plan, have)
    for file in world.files:
        if file.digest not in have.files:
            assert hashlib.sha256(blobs[file.digest]).hexdigest() == file.digest
    for fetch in plan.fetches:
        assert len(fetch.items) == 1 or fetch.length <= size
    fetched = [item.chunk.digest for fetch in plan.fetches for item in fetch.items]
    assert len(fetched) == len(set(fetched)), "fetched twice"
    assert not set(fetched) & set(have.chunks), "a verified chunk is never fetched"


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_a_plan_adds_up(made: tuple[World, Have]) -> None:
    world, have = made
    plan = make_plan("m", "1", world.files, have, free_bytes=PLENTY)
    new = sum(item.chunk.size_bytes * len(item.slots) for fetch in plan.fetches for item in fetch.items)
    assert plan.bytes_reuse + new == plan.bytes_total
    assert plan.bytes_fetch == sum(fetch.length for fetch in plan.fetches)
    assert plan.requests == len(plan.fetches)
    assert (plan.bytes_disk_needed == 0) == (not plan.fetches and not plan.copies)


def test_neighbours_travel_in_one_range_and_far_ones_do_not() -> None:
    near = make_plan("m", "1", World(["acegi"], [5]).files, Have(), free_bytes=PLENTY)
    assert near.requests == 1
    far = make_plan("m", "1", World(["acegi"], [plan_module.MAX_GAP_BYTES + 1]).files, Have(), free_bytes=PLENTY)
    assert far.requests == 5
    assert far.bytes_fetch == far.bytes_total


def test_the_same_bytes_in_two_packs_are_fetched_once() -> None:
    data = b"same" * 4
    chunks = [Chunk(digest_of(data), 16, _digest(pack), 0, 16, "raw") for pack in "xy"]
    files = [WantedFile(digest_of(data), 16, (chunks[0],)), WantedFile(digest_of(data * 2), 32, (chunks[1], chunks[1]))]
    plan = make_plan("m", "1", files, Have(), free_bytes=PLENTY)
    assert plan.bytes_fetch == 16
    assert [len(item.slots) for fetch in plan.fetches for item in fetch.items] == [3]


def test_chunks_that_overlap_in_a_pack_are_asked_for_apart() -> None:
    pack = _digest("pack")
    chunks = tuple(Chunk(_digest(str(at)), 10, pack, at, 10, "raw") for at in (0, 5))
    plan = make_plan("m", "1", [WantedFile(_digest("f"), 20, chunks)], Have(), free_bytes=PLENTY)
    assert [(fetch.offset, fetch.length) for fetch in plan.fetches] == [(0, 10), (5, 10)]


def test_too_little_space_is_refused_before_the_first_byte_and_says_what_to_do() -> None:
    files = World(["abcdefgh"]).files
    needed = make_plan("m", "1", files, Have(), free_bytes=PLENTY).bytes_disk_needed
    assert make_plan("m", "1", files, Have(), free_bytes=needed).bytes_disk_free == needed
    with pytest.raises(NotEnoughSpace) as caught:
        make_plan("m", "1", files, Have(), free_bytes=needed - 1, reclaimable_bytes=5 << 20)
    assert caught.value.facts == {"needed_bytes": needed, "free_bytes": needed - 1, "reclaimable_bytes": 5 << 20}
    assert "gc` would free 5 MiB" in caught.value.advice
    assert "free 1 MiB more" in caught.value.advice


def test_nothing_to_do_needs_no_space() -> None:
    files = World(["abc"]).files
    plan = make_plan("m", "1", files, Have(files=frozenset({files[0].digest})), free_bytes=0)
    assert (plan.bytes_fetch, plan.bytes_disk_needed, plan.bytes_reuse) == (0, 0, plan.bytes_total)
