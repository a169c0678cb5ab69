"""What damage does to caches of compiled models: Kensho's beside those of bare engines, on a tiny model.

    python bench/runtime_failures.py [--peers PYTHON] [--flips 12]

Each trial begins with a cache that a first run filled, does the damage, and runs a small program (bench/peers/serve.py)
three times: is the answer right, and does the cache work again in the end? Numbers are those of the list of 22 failures
in tests/runtime/cache/test_cache_failures.py, whose other rows (another CPU, device or version of the engine, an older
format, limits of size and memory, clocks, storms, eviction) bare engines have no counterpart for, or cannot be shown
with one version of each on one machine. Damage changes a file's time, as a program that writes does: Kensho hashes an
entry again then. Bits that rot beneath the file system are found by its hash after the next boot, its background
verification, or its self-test, not at once. An answer is the logits of a short prompt, to a thousandth of the largest;
for Kensho, whose engine is another process, eight greedy tokens.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "bench" / "peers"
ENGINES = ("kensho", "onnxruntime, saved", "openvino, cached", "jax, cached")
TIMEOUT_S = 20
RUNS = 3
KILLS = 8
AT_ONCE = 4
TOLERANCE = 1e-3


class Run(NamedTuple):
    """`outcome`: right, wrong, error, a signal's name, or hangs. `is_hit`: the cache had the compiled model."""

    outcome: str
    is_hit: bool = False


class Engine(NamedTuple):
    name: str
    python: Path
    place: Path
    """Where every trial takes place: OpenVINO and JAX have the path in their keys."""
    warm: Path
    """A copy of the place with the model and a filled cache."""
    other: Path
    """The same for another model of the same shape."""
    expected: list[float]
    expected_other: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers" / "bin" / "python")
    parser.add_argument("--flips", type=int, default=12, help="places at which a bit is flipped")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        engines = [engine for each in ENGINES if (engine := prepare(each, args.peers, Path(name) / each.split(",")[0]))]
        rows: Mapping[str, Callable[[Engine], str]] = {
            "1 file cut short": lambda one: tried(one, cut_short),
            "1 a block of zeros": lambda one: tried(one, zero_block),
            "1/10 killed while filling": killed,
            "2 a bit of the weights flipped": lambda one: flipped(one, artefact, args.flips),
            "3 a bit of the header or graph": lambda one: flipped(one, description, args.flips),
            "4 weights replaced, size and time kept": replaced,
            "9 four processes fill it at once": at_once,
            "12 disk full": lambda one: on_a_disk(one, "-o size=64k"),
            "13 disk read-only": lambda one: on_a_disk(one, "-o ro"),
            "16 cut short while in use": lambda one: while_used(one, lambda file: os.truncate(file, 0)),
            "17 removed while in use": lambda one: while_used(one, Path.unlink),
            "19 garbage in its place": lambda one: tried(one, garbage),
            "19 a pipe in its place": lambda one: tried(one, pipe),
            "20 another model's in its place": lambda one: tried(one, lambda folder: swap(folder, one)),
        }
        print(f"load average {os.getloadavg()[0]:.1f}; three runs after each damage\n")
        print(f"{'':40}" + "".join(f"{one.name:36}" for one in engines))
        for row, act in rows.items():
            print(f"{row:40}" + "".join(f"{act(one):36}" for one in engines), flush=True)


# --- models and programs ---


def prepare(name: str, peers: Path, folder: Path) -> Engine | None:
    python = Path(sys.executable) if name.startswith(("kensho", "onnxruntime")) else peers
    folder.mkdir()
    try:
        for seed, part in enumerate(("warm", "other")):
            make_model(name, python, folder / part, seed)
    except (OSError, subprocess.CalledProcessError):
        print(f"absent: {name} (run `make bench-peers`, or give --peers)")
        return None
    return warmed(name, python, folder)


def warmed(name: str, python: Path, folder: Path) -> Engine:
    answers = []
    place = folder / "place"
    for part in ("warm", "other"):
        (folder / part).rename(place)
        run, answer = serve(name, python, place)
        if run.outcome != "right" or serve(name, python, place) != (Run("right", True), answer):
            sys.exit(f"{name} does not work undamaged")
        answers.append(answer)
        place.rename(folder / part)
    engine = Engine(name, python, place, folder / "warm", folder / "other", *answers)
    if serve(name, python, copied(engine)) != (Run("right", True), answers[0]):
        sys.exit(f"{name} does not find its cache again in a copy at the same place")
    return engine


def make_model(name: str, python: Path, folder: Path, seed: int) -> None:
    model = folder / "model"
    (folder / "cache").mkdir(parents=True)
    if name.startswith("jax"):
        code = (
            "import sys, numpy as np; r = np.random.default_rng(int(sys.argv[2])); "
            "layers = {f'w{i}': r.standard_normal((64, 64)).astype('f4') / 10 for i in range(4 + int(sys.argv[2]))}; "
            "import jax; np.savez(sys.argv[1], **layers)"
        )
        model.mkdir()
        subprocess.run([python, "-c", code, model / "weights.npz", str(seed)], check=True, stderr=subprocess.DEVNULL)
        return
    source = model if name == "kensho" else folder / "source"
    make = [sys.executable, ROOT / "bench/data/make_gemma.py", source, "--size", "tiny", "--seed", str(seed)]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    if name != "kensho":
        writer = "write_onnx.py" if name.startswith("onnx") else "write_openvino.py"
        subprocess.run([python, PEERS / writer, source, model], check=True, stderr=subprocess.DEVNULL)


def command(name: str, python: Path, folder: Path) -> list[str]:
    return [str(word) for word in (python, PEERS / "serve.py", name, folder)]


def serve(name: str, python: Path, folder: Path, before: tuple[str, ...] = ()) -> tuple[Run, list[float]]:
    """One run; its answer is not judged yet."""
    process = start([*before, *command(name, python, folder)])
    return finish(process)


def start(words: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]") -> tuple[Run, list[float]]:
    try:
        output, _ = process.communicate("go on\n", timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Run("hangs"), []
    if process.returncode < 0:
        return Run(signal.Signals(-process.returncode).name), []
    if process.returncode:
        return Run("error"), []
    said = json.loads(output.splitlines()[-1])
    return Run("right", said["hit"]), said["answer"]


def judge(found: tuple[Run, list[float]], expected: list[float]) -> Run:
    run, answer = found
    if run.outcome != "right":
        return run
    scale = max(map(abs, expected))
    close = len(answer) == len(expected) and all(
        abs(one - other) <= TOLERANCE * scale for one, other in zip(answer, expected, strict=True)
    )
    return run if close else run._replace(outcome="wrong")


def verdict(runs: list[Run]) -> str:
    """Of the runs after one damage, in words."""
    outcomes = [run.outcome for run in runs]
    bad = next((outcome for outcome in ("wrong", "hangs") if outcome in outcomes), None)
    if bad:
        return "WRONG ANSWER" if bad == "wrong" else "hangs"
    first = next((outcome for outcome in outcomes if outcome != "right"), None)
    if outcomes[-1] != "right":
        return f"{outcomes[-1]} for ever"
    healed = "right" if runs[-1].is_hit else "right, never cached again"
    return f"{first}, then {healed}" if first else healed


def counted(verdicts: list[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in Counter(verdicts).most_common())


# --- damage ---


def copied(engine: Engine) -> Path:
    shutil.rmtree(engine.place, ignore_errors=True)
    return Path(shutil.copytree(engine.warm, engine.place, symlinks=True))


def again(engine: Engine, folder: Path, expected: list[float] | None = None) -> str:
    runs: list[Run] = []
    while len(runs) < RUNS and (not runs or runs[-1].outcome != "hangs"):
        runs.append(judge(serve(engine.name, engine.python, folder), expected or engine.expected))
    return verdict(runs)


def tried(engine: Engine, damage: Callable[[Path], object]) -> str:
    folder = copied(engine)
    damage(folder)
    return again(engine, folder)


def cached_files(folder: Path) -> list[Path]:
    """Of the compiled model, the largest first."""
    files = [file for file in (folder / "cache").rglob("*") if file.is_file() and file.stat().st_size > 1000]
    return sorted(files, key=lambda file: -file.stat().st_size)


def artefact(folder: Path) -> tuple[Path, int]:
    """The file that has the weights, and how many of its bytes."""
    file = cached_files(folder)[0]
    return file, file.stat().st_size


def description(folder: Path) -> tuple[Path, int]:
    """What says how the weights are used: a file of its own, or the beginning of the only one."""
    files = cached_files(folder)
    return files[-1], min(4096, files[-1].stat().st_size)


def cut_short(folder: Path) -> None:
    file, size = artefact(folder)
    os.truncate(file, size // 2)


def zero_block(folder: Path) -> None:
    file, size = artefact(folder)
    with file.open("r+b") as stream:
        stream.seek(size // 2 // 4096 * 4096)
        stream.write(bytes(4096))


def flipped(engine: Engine, place: Callable[[Path], tuple[Path, int]], count: int) -> str:
    found = []
    for number in range(count):
        folder = copied(engine)
        file, size = place(folder)
        data = bytearray(file.read_bytes())
        data[random.Random(number).randrange(size)] ^= 0x40
        file.write_bytes(data)
        found.append(again(engine, folder))
    return counted(found)


def garbage(folder: Path) -> None:
    for file in cached_files(folder):
        file.write_bytes(random.Random(1).randbytes(file.stat().st_size))


def pipe(folder: Path) -> None:
    file = cached_files(folder)[0]
    file.unlink()
    os.mkfifo(file)


def swap(folder: Path, engine: Engine) -> None:
    for own, other in zip(cached_files(folder), cached_files(engine.other), strict=True):
        shutil.copyfile(other, own)


def replaced(engine: Engine) -> str:
    """Another version of the model arrives: its weights have the same size, and the time of the old ones."""
    if engine.name.startswith("jax"):
        return "-"  # weights are no part of what it compiles
    folder = copied(engine)
    for file in (folder / "model").iterdir():
        if file.suffix in (".data", ".bin", ".safetensors") or file.name == "model.onnx":
            old = file.stat()
            shutil.copyfile(engine.other / "model" / file.name, file)
            os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    return again(engine, folder, engine.expected_other)


def empty(engine: Engine) -> Path:
    folder = copied(engine)
    shutil.rmtree(folder / "cache")
    (folder / "cache").mkdir()
    return folder


def killed(engine: Engine) -> str:
    """SIGKILL at moments spread over the run that fills the cache, children included."""
    watch = subprocess.run(
        ["bash", "-c", 'TIMEFORMAT=%R; time "$@" >/dev/null 2>&1', "_",
         *command(engine.name, engine.python, empty(engine))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = []
    for number in range(KILLS):
        folder = empty(engine)
        process = start(command(engine.name, engine.python, folder))
        try:
            process.wait(float(watch.stderr) * (0.3 + 0.7 * number / KILLS))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        found.append(again(engine, folder))
    return counted(found)


def at_once(engine: Engine) -> str:
    folder = empty(engine)
    words = command(engine.name, engine.python, folder)
    runs = [judge(finish(process), engine.expected) for process in [start(words) for _ in range(AT_ONCE)]]
    bad = [run.outcome for run in runs if run.outcome != "right"]
    after = again(engine, folder)
    compiled = sum(not run.is_hit for run in runs if run.outcome == "right")
    return f"{counted(bad)}, then {after}" if bad else f"{after}, compiled {compiled} times"


def on_a_disk(engine: Engine, options: str) -> str:
    """The cache on a disk that takes nothing, in a mount namespace of its own: is there an answer all the same?"""
    if os.geteuid() or not shutil.which("unshare"):
        return "(needs root, unshare)"
    folder = empty(engine)
    mount = f'mount -t tmpfs {options} tmpfs "{folder}/cache" && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", mount, "sh")
    runs = [judge(serve(engine.name, engine.python, folder, before), engine.expected) for _ in range(2)]
    return counted([run.outcome for run in runs])


def while_used(engine: Engine, damage: Callable[[Path], object]) -> str:
    """The program has answered once; the file is damaged; it is asked again. Afterwards three new runs."""
    folder = copied(engine)
    process = start([*command(engine.name, engine.python, folder), "--twice"])
    assert process.stdout
    if process.stdout.readline() != "ready\n":
        sys.exit(f"{engine.name} does not answer")
    damage(artefact(folder)[0])
    run = judge(finish(process), engine.expected)
    after = again(engine, folder)
    return after if run.outcome == "right" else f"{run.outcome}; then {after}"


if __name__ == "__main__":
    main()
