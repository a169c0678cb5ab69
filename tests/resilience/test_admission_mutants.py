"""Seeded mutants of admission: each must be noticed by the walk beside the reference."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from admission_walk import walk

from kensho.resilience.admission import Priority

MUTANTS = {
    "the deadline is not asked for at the start": (
        "            if _is_in_time(ticket, now_s, estimate):",
        "            if True:",
    ),
    "in time means before the deadline": (
        "return now_s + estimate.needed_s(ticket) <= ticket.deadline_s",
        "return now_s <= ticket.deadline_s",
    ),
    "evicts the newest": (
        "oldest = next(iter(self._fresh[lowest].values()))",
        "oldest = next(reversed(self._fresh[lowest].values()))",
    ),
    "evicts its own class": ("if lowest <= newcomer.priority:", "if lowest < newcomer.priority:"),
    "no reserve for CRITICAL": (
        "self._settings.critical_reserve if newcomer.priority is Priority.CRITICAL else 0",
        "0",
    ),
    "one place too many": (
        "        if self._fresh_count < bound:\n            return []",
        "        if self._fresh_count <= bound:\n            return []",
    ),
    "the bound does not follow the service time": (
        "bound = self._settings.bound_for(estimate.service_p95_s, estimate.slots)",
        "bound = self._settings.bound",
    ),
    "the lowest class never has a turn": ("self._starts_since_low >= self._settings.low_turn - 1", "False"),
    "the lowest class has its turn before CRITICAL": ("and not self._waits(Priority.CRITICAL):", "and True:"),
    "the turn comes one too late": (">= self._settings.low_turn - 1", ">= self._settings.low_turn"),
    "never the newest first": ("is_lifo = is_crowd and", "is_lifo = False and"),
    "the newest first without a crowd": ("is_crowd = len(fresh) >", "is_crowd = len(fresh) > 0 or len(fresh) >"),
    "SATURATED sheds HIGH too": (
        "level is Level.SATURATED and priority >= Priority.NORMAL",
        "level is Level.SATURATED and priority >= Priority.HIGH",
    ),
    "SATURATED for ever": ("now_s - rejected_at_s[0] < self._window_s", "True"),
    "a guess refuses": ("            ticket = replace(ticket, work=work.proven())", "            pass"),
    "a guess refuses who was begun": ("self._next_number, work.proven()", "self._next_number, work"),
    "shedding counts as rejection": (
        'return [self._refuse(newcomer, "saturated" if is_shed else "pressured", estimate)]',
        'return [self._reject(newcomer, "saturated" if is_shed else "pressured", now_s, estimate)]',
    ),
    "PRESSURED at once": ("now_s - self._slow_since_s >= self._after_s", "True"),
    "PRESSURED without end": ("self._is_slow = bool(shares) and", "self._is_slow = self._is_slow or bool(shares) and"),
    "a deadline of the client's own choice saturates": (
        "if deadline_s - now_s >= self._settings.deadlines_s[priority]:",
        "if True:",
    ),
    "an engine that is too slow for everybody saturates nothing": (
        "if deadline_s - now_s >= self._settings.deadlines_s[priority]:",
        "if False:",
    ),
    "an empty queue sheds": ("        if not len(self):\n            return False\n", ""),
    "a begun request can be evicted": (
        "line = self._urgent if is_urgent else self._resumed",
        "line = self._urgent if is_urgent else self._fresh",
    ),
    "a begun request goes last": (
        "for line in (urgent, resumed, reversed(fresh) if is_lifo else fresh):",
        "for line in (urgent, reversed(fresh) if is_lifo else fresh, resumed):",
    ),
    "a slow reader is as urgent as one who lost its engine": (
        "line = self._urgent if is_urgent else self._resumed",
        "line = self._urgent",
    ),
    "interrupts for one who would not go next": (
        "if not self._resumed[Priority.HIGH] and not self._fresh[Priority.HIGH]:",
        "if True:",
    ),
    "a cancelled ghost stays counted": (
        "        self._fresh_count -= line is self._fresh[ticket.priority]\n",
        "",
    ),
    "a request goes back to the engine that lost it": ("not (has_others and self.avoids == engine)", "True"),
    "a slow engine gets what it cannot do": (
        "if is_late_anywhere or now_s + estimate.needed_s(ticket, engine) <= ticket.deadline_s:",
        "if True:",
    ),
    "whoever is too much for a slow engine is in the way of the others": (
        "is_late_anywhere or now_s",
        "ticket is not None or now_s",
    ),
    "a slow engine looks at one of each class": ("LOOKED_AT = 8", "LOOKED_AT = 1"),
    "an idle engine does not help": (
        "refused = [] if self._may_begin(ticket, now_s, estimate) else self",
        "refused = self",
    ),
    "an idle engine takes what it cannot do": (
        "and now_s + estimate.needed_s(newcomer, engine) <= newcomer.deadline_s",
        "and True",
    ),
    "an idle engine takes who may not use it": ("newcomer.engine in {None, engine} and", ""),
    "nobody is stranded": ("if not self._named_count:", "if True:"),
}


def mutant(old: str, new: str) -> Any:
    """The queue of the product with one piece of its source exchanged."""
    sources = {name: Path(str(sys.modules[f"{_PACKAGE}.{name}"].__file__)).read_text() for name in _MUTATED}
    places = sum(source.count(old) for source in sources.values())
    assert places == 1, f"{old!r} is there {places} times"
    modules = {name: types.ModuleType(f"mutant_of_{name}") for name in _MUTATED}
    sys.modules |= {module.__name__: module for module in modules.values()}
    try:
        for name, source in sources.items():
            changed = source.replace(old, new)
            for other in _MUTATED:
                changed = changed.replace(f"from {_PACKAGE}.{other} import", f"from mutant_of_{other} import")
            exec(compile(changed, modules[name].__name__, "exec"), modules[name].__dict__)
    finally:
        for module in modules.values():
            del sys.modules[module.__name__]
    modules["admission"].__dict__["Priority"] = Priority
    return modules["admission"].__dict__["AdmissionQueue"]


_PACKAGE = "kensho.resilience"
_MUTATED = ("pressure", "admission")  # in the order in which they import each other


@pytest.mark.real
@pytest.mark.parametrize(("old", "new"), MUTANTS.values(), ids=MUTANTS)
def test_the_walk_catches_the_mutant(old: str, new: str) -> None:
    changed = mutant(old, new)
    with pytest.raises((AssertionError, KeyError, TypeError, StopIteration)):
        walk(changed, steps=40_000, seed=3)
