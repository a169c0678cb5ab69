"""One flipped byte in an installed model file, mended from nginx on loopback: Kensho beside zsync and aria2's metalink.

The peers are told which file to mend; `kensho repair` first hashes everything to find what is wrong. All end with a
file that is right as a whole; only Kensho's is synced, and put in place without touching the bytes a reader has open.
"""

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import harness
from harness import KENSHO, Data, Run
from kensho.base.clock import SystemClock
from kensho.delivery.checker import verify
from kensho.delivery.disk import RealDisk
from kensho.delivery.http_source import HttpSource
from kensho.delivery.repair import Repairer, RepairReport
from kensho.delivery.store import Store

BAR = 0.5
MEMORY_BAR_MB = 150
PIECE_BYTES = 1 << 20


def main() -> None:
    args = harness.arguments(__doc__ or "")
    data = harness.prepare(args.work, args.mb)
    zsync, zsyncmake, aria2 = (shutil.which(name) for name in ("zsync", "zsyncmake", "aria2c"))
    if not (zsync and zsyncmake):
        print("zsync is absent (Debian package zsync): no peer to compare with")
    harness.print_machine("urllib3", "zstandard", programs={"zsync": "-V", "aria2c": "--version", "nginx": "-v"})
    scratch: Path = args.scratch
    rng = random.Random(1)
    requests: list[int] = []
    fetched: list[int] = []

    with harness.nginx(data.served) as url:
        root = harness.fresh(scratch / "kensho") / "store"
        harness.init_store(root, url, data)
        harness.run([KENSHO, "--store", root, "--quiet", "pull", "bench"])

        def process(is_sampled: bool = False) -> Run:
            _flip(_installed(root), rng)
            return harness.run([KENSHO, "--store", root, "--quiet", "repair"], is_sampled=is_sampled)

        def called(is_check_counted: bool) -> Run:
            _flip(_installed(root), rng)
            clock = SystemClock()
            store = Store.open(root, disk=RealDisk())
            source = HttpSource(f"{url}/repo", clock=clock)
            repairer = Repairer(store, [source], emit=_ignore, clock=clock, rng=rng.random)
            reports: list[RepairReport] = []

            def check_and_mend() -> None:
                reports.append(repairer.repair(verify(store, is_full=True, clock=clock, emit=_ignore).damaged))

            if is_check_counted:
                result = harness.in_process(check_and_mend)
            else:
                damaged = verify(store, is_full=True, clock=clock, emit=_ignore).damaged
                result = harness.in_process(lambda: reports.append(repairer.repair(damaged)))
            assert reports[0].repaired_chunks == 1
            assert not reports[0].unrepaired
            requests.append(source.requests)
            fetched.append(reports[0].bytes_fetched)
            source.close()
            store.close()
            return result

        contestants: dict[str, Callable[[], Run]] = {
            "kensho repair (process: find and mend)": process,
            "kensho verify + Repairer (in process)": lambda: called(True),
            "kensho Repairer alone (in process)": lambda: called(False),
        }
        if zsync and zsyncmake:
            _make_zsync(zsyncmake, data, url)
            mend = [zsync, "-q", "-i", "damaged", "-o", "out", f"{url}/{data.file.name}.zsync"]
            contestants["zsync"] = lambda: _peer(scratch / "zsync", "damaged", data, rng, mend)
        if aria2:
            _make_metalink(data, url)
            patch = [aria2, "-q", "-V", "--file-allocation=none", "--allow-overwrite=true", "-M"]
            patch.append(str(data.served / "model.meta4"))
            contestants["aria2c -V (metalink, patched in place)"] = lambda: _peer(
                scratch / "aria2", "out", data, rng, patch
            )
        found = harness.interleave(contestants, args.rounds)
        peak = process(is_sampled=True)
    print(f"\nrepair of one flipped byte in {data.file.stat().st_size / 1e6:.0f} MB in {scratch}")
    harness.print_table(found, against="zsync" if "zsync" in found else None)
    print(f"fetched by one repair: {min(fetched)} - {max(fetched)} bytes")
    harness.print_bar("requests, each of one chunk", max(requests), 1, "")
    if "zsync" in found:
        for name in list(contestants)[:2]:
            harness.print_bar(
                f"{name} against zsync", harness.wall_s(found[name]) / harness.wall_s(found["zsync"]), BAR, "x"
            )
    harness.print_bar("peak RssAnon (process)", peak.rss_anon_bytes / 1e6, MEMORY_BAR_MB, "MB")
    shutil.rmtree(scratch)


def _installed(root: Path) -> Path:
    return root / "versions" / "bench" / "1.0" / "model.safetensors"


def _flip(path: Path, rng: random.Random) -> None:
    """As bit rot does: anywhere, under a read-only name, in the file that is there."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        at = rng.randrange(path.stat().st_size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))
    path.chmod(0o444)
    os.sync()  # what others wrote is not written out at the cost of who comes next


def _peer(folder: Path, name: str, data: Data, rng: random.Random, command: Sequence[object]) -> Run:
    """A peer mends `name` in `folder` and leaves the right file as `out`."""
    harness.fresh(folder)
    shutil.copyfile(data.file, folder / name)
    _flip(folder / name, rng)
    result = harness.run(command, cwd=folder)
    assert harness.sha256_of(folder / "out") == data.sha256
    return result


def _make_zsync(program: str, data: Data, url: str) -> None:
    target = data.file.with_name(f"{data.file.name}.zsync")
    harness.run([program, "-u", f"{url}/{data.file.name}", "-o", target, data.file])


def _make_metalink(data: Data, url: str) -> None:
    """A metalink with the digest of each MiB, as aria2 needs it to find one wrong piece."""
    with data.file.open("rb") as file:
        pieces = [hashlib.sha256(piece).hexdigest() for piece in iter(lambda: file.read(PIECE_BYTES), b"")]
    hashes = "".join(f"<hash>{digest}</hash>" for digest in pieces)
    (data.served / "model.meta4").write_text(
        '<?xml version="1.0" encoding="UTF-8"?><metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="out">'
        f'<size>{data.file.stat().st_size}</size><hash type="sha-256">{data.sha256}</hash>'
        f'<pieces length="{PIECE_BYTES}" type="sha-256">{hashes}</pieces>'
        f"<url>{url}/{data.file.name}</url></file></metalink>"
    )


def _ignore(event: object) -> None:
    del event


if __name__ == "__main__":
    main()
