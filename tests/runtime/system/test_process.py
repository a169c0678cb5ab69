import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kensho.base.errors import EngineError
from kensho.runtime.system import process
from kensho.runtime.system.process import Ended, spawn

pytestmark = pytest.mark.real

ARM = (
    "import os, sys, time\n"
    "from kensho.runtime.system.parent_death import die_with_parent\n"
    "die_with_parent(int(sys.argv[1]))\n"
)


def module(folder: Path, text: str) -> dict[str, str]:
    """A module `child` made of `text`, and the environment in which it is found."""
    (folder / "child.py").write_text(text)
    return {"PYTHONPATH": str(folder)}


def exists(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_child_is_reaped_and_says_its_signal(tmp_path: Path) -> None:
    child = spawn("child", pass_fds=(), env=module(tmp_path, ARM + "time.sleep(60)"))
    assert child.ended() is None
    child.kill()
    ended = child.reap(5)
    assert (ended.exit_code, ended.reason, ended.pid) == (-signal.SIGKILL, "SIGKILL", child.pid)
    child.kill()
    assert not Path(f"/proc/{child.pid}").exists()


def test_what_a_child_says_last_is_kept_and_bounded(tmp_path: Path) -> None:
    text = "import sys\nsys.stderr.write('x' * 10**6 + '\\nthe last line\\n')\nsys.exit(3)"
    ended = spawn("child", pass_fds=(), env=module(tmp_path, text)).reap(10)
    assert (ended.reason, ended.last_words) == ("exit code 3", "the last line")
    assert len(ended.stderr) <= process.STDERR_TAIL_BYTES


def test_a_child_gets_only_what_it_is_given(tmp_path: Path) -> None:
    kept, given = os.pipe()
    os.set_inheritable(kept, True)
    text = (
        "import os, sys\nfds = {int(n) for n in os.listdir('/proc/self/fd')}\n"
        "secrets = sorted(set(os.environ) - {'PYTHONPATH', 'OPENBLAS_NUM_THREADS', 'GLIBC_TUNABLES', 'LC_CTYPE'})\n"
        "os.write(int(sys.argv[2]), repr((secrets, int(sys.argv[3]) in fds, sys.path[0])).encode())"
    )
    child = spawn("child", (str(given), str(kept)), pass_fds=(given,), env=module(tmp_path, text))
    assert child.reap(10).exit_code == 0
    assert os.read(kept, 999).decode() == repr(([], False, str(tmp_path)))
    os.close(kept)
    os.close(given)


def test_a_child_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    # The kernel ends a child with the thread that made it: asyncio's worker threads come and go.
    env = module(tmp_path, ARM + "os.write(int(sys.argv[2]), b'up')\ntime.sleep(60)")
    read_end, write_end = os.pipe()
    made = []
    asking = threading.Thread(
        target=lambda: made.append(spawn("child", (str(write_end),), pass_fds=(write_end,), env=env))
    )
    asking.start()
    asking.join()
    assert os.read(read_end, 2) == b"up"
    assert made[0].reap(0.2).exit_code is None
    made[0].kill()
    assert made[0].reap(5).reason == "SIGKILL"
    os.close(read_end)
    os.close(write_end)


def test_a_child_that_hangs_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    env = module(tmp_path, ARM + "os.write(2, b'up')\ntime.sleep(60)")
    parent_text = (
        "import sys, time\nfrom kensho.runtime.system.process import spawn\n"
        f"child = spawn('child', pass_fds=(), env={env!r})\n"
        "while not child._tail: time.sleep(0.01)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_text], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert exists(pid)
    parent.kill()
    parent.communicate(timeout=5)
    deadline = 200
    while exists(pid) and (deadline := deadline - 1):
        threading.Event().wait(0.01)
    assert not exists(pid)


def test_a_child_whose_parent_is_gone_already_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(ARM + "time.sleep(60)")
    env = {"PYTHONPATH": str(tmp_path)}
    orphan = subprocess.Popen([sys.executable, "-m", "child", "999999"], env=env)
    assert orphan.wait(10) == -signal.SIGKILL


def test_a_program_that_cannot_be_started_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    open_before = set(Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EngineError, match="cannot start child"):
        spawn("child", pass_fds=(), env={})
    assert set(Path("/proc/self/fd").iterdir()) == open_before


def test_starting_works_after_a_fork(tmp_path: Path) -> None:
    # multiprocessing users fork: the thread that starts children is not there any more.
    env = module(tmp_path, "")
    assert spawn("child", pass_fds=(), env=env).reap(10).exit_code == 0
    forked = os.fork()
    if forked == 0:
        os._exit(0 if spawn("child", pass_fds=(), env=env).reap(10).exit_code == 0 else 1)
    assert os.waitpid(forked, 0)[1] == 0


def test_an_unkillable_process_is_named_and_left() -> None:
    assert Ended(7, None, "").reason == "does not react to SIGKILL"


def test_the_end_of_a_child_is_an_event_of_the_loop(tmp_path: Path) -> None:
    async def wait() -> tuple[Ended | None, Ended | None]:
        child = spawn("child", pass_fds=(), env=module(tmp_path, "import time\ntime.sleep(60)"))
        early = await child.ended_within(0.05)
        asyncio.get_running_loop().call_soon(child.kill)
        return early, await child.ended_within(10)

    early, ended = asyncio.run(wait())
    assert early is None
    assert ended
    assert ended.reason == "SIGKILL"


def test_a_program_that_reaps_every_child_hides_only_how_it_ended(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    try:
        child = spawn("child", pass_fds=(), env=module(tmp_path, "raise SystemExit(3)"))
        assert child.reap(10).exit_code == 0
        child.kill()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_descriptors_of_ended_children_are_closed(tmp_path: Path) -> None:
    env = module(tmp_path, "")
    spawn("child", pass_fds=(), env=env).reap(10)
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        child = spawn("child", pass_fds=(), env=env)
        assert child.reap(10).exit_code == 0
        assert child.ended() == child.reap(1)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
