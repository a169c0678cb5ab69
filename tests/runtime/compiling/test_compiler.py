import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from kensho.base.errors import CompileFailed, ModelError, UnknownArchitecture
from kensho.base.events import CompileStage, Event
from kensho.base.ids import digest_of
from kensho.base.structs import replace
from kensho.runtime.cache.graph_hashing import verify_graph
from kensho.runtime.cache.header import KeyFields, read_header
from kensho.runtime.compiling.compile_job import CompileJob, dump_job, parse_job
from kensho.runtime.compiling.compiler import Compiler
from kensho.runtime.compiling.stages import STAGES
from kensho.runtime.system.machine import read_machine
from kensho.testing.loop import run_virtual

pytestmark = pytest.mark.real

POISON = """
import sys
import kensho.runtime.compiling.stages as stages
def poisoned(*args, progress, **named):
    progress("linking", 1, 4, "layers")
    {what}
stages.compile_model = poisoned
"""


def make_job(model_folder: Path, out_folder: Path) -> CompileJob:
    machine = read_machine()
    key = KeyFields(
        weights_digest=digest_of(b"w"),
        config_digest=digest_of(b"c"),
        tokenizer_digest=digest_of(b"t"),
        engine_version=machine.engine_version,
        arch=machine.arch,
        system=machine.system,
        cpu_features=machine.cpu_features,
        max_positions=256,
    )
    out_folder.mkdir(exist_ok=True)
    return CompileJob("m", "1", str(model_folder), str(out_folder), 256, 1, key)


def poisoned(folder: Path, what: str) -> dict[str, str]:
    """The environment of a compile child whose compiler does `what` in the middle of linking."""
    (folder / "sitecustomize.py").write_text(POISON.format(what=what))
    return {"PYTHONPATH": str(folder)}


def compile_with(job: CompileJob, env: dict[str, str] | None = None, stall_s: float = 60) -> list[Event]:
    events: list[Event] = []
    asyncio.run(Compiler(env=env or {}, stall_s=stall_s, emit=events.append).compile(job))
    return events


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children()]


@pytest.mark.parametrize("has_key", [True, False])
def test_a_job_arrives_as_it_was_given(has_key: bool, tmp_path: Path) -> None:
    job = make_job(tmp_path / "m\udcff", tmp_path)
    job = job if has_key else replace(job, key=None)
    assert parse_job(dump_job(job)) == job


def test_a_graph_is_compiled_and_every_stage_reports_from_nothing_to_all(tiny_model: Path, tmp_path: Path) -> None:
    job = make_job(tiny_model, tmp_path / "out")
    events = compile_with(job)
    stages = [event for event in events if isinstance(event, CompileStage)]
    assert stages == events
    assert tuple(dict.fromkeys(event.stage for event in stages)) == STAGES
    for stage in STAGES:
        seen = [event for event in stages if event.stage == stage]
        assert seen[0].done == 0
        assert seen[-1].done == seen[-1].total > 0
    header = read_header(tmp_path / "out")
    verify_graph(tmp_path / "out", header)
    assert header.key == job.key


def test_the_raw_graph_is_built_without_stages(tiny_model: Path, tmp_path: Path) -> None:
    assert compile_with(replace(make_job(tiny_model, tmp_path / "out"), key=None)) == []
    assert (tmp_path / "out" / "graph.onnx").stat().st_size > 1000


def test_a_model_that_is_none_is_the_same_error_as_in_the_child(model_copy: Path, tmp_path: Path) -> None:
    weights = model_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError) as caught:
        compile_with(make_job(model_copy, tmp_path / "out"))
    assert caught.value.advice
    config = model_copy / "config.json"
    config.write_text(config.read_text().replace("gemma3_text", "gemma9"))
    with pytest.raises(UnknownArchitecture, match="gemma9"):
        compile_with(make_job(model_copy, tmp_path / "out"))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os; os.abort()", "SIGABRT"),
        ("import os; os.write(2, b'last words\\n'); os._exit(7)", "exit code 7 (last words)"),
        ("raise ValueError('of a library')", "ValueError: of a library"),
        ("import os; os.write(int(sys.argv[2]), b'garbage\\n')", "garbled"),
    ],
    ids=["killed", "aborted", "exited", "raised", "garbled"],
)
def test_a_compiler_that_dies_says_in_which_stage_and_how(
    what: str, reason: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(CompileFailed) as caught:
        compile_with(make_job(tiny_model, tmp_path / "out"), poisoned(tmp_path, what))
    assert caught.value.facts["stage"] == "linking"
    assert reason in caught.value.message
    assert children() == []


def test_a_compiler_that_hangs_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    env = poisoned(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(CompileFailed, match=r"no progress for 1\.5 s"):
        compile_with(make_job(tiny_model, tmp_path / "out"), env, stall_s=1.5)
    assert children() == []


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.3])
def test_cancelling_kills_the_compiler_and_leaves_nothing_open(
    after_s: float, tiny_model: Path, tmp_path: Path
) -> None:
    job = make_job(tiny_model, tmp_path / "out")
    env = poisoned(tmp_path, "import time; time.sleep(60)")
    open_before = set(Path("/proc/self/fd").iterdir())

    async def cancel() -> None:
        task = asyncio.create_task(Compiler(env=env, stall_s=60, emit=print).compile(job))
        await asyncio.sleep(after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(cancel())
    assert children() == []
    assert set(Path("/proc/self/fd").iterdir()) <= open_before


def test_a_killed_compiler_is_noticed_at_once(tiny_model: Path, tmp_path: Path) -> None:
    env = poisoned(tmp_path, "import time; time.sleep(60)")
    job = make_job(tiny_model, tmp_path / "out")

    def kill(event: Event) -> None:
        os.kill(children()[0], signal.SIGTERM)

    with pytest.raises(CompileFailed, match="SIGTERM"):
        asyncio.run(Compiler(env=env, stall_s=60, emit=kill).compile(job))


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


async def until(is_so: Callable[[], bool]) -> None:
    """What another process does is no event of the loop."""
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_an_idle_compile_takes_what_nobody_else_wants_and_can_be_held(tiny_model: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        events: list[Event] = []
        compiler = Compiler(env=poisoned(tmp_path, SPIN), stall_s=60, emit=events.append)
        job = replace(make_job(tiny_model, tmp_path / "out"), is_idle=True)
        compiling = asyncio.create_task(compiler.compile(job))
        await until(lambda: bool(events))
        (pid,) = children()
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        assert psutil.Process(pid).ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
        compiler.hold_idle(True)
        compiler.hold_idle(True)
        await until(lambda: is_stopped(pid))  # as soon as it would run again
        before = psutil.Process(pid).cpu_times().user
        await asyncio.sleep(0.1)
        assert psutil.Process(pid).cpu_times().user == before
        compiler.hold_idle(False)
        await compiling
        assert children() == []

    asyncio.run(scene())


def test_a_compile_that_is_held_is_not_taken_for_hung_and_one_that_hangs_is() -> None:
    async def scene() -> None:
        compiler, reader = Compiler(env={}, stall_s=60, emit=print), asyncio.StreamReader()
        compiler.hold_idle(True)
        line = asyncio.create_task(compiler._line(reader, 60))
        await asyncio.sleep(1000)
        compiler.hold_idle(False)
        await asyncio.sleep(59)
        assert not line.done()
        with pytest.raises(TimeoutError):
            await line

    run_virtual(scene())


SPIN = """
    for step in range(30):
        progress("compiling", step, 30, "bytes")
        end = __import__("time").monotonic() + 0.02
        while __import__("time").monotonic() < end: pass
"""


def test_an_idle_compile_that_begins_while_it_is_held_waits(tiny_model: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        compiler = Compiler(env={}, stall_s=60, emit=lambda _: None)
        compiler.hold_idle(True)
        job = replace(make_job(tiny_model, tmp_path / "out"), is_idle=True)
        compiling = asyncio.create_task(compiler.compile(job))
        await until(lambda: bool(children()))
        (pid,) = children()
        await until(lambda: is_stopped(pid))
        other = make_job(tiny_model, tmp_path / "other")
        await compiler.compile(other)  # one that is no guess goes on
        assert not compiling.done()
        compiler.hold_idle(False)
        await compiling
        assert read_header(tmp_path / "out").model == "m"

    asyncio.run(scene())


def test_a_held_compile_is_killed_like_any_other(tiny_model: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        compiler = Compiler(env={}, stall_s=60, emit=lambda _: None)
        compiler.hold_idle(True)
        job = replace(make_job(tiny_model, tmp_path / "out"), is_idle=True)
        compiling = asyncio.create_task(compiler.compile(job))
        await until(lambda: bool(children()))
        compiling.cancel()
        await asyncio.wait([compiling])
        assert children() == []

    asyncio.run(scene())
