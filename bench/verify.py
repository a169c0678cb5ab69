"""The check at the start: every byte hashed (page cache warm) beside sha256sum, and the quick check from its records.

The quick check's budget is for the function itself, in a new process: first call, modules loaded; and what that process
has imported is looked at, since the start path must know neither TUF nor HTTP.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import harness
from harness import KENSHO, Run
from kensho.base.clock import SystemClock
from kensho.delivery.checker import verify
from kensho.delivery.disk import RealDisk
from kensho.delivery.store import Store

FULL_BAR, QUICK_BAR_MS, MEMORY_BAR_MB = 0.6, 5.0, 150
FORBIDDEN = ("tuf", "securesystemslib", "urllib3", "http.client", "requests", "ssl")

QUICK = """
import json, sys, time
from pathlib import Path
from kensho.base.clock import SystemClock
from kensho.delivery.checker import check_model, verify
from kensho.delivery.disk import RealDisk
from kensho.delivery.store import Store
clock, times = SystemClock(), {}
def now():
    return time.perf_counter(), time.process_time()
def since(start):
    return [after - before for before, after in zip(start, now())]
start = now()
store = Store.open(Path(sys.argv[1]), disk=RealDisk())
times["open the store"] = since(start)
for name, check in (
    ("quick check (all models)", lambda: verify(store, is_full=False, clock=clock, emit=lambda event: None)),
    ("load check (one model)", lambda: check_model(store, "bench", clock=clock, emit=lambda event: None)),
):
    start = now()
    report = check()
    times[name] = since(start)
    assert not report.damaged and not report.bytes_hashed, report
print(json.dumps([times, sorted(sys.modules)]))
"""


def main() -> None:
    args = harness.arguments(__doc__ or "", rounds=9)
    data = harness.prepare(args.work, args.mb)
    sha256sum = harness.needed("sha256sum", "coreutils")
    harness.print_machine("msgspec", programs={"sha256sum": "--version"})
    scratch: Path = args.scratch
    with harness.nginx(data.served) as url:
        root = harness.fresh(scratch / "store") / "store"
        harness.init_store(root, url, data)
        harness.run([KENSHO, "--store", root, "--quiet", "pull", "bench"])
    file = root / "versions" / "bench" / "1.0" / data.file.name
    clock = SystemClock()

    def called() -> Run:
        store = Store.open(root, disk=RealDisk())
        result = harness.in_process(
            lambda: _assert_right(verify(store, is_full=True, clock=clock, emit=lambda event: None).damaged)
        )
        store.close()
        return result

    contestants: dict[str, Callable[[], Run]] = {
        "sha256sum": lambda: harness.run([sha256sum, file]),
        "verify(is_full=True) (in process)": called,
        "kensho verify --full (process)": lambda: harness.run([KENSHO, "--store", root, "--quiet", "verify", "--full"]),
    }
    if b3sum := shutil.which("b3sum"):
        contestants["b3sum"] = lambda: harness.run([b3sum, file])
    if openssl := shutil.which("openssl"):
        contestants["openssl dgst -sha256"] = lambda: harness.run([openssl, "dgst", "-sha256", file])
    found = harness.interleave(contestants, args.rounds)
    peak = harness.run([KENSHO, "--store", root, "--quiet", "verify", "--full"], is_sampled=True)
    print(f"\nfull check of {data.file.stat().st_size / 1e6:.0f} MB, page cache warm, in {scratch}")
    harness.print_table(found, against="sha256sum")
    reference = harness.wall_s(found["sha256sum"])
    for name in list(contestants)[1:3]:
        harness.print_bar(f"{name} against sha256sum", harness.wall_s(found[name]) / reference, FULL_BAR, "x")
    harness.print_bar("peak RssAnon (process)", peak.rss_anon_bytes / 1e6, MEMORY_BAR_MB, "MB")

    times: dict[str, list[Run]] = {}
    modules: set[str] = set()
    for _ in range(args.rounds):
        output = subprocess.check_output([sys.executable, "-c", QUICK, root], env=harness.ENVIRONMENT)
        once, imported = json.loads(output)
        modules |= set(imported)
        for name, (wall_s, cpu_s) in once.items():
            times.setdefault(name, []).append(Run(wall_s, cpu_s))
    print("\nfrom the records, first call in a new process")
    harness.print_table(times, against=None)
    quick_ms = harness.wall_s(times["quick check (all models)"]) * 1e3
    harness.print_bar("quick check, the function itself", quick_ms, QUICK_BAR_MS, "ms")
    harness.print_bar("forbidden modules imported", len(modules & set(FORBIDDEN)), 0, "of " + ", ".join(FORBIDDEN))
    shutil.rmtree(scratch)


def _assert_right(damaged: object) -> None:
    assert not damaged


if __name__ == "__main__":
    main()
