"""What every benchmark here shares: data, a real web server, processes measured by the kernel, rounds side by side.

Machines are shared and noisy, so contestants take turns within each round, who is first changes too, and a bar is a
*ratio* of medians of the same run. Memory is sampled in runs of its own, so that the sampling slows nobody down.

    python bench/download.py [--rounds 7] [--mb 300] [--work FOLDER] [--scratch FOLDER]
"""

import argparse
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
KENSHO = Path(sys.executable).with_name("kensho")
SAMPLE_S = 0.002
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
"""Compiled modules are kept, as in any installation."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a contestant. `rss_anon_bytes` is 0 where it was not sampled."""

    wall_s: float
    cpu_s: float
    rss_anon_bytes: int = 0


def arguments(doc: str, *, rounds: int = 7) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--mb", type=int, default=300)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="models and repository, kept")
    parser.add_argument("--scratch", type=Path, help="stores and downloads (default: in --work); try a tmpfs")
    args = parser.parse_args()
    args.work = (args.work / str(args.mb)).absolute()
    args.scratch = (args.scratch or args.work / "scratch").absolute()
    args.scratch.mkdir(parents=True, exist_ok=True)
    return args


def fresh(folder: Path) -> Path:
    """An empty folder of that name; writes that are still under way elsewhere end first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    return folder


# --- data ---


@dataclass(frozen=True, slots=True)
class Data:
    """`served` holds what a web server gives: model.safetensors for the peers, repo/ for Kensho."""

    served: Path
    file: Path
    sha256: str
    root: Path


def prepare(work: Path, mb: int) -> Data:
    """The model of bench/data/make_pair.py, published once with real keys. Kept between runs."""
    served, model = work / "served", work / "model"
    file, root = served / "model.safetensors", served / "repo" / "metadata" / "1.root.json"
    if not (work / "ready").exists():
        shutil.rmtree(work, ignore_errors=True)
        for folder in (served, model):
            folder.mkdir(parents=True)
        run([sys.executable, ROOT / "bench" / "data" / "make_pair.py", work / "pair", "--mb", mb])
        (work / "pair" / "release.safetensors").rename(file)
        shutil.rmtree(work / "pair")
        os.link(file, model / "model.safetensors")
        (model / "config.json").write_text('{"model_type": "gemma3_text"}')
        run([KENSHO, "keygen", work / "keys"])
        publish = ["--model", "bench", "--version", "1.0", "--to", served / "repo", "--keys", work / "keys", model]
        run([KENSHO, "publish", *publish])
        (work / "ready").touch()
    return Data(served, file, sha256_of(file), root)


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def init_store(store: Path, url: str, data: Data) -> None:
    run([KENSHO, "--store", store, "init", "--from", f"{url}/repo", "--root", data.root])


# --- processes ---


def run(
    command: Sequence[object], *, cwd: Path | None = None, is_sampled: bool = False, ok: Sequence[int] = (0,)
) -> Run:
    """Runs a program to its end. Its output is shown only if it fails, which ends the benchmark."""
    words = [str(word) for word in command]
    start_s = time.perf_counter()
    child = subprocess.Popen(
        words, cwd=cwd, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    peak = _watch(child.pid) if is_sampled else None
    assert child.stdout
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - start_s
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in ok:
        sys.exit(f"{' '.join(words)} ended with {child.returncode}:\n{output.decode(errors='replace')[-2000:]}")
    return Run(wall_s, usage.ru_utime + usage.ru_stime, peak() if peak else 0)


def in_process(act: Callable[[], object], *, is_sampled: bool = False) -> Run:
    """The same for a call in this process."""
    peak = _watch(os.getpid()) if is_sampled else None
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    act()
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    return Run(wall_s, cpu_s, peak() if peak else 0)


def _watch(pid: int) -> Callable[[], int]:
    """Samples RssAnon until the returned function is called, which gives the peak in bytes."""
    peak, is_over = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not is_over.wait(SAMPLE_S):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                return
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            peak = max(peak, int(found[1]) * 1024 if found else 0)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()

    def end() -> int:
        is_over.set()
        sampler.join()
        return peak

    return end


@contextmanager
def nginx(folder: Path) -> Iterator[str]:
    """A real web server for the folder on a free port of loopback; yields its address."""
    program = needed("nginx", "nginx-light")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = folder.parent / "nginx"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    paths = " ".join(f"{name}_temp_path {home};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (home / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log;\n"
        f"events {{}}\nhttp {{ {paths} access_log off; sendfile on; keepalive_timeout 60; keepalive_requests 100000;\n"
        f"max_ranges 100000; server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    server = subprocess.Popen([program, "-p", home, "-c", home / "nginx.conf"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None:
                sys.exit(f"nginx does not start: {(home / 'error.log').read_text()}")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def needed(program: str, package: str) -> str:
    found = shutil.which(program)
    if not found:
        sys.exit(f"{program} is absent: install the Debian package {package}")
    return found


# --- rounds and tables ---


def interleave(contestants: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Every contestant once a round, after one round that does not count; who is first changes."""
    names = list(contestants)
    found: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            result = contestants[name]()
            if number:
                found[name].append(result)
    return found


def wall_s(runs: Sequence[Run]) -> float:
    return median(run.wall_s for run in runs)


def print_machine(*packages: str, programs: Mapping[str, str] | None = None) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(f"machine: {model[1] if model else '?'}, {os.cpu_count()} cores, Linux {platform.release()}, load {load}")
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
    for name, option in (programs or {}).items():
        path = shutil.which(name)
        text = subprocess.run([path, option], capture_output=True, text=True, check=False) if path else None
        found = re.search(r"\d+(\.\d+)+", text.stdout + text.stderr) if text else None
        versions[name] = found[0] if found else "absent"
    print("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))


def print_table(found: Mapping[str, Sequence[Run]], *, against: str | None) -> None:
    """Median, range, CPU, and the time of `against` divided by each (above 1: faster than it)."""
    width = max(len(name) for name in found)
    print(f"{'':<{width}}   n   median     min -   max s   cpu s   {'x faster than ' + against if against else ''}")
    for name, runs in found.items():
        walls = [run.wall_s for run in runs]
        span = f"{min(walls):6.4f} - {max(walls):6.4f}"
        ratio = f"{wall_s(found[against]) / wall_s(runs):8.2f}" if against else ""
        cpu_s = median(run.cpu_s for run in runs)
        print(f"{name:<{width}}  {len(runs):2}  {wall_s(runs):7.4f}  {span}  {cpu_s:6.4f}  {ratio}")


def print_bar(what: str, value: float, limit: float, unit: str, *, at_least: bool = False) -> bool:
    """PASS or MISS of one bar; returns whether it is met."""
    is_met = value >= limit if at_least else value <= limit
    sign = ">=" if at_least else "<="
    print(f"{'PASS' if is_met else 'MISS'}  {what}: {value:.4g} {unit} (bar: {sign} {limit:g} {unit})")
    return is_met
