"""Full download and verification of one model file from nginx on loopback: Kensho beside aria2 and curl + sha256sum.

Kensho's part is done with signatures, a digest for each chunk and one for the file, fsync before anything is visible,
and a version made by rename; no peer syncs. `without fsync` shows what that costs; the product always syncs.
"""

import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import harness
from harness import KENSHO, Run
from kensho import __version__
from kensho.base.clock import SystemClock
from kensho.delivery.disk import RealDisk
from kensho.delivery.http_source import HttpSource
from kensho.delivery.store import Store
from kensho.delivery.trust import Trust
from kensho.delivery.updater import Updater

BAR = 1.5
MEMORY_BAR_MB = 150


class UnsyncedDisk(RealDisk):
    """Shows what fsync costs. For measuring only."""

    def fsync(self, fd: int) -> None:
        del fd

    def fsync_folder(self, path: Path) -> None:
        del path


def main() -> None:
    args = harness.arguments(__doc__ or "")
    data = harness.prepare(args.work, args.mb)
    aria2 = harness.needed("aria2c", "aria2")
    curl, sha256sum = shutil.which("curl"), shutil.which("sha256sum")
    harness.print_machine(
        "urllib3", "zstandard", "tuf", programs={"aria2c": "--version", "curl": "--version", "nginx": "-v"}
    )
    scratch: Path = args.scratch

    with harness.nginx(data.served) as url:

        def process(is_sampled: bool = False) -> Run:
            store = harness.fresh(scratch / "process") / "store"
            harness.init_store(store, url, data)
            return harness.run([KENSHO, "--store", store, "--quiet", "pull", "bench"], is_sampled=is_sampled)

        def called(disk: RealDisk, is_sampled: bool = False) -> Run:
            root = harness.fresh(scratch / "called") / "store"
            harness.init_store(root, url, data)
            return harness.in_process(lambda: _pull(root, f"{url}/repo", disk), is_sampled=is_sampled)

        def aria() -> Run:
            folder = harness.fresh(scratch / "aria2")
            options = ["-q", "-x4", "-s4", "-k8M", "--file-allocation=none", f"--checksum=sha-256={data.sha256}"]
            return harness.run([aria2, *options, "-d", folder, "-o", "out", f"{url}/{data.file.name}"])

        def curl_and_sum() -> Run:
            folder = harness.fresh(scratch / "curl")
            command = f"{curl} -s -o out {url}/{data.file.name} && {sha256sum} out"
            return harness.run(["sh", "-c", command], cwd=folder)

        contestants: dict[str, Callable[[], Run]] = {
            "aria2c -x4 + checksum": aria,
            "kensho pull (process)": process,
            "kensho Updater (in process)": lambda: called(RealDisk()),
            "  the same without fsync": lambda: called(UnsyncedDisk()),
        }
        if curl and sha256sum:
            contestants["curl + sha256sum"] = curl_and_sum
        else:
            print("curl or sha256sum is absent")
        found = harness.interleave(contestants, args.rounds)
        peaks = {"process": process(is_sampled=True), "called": called(RealDisk(), is_sampled=True)}
    print(f"\nfull download + verification of {data.file.stat().st_size / 1e6:.0f} MB in {scratch}")
    harness.print_table(found, against="aria2c -x4 + checksum")
    reference = harness.wall_s(found["aria2c -x4 + checksum"])
    for name in ("kensho pull (process)", "kensho Updater (in process)"):
        harness.print_bar(f"{name} against aria2c", reference / harness.wall_s(found[name]), BAR, "x", at_least=True)
    for name, peak in peaks.items():
        harness.print_bar(f"peak RssAnon ({name})", peak.rss_anon_bytes / 1e6, MEMORY_BAR_MB, "MB")
    shutil.rmtree(scratch)


def _pull(root: Path, url: str, disk: RealDisk) -> None:
    clock = SystemClock()
    store = Store.open(root, disk=disk)
    source = HttpSource(url, clock=clock)
    trust = Trust(store.trusted, now=lambda: datetime.now(UTC), emit=_ignore)
    updater = Updater(
        store, trust, [source], client_version=__version__, emit=_ignore, clock=clock, rng=random.random, connections=4
    )
    report = updater.pull(["bench"])
    assert report.models[0].state == "updated", report
    source.close()
    store.close()


def _ignore(event: object) -> None:
    del event


if __name__ == "__main__":
    main()
