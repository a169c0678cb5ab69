import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kensho.runtime.hosts.early_death import early_signal

pytestmark = pytest.mark.real

HEAVY = """
import os, sys, time
from kensho.runtime.hosts import early_death
if "refused" in sys.argv:
    early_death._CLOSE_RANGE = 9999
early_death.stand_watch(map(int, sys.argv[2:4]))
memory = bytearray(200 << 20)
memory[::4096] = b"x" * (len(memory) // 4096)
os.write(int(sys.argv[1]), b"up")
time.sleep(60)
"""


def start(*words: str) -> tuple["subprocess.Popen[bytes]", int, list[int]]:
    """A process with 200 MB of its own; read ends of what ends with its main thread, and of its watch."""
    pipes = [os.pipe() for _ in range(3)]
    ends = [write for _, write in pipes]
    child = subprocess.Popen([sys.executable, "-c", HEAVY, *map(str, ends), *words], pass_fds=ends)
    for end in ends:
        os.close(end)
    (main, _), *life = pipes
    assert os.read(main, 2) == b"up"
    return child, main, [read for read, _ in life]


def end(child: "subprocess.Popen[bytes]", main: int, life: list[int]) -> None:
    child.kill()
    child.wait()
    for descriptor in (main, *life):
        os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_death_is_known_with_its_signal_before_the_memory_is_freed(number: signal.Signals) -> None:
    was_early = 0
    for _ in range(4):
        child, main, life = start()
        assert early_signal(child.pid) is None
        watch = select.poll()
        for pipe in life:
            watch.register(pipe, select.POLLIN)
        os.kill(child.pid, number)
        assert watch.poll(10_000)
        has_ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert early_signal(child.pid) == number
        was_early += has_ended is None
        end(child, main, life)
    assert was_early >= 2


def test_the_watch_holds_nothing_but_its_pipes() -> None:
    child, main, life = start()
    tables = {}
    for task in Path(f"/proc/{child.pid}/task").iterdir():
        tables[task.name] = sorted(str(path.readlink()) for path in (task / "fd").iterdir())
    table = tables.pop(str(child.pid))
    assert len(tables) == 2
    assert all(len(other) == 1 for other in tables.values())
    assert not {name for other in tables.values() for name in other} & set(table)
    end(child, main, life)


def test_where_the_kernel_refuses_the_pipes_close_with_the_process() -> None:
    child, main, life = start("refused")
    assert select.select(life, [], [], 0.05)[0] == []
    child.kill()
    assert sorted(select.select(life, [], [], 10)[0])
    end(child, main, life)


def test_what_is_worth_waiting_for_is_not_told_early() -> None:
    for number in (signal.SIGABRT, signal.SIGTERM):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        os.kill(child.pid, number)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert early_signal(child.pid) is None
        child.wait()
    assert early_signal(child.pid) is None  # there is no such process
    assert early_signal(os.getpid()) is None
