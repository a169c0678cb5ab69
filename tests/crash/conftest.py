"""`--full-sweep` (make crash-test): every system call instead of a sample, and a table of how many were reached."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kensho.testing.rehearsal import OPERATIONS
from kensho.testing.stage import Stage, copy_tree
from kensho.testing.system_calls import SystemCalls


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-sweep", action="store_true", help="kill and fail at every system call (minutes)")


def is_full(config: pytest.Config) -> bool:
    return bool(config.getoption("--full-sweep", default=False))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not is_full(config):
        gone = [item for item in items if item.get_closest_marker("full_sweep")]
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=gone)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full_sweep: every system call; only with --full-sweep")


REACHED = pytest.StashKey[dict[tuple[str, str], dict[str, int]]]()
"""(operation, fault) -> system call -> how many of its calls were reached and passed."""


@dataclass
class Ground:
    """A stage, the state before each operation, and a server that forks the processes that die."""

    folder: Path
    calls: SystemCalls
    stage: Stage
    reached: dict[tuple[str, str], dict[str, int]]
    is_full: bool
    _number: int = 0
    _prepared: set[str] = field(default_factory=set)
    _counts: dict[str, Mapping[str, int]] = field(default_factory=dict)

    def fresh(self, operation: str) -> Path:
        """A new copy of the state before the operation: a folder in which `root` is the store, or the repository."""
        before = self.folder / operation
        if operation not in self._prepared:
            before.mkdir()
            OPERATIONS[operation].prepare(self.stage, before / "root")
            self._prepared.add(operation)
        self._number += 1
        copy = self.folder / f"{operation}-{self._number}"
        copy_tree(before, copy)
        return copy

    def counts(self, operation: str) -> Mapping[str, int]:
        """System call -> how often an undisturbed run makes it."""
        if operation not in self._counts:
            copy = self.fresh(operation)
            self._counts[operation] = self.calls.count(self.arguments(operation, copy))
            shutil.rmtree(copy)
        return self._counts[operation]

    def arguments(self, operation: str, copy: Path) -> tuple[str, str, str]:
        return (str(self.stage.scratch), operation, str(copy / "root"))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Ground]:
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared)) if shared.is_dir() else tmp_path_factory.mktemp("crash")
    with SystemCalls("kensho.testing.rehearsal:act_in_process") as calls:
        reached = pytestconfig.stash.setdefault(REACHED, {})
        yield Ground(folder, calls, Stage(folder / "stage"), reached, is_full(pytestconfig))
    shutil.rmtree(folder, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reached = terminalreporter.config.stash.get(REACHED, {})
    if not reached or not is_full(terminalreporter.config):
        return
    terminalreporter.section("system calls reached, each followed by a check and by doing it again")
    total = 0
    for (operation, fault), found in sorted(reached.items()):
        row = "  ".join(f"{call} {count}" for call, count in sorted(found.items()))
        terminalreporter.write_line(f"{operation:9} {fault:11} {sum(found.values()):5}: {row}")
        total += sum(found.values())
    terminalreporter.write_line(f"{total} cases")
