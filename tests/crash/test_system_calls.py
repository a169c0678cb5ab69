"""Killed, or refused by the kernel, at the N-th system call of each kind: the old version or the new one, complete.

Every system call that changes anything counts, SQLite's included. After each case: what an engine would read, `verify
--full`, the same operation once more with no cleaning up, and both checks again (`kensho.testing.rehearsal`).
"""

import random
import shutil
from typing import Any

import pytest

from kensho.testing.rehearsal import OPERATIONS
from kensho.testing.stage import Look
from kensho.testing.system_calls import CHANGING, Injection

pytestmark = [pytest.mark.real, pytest.mark.needs("strace")]

FAULTS = ("KILL", "EIO", "ENOSPC", "ENOSPC+")
FAILING = {"KILL": {*CHANGING, "openat"}, "EIO": set(CHANGING)}
"""What is not here would hit the rehearsal too: it opens files of its own, and imports."""
NO_SPACE = set(CHANGING) - {"unlink", "unlinkat", "rmdir", "fchmod", "chmod", "fchown"}
SAMPLE = 25


def _cases(ground: Any, operation: str, fault: str) -> list[Injection]:
    counts = ground.counts(operation)
    word: Any = fault.rstrip("+")
    return [
        Injection(call, word, when, is_lasting=fault.endswith("+"))
        for call, count in sorted(counts.items())
        if call in FAILING.get(word, NO_SPACE)
        for when in range(1, count + 1)
    ]


def _run(ground: Any, operation: str, fault: str, injection: Injection) -> Look:
    case = f"{operation}, {injection.option}"
    copy = ground.fresh(operation)
    ended = ground.calls.run(ground.arguments(operation, copy), injection)
    assert ended.is_injected, f"{case}: was never reached; that proves nothing"
    if fault == "KILL":
        assert ended.is_killed, f"{case}: still alive"
    else:
        assert ended.exit_code in (0, 3), f"{case}: ended with {ended.exit_code} instead of an error of ours"
    try:
        look = OPERATIONS[operation].look(ground.stage, copy / "root")
    except Exception as error:
        raise AssertionError(f"{case}: {error}") from error
    assert look.is_new or ended.exit_code != 0, f"{case}: said that it was done, and it was not"
    shutil.rmtree(copy)
    reached = ground.reached.setdefault((operation, fault), {})
    reached[injection.call] = reached.get(injection.call, 0) + 1
    return look


@pytest.mark.full_sweep
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_old_or_new_after_a_fault_at_every_system_call(ground: Any, operation: str, fault: str) -> None:
    cases = _cases(ground, operation, fault)
    assert len(cases) > 20
    looks = [_run(ground, operation, fault, case).is_new for case in cases]
    assert not all(looks), "the fault came too late to matter"


def test_old_or_new_after_a_fault_at_some_system_calls(ground: Any) -> None:
    """The same few of all of them at every run; `make crash-test` does all."""
    pool = [(op, fault, case) for op in OPERATIONS for fault in FAULTS for case in _cases(ground, op, fault)]
    assert len(pool) > 1500
    chosen = random.Random(2027).sample([entry for entry in pool if entry[2].call != "openat"], SAMPLE)
    for operation, fault, case in chosen:
        _run(ground, operation, fault, case)


def test_what_was_fetched_before_a_kill_is_not_fetched_again(ground: Any) -> None:
    """The later the kill, the less travels; after the last write of a chunk nothing does but metadata."""
    writes = [case for case in _cases(ground, "install", "KILL") if case.call == "pwrite64"]
    fetched = [_run(ground, "install", "KILL", case).bytes_fetched for case in writes]
    assert fetched == sorted(fetched, reverse=True)
    assert len(set(fetched)) > 6, "each chunk counts by itself"
    assert fetched[0] > 120_000
    assert fetched[-1] < 1000


def test_a_number_that_is_never_reached_kills_nobody(ground: Any) -> None:
    copy = ground.fresh("rollback")
    ended = ground.calls.run(ground.arguments("rollback", copy), Injection("pwrite64", "KILL", 10_000))
    assert (ended.exit_code, ended.is_killed, ended.is_injected) == (0, False, False)
