"""One suite for every source, and the rules of the wrappers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kensho.base.errors import ConfigError, NetworkNotAllowed, NotFoundAtSource, TransportError
from kensho.base.events import DownloadRetry, Event
from kensho.delivery.folder_source import FolderSource
from kensho.delivery.http_source import HttpSource
from kensho.delivery.sources import Failover, Retrying, Source, open_source
from kensho.server.origin import Origin
from kensho.testing.clock import VirtualClock
from kensho.testing.memory_source import MemorySource

PACK = bytes(i * 7 % 251 for i in range(3 << 20))
FILES = {"packs/a.pack": PACK, "metadata/timestamp.json": b"{}", "empty": b""}


def _on_disk(folder: Path) -> Path:
    for name, data in FILES.items():
        target = folder / "repo" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (folder / "secret").write_bytes(b"secret")
    (folder / "repo" / "out").symlink_to(folder / "secret")
    return folder / "repo"


def _http(folder: Path, stack: ExitStack) -> Source:
    return HttpSource(stack.enter_context(Origin(_on_disk(folder))).url, clock=VirtualClock())


MAKERS: dict[str, Callable[[Path, ExitStack], Source]] = {
    "folder": lambda folder, _: FolderSource(_on_disk(folder)),
    "memory": lambda *_: MemorySource(FILES),
    "retrying": lambda *_: _retrying(MemorySource(FILES), []),
    "failover": lambda *_: Failover([MemorySource(FILES), MemorySource(FILES)]),
    "http": _http,
}


@pytest.fixture(params=[*(name for name in MAKERS if name != "http"), pytest.param("http", marks=pytest.mark.real)])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    with ExitStack() as stack:
        made = MAKERS[request.param](tmp_path, stack)
        yield made
        made.close()


def test_a_small_file_is_read_whole_and_counted(source: Source) -> None:
    assert source.read("metadata/timestamp.json", max_bytes=2) == b"{}"
    assert source.read("empty", max_bytes=2) == b""
    assert (source.bytes_fetched, source.requests) == (2, 2)
    assert source.name


def test_more_bytes_than_allowed_are_refused_without_reading_on(source: Source) -> None:
    with pytest.raises(TransportError):
        source.read("packs/a.pack", max_bytes=1000)
    assert source.bytes_fetched < 600_000


@pytest.mark.parametrize(
    "path", ["none", "packs/none", "packs", "../secret", "out", "packs/../../secret", "/etc/passwd"]
)
def test_what_is_not_in_the_repository_is_not_found(source: Source, path: str) -> None:
    with pytest.raises(NotFoundAtSource):
        source.read(path, max_bytes=100)
    with pytest.raises(NotFoundAtSource):
        list(source.read_range(path, 0, 1))


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (17, 2_000_000), (len(PACK) - 1, 1), (0, len(PACK))])
def test_a_range_is_exactly_the_bytes_asked_for(source: Source, offset: int, length: int) -> None:
    pieces = list(source.read_range("packs/a.pack", offset, length))
    assert b"".join(pieces) == PACK[offset : offset + length]
    assert all(0 < len(piece) <= 1 << 20 for piece in pieces)
    assert (source.bytes_fetched, source.requests) == (length, 1)


def test_a_range_past_the_end_is_an_error(source: Source) -> None:
    for offset in (len(PACK) - 5, len(PACK), len(PACK) + 5):
        with pytest.raises(TransportError):
            list(source.read_range("packs/a.pack", offset, 10))


def test_a_range_can_be_left_early_and_the_source_goes_on(source: Source) -> None:
    pieces = source.read_range("packs/a.pack", 0, len(PACK))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]  # all of them are generators
    source.close()
    assert source.read("metadata/timestamp.json", max_bytes=2) == b"{}"


# --- Retrying ---


class Flaky:
    """Fails as scripted: each entry is how many bytes a call yields before its error; after the script all is well."""

    name = "flaky"

    def __init__(self, *script: tuple[int, TransportError], data: bytes = PACK) -> None:
        self.script, self.data, self.calls = list(script), data, list[tuple[int, int]]()
        self.bytes_fetched = 0
        self.requests = 0

    def read(self, path: str, *, max_bytes: int) -> bytes:
        return b"".join(self.read_range(path, 0, len(self.data)))

    def read_range(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        self.calls.append((offset, length))
        if self.script:
            count, error = self.script.pop(0)
            if count:
                yield self.data[offset : offset + count]
            raise error
        yield self.data[offset : offset + length]

    def close(self) -> None: ...


def _retrying(inner: Source, events: list[Event], clock: VirtualClock | None = None, attempts: int = 3) -> Retrying:
    return Retrying(inner, emit=events.append, clock=clock or VirtualClock(), rng=lambda: 0.5, attempts=attempts)


def test_a_range_goes_on_from_the_byte_it_had_reached() -> None:
    flaky, events, clock = (
        Flaky((1000, TransportError("cut")), (500, TransportError("cut"))),
        list[Event](),
        VirtualClock(),
    )
    start = clock.monotonic_s()
    assert b"".join(_retrying(flaky, events, clock).read_range("x", 0, 5000)) == PACK[:5000]
    assert flaky.calls == [(0, 5000), (1000, 4000), (1500, 3500)]
    delays = [event.delay_s for event in events if isinstance(event, DownloadRetry)]
    assert delays == [0.5, 1.0]
    assert clock.monotonic_s() - start == sum(delays)


def test_attempts_are_bounded_and_only_real_progress_forgives_a_failure() -> None:
    trickle = Flaky(*[(1, TransportError("cut"))] * 10)
    with pytest.raises(TransportError, match="cut"):
        list(_retrying(trickle, []).read_range("x", 0, 5000))
    assert len(trickle.calls) == 3
    useful = Flaky(*[(70_000, TransportError("cut"))] * 10)
    assert b"".join(_retrying(useful, []).read_range("x", 0, len(PACK))) == PACK


def test_retry_after_is_honoured_and_a_very_long_one_ends_the_run() -> None:
    clock, events = VirtualClock(), list[Event]()
    busy = Flaky((0, TransportError("busy", retry_after_s=7)))
    start = clock.monotonic_s()
    assert _retrying(busy, events, clock).read("x", max_bytes=1) == PACK
    assert 7 <= clock.monotonic_s() - start < 9
    with pytest.raises(TransportError, match="busy"):
        _retrying(Flaky((0, TransportError("busy", retry_after_s=3600))), events).read("x", max_bytes=1)


@pytest.mark.parametrize(
    "error", [NotFoundAtSource("no"), NetworkNotAllowed("no"), TransportError("no", is_final=True)], ids=repr
)
def test_what_waiting_cannot_cure_is_not_tried_again(error: TransportError) -> None:
    flaky = Flaky((0, error))
    with pytest.raises(TransportError, match="no"):
        _retrying(flaky, []).read("x", max_bytes=1)
    assert len(flaky.calls) == 1


# --- Failover ---


def test_the_next_source_goes_on_where_the_first_broke_off() -> None:
    first, second = Flaky((1000, TransportError("cut"))), Flaky()
    assert b"".join(Failover([first, second]).read_range("x", 0, 5000)) == PACK[:5000]
    assert (first.calls, second.calls) == ([(0, 5000)], [(1000, 4000)])


def test_a_source_that_was_blamed_is_asked_last() -> None:
    first, second = Flaky(), Flaky()
    first.name, second.name = "first", "second"
    both = Failover([first, second])
    list(both.read_range("x", 0, 10))
    assert both.blame() == "first"
    list(both.read_range("x", 0, 10))
    assert (len(first.calls), len(second.calls)) == (1, 1)


def test_no_such_file_is_no_fault_and_is_reported_only_if_all_say_so() -> None:
    first, second = Flaky((0, NotFoundAtSource("no")), (0, NotFoundAtSource("no"))), Flaky((0, NotFoundAtSource("no")))
    both = Failover([first, second])
    with pytest.raises(NotFoundAtSource):
        both.read("x", max_bytes=1)
    second.script = [(0, TransportError("down"))]
    with pytest.raises(TransportError, match="down"):
        both.read("x", max_bytes=1)
    assert both.read("x", max_bytes=1) == PACK
    assert len(first.calls) == 3


# --- addresses ---


def test_an_address_gives_its_source_and_a_wrong_one_advice(tmp_path: Path) -> None:
    def opened(url: str, allow_network: bool = True) -> Source:
        return open_source(url, clock=VirtualClock(), proxy=None, allow_network=allow_network)

    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "x").write_bytes(b"1")
    for url in (str(tmp_path / "a b"), f"file://{tmp_path}/a%20b"):
        assert opened(url, allow_network=False).read("x", max_bytes=1) == b"1"
    assert opened("https://user:secret@host/app").name == "https://host/app"
    for url in ("ftp://host/x", "s3//x://", "http://", "file://relative"):
        with pytest.raises(ConfigError) as caught:
            opened(url)
        assert caught.value.advice
    with pytest.raises(NetworkNotAllowed):
        opened("http://127.0.0.1:1/", allow_network=False)


def test_a_folder_that_is_gone_is_a_transport_error_that_asks_about_the_stick(tmp_path: Path) -> None:
    with pytest.raises(TransportError) as caught:
        FolderSource(tmp_path / "none").read("x", max_bytes=1)
    assert not isinstance(caught.value, NotFoundAtSource)
    assert "mounted" in caught.value.advice
