"""Which role signs a target: the walk through delegated targets roles, in pre-order, as the TUF specification has it.

Source: TUF specification, 5.6.7. Pure: `load` brings a role that is verified against the delegator that this walk came
from; another walk may come from another one, with other keys, and must have it verified again. A role is visited once,
so a circle ends; at most 32 delegated roles are visited; a terminating delegation ends the search behind it.
"""

from collections.abc import Callable
from typing import Final, NoReturn

from tuf.api.metadata import Delegations, TargetFile, Targets

from kensho.base.errors import TrustError

MAX_DELEGATIONS: Final = 32
"""Visited in one walk. python-tuf's limit (ngclient/config.py)."""
MAX_PATTERNS: Final = 4096
"""In one role. The worst that the next two limits allow cost 0.2 ms each (measured), so that a hostile walk of 32 roles
ends after half a minute; 4096 honest ones cost 0.1 s."""
MAX_PATTERN_CHARS: Final = 1024
MAX_WILDCARDS: Final = 32

Load = Callable[[str, str], Targets]
"""(role, name of its delegator) -> the role, verified against that delegator."""


def find_target(path: str, top: Targets, load: Load) -> TargetFile | None:
    """The target of that path in the most trusted role that has it; None if no role that may sign it does."""
    role, targets = Targets.type, top
    visited: set[str] = set()
    pending: list[tuple[str, str]] = []
    while True:
        if (found := targets.targets.get(path)) is not None:
            return found
        visited.add(role)
        delegated, is_final = _delegated(targets, path)
        if is_final:
            pending.clear()
        pending += [(name, role) for name in reversed(delegated)]
        while pending and pending[-1][0] in visited:
            pending.pop()
        if not pending or len(visited) > MAX_DELEGATIONS:
            return None
        role, delegator = pending.pop()
        targets = load(role, delegator)


def _delegated(targets: Targets, path: str) -> tuple[list[str], bool]:
    """The roles that may sign the path, in order; whether the last one ends the search."""
    if targets.delegations is None:
        return [], False
    _check_shape(targets.delegations)
    found = []
    for name, is_terminating in targets.delegations.get_roles_for_target(path):
        found.append(name)
        if is_terminating:
            return found, True
    return found, False


def _check_shape(delegations: Delegations) -> None:
    """What python-tuf leaves to the reader: a name that is none, a string in place of a list, patterns without end."""
    roles = list((delegations.roles or {}).values())
    names = [role.name for role in roles]
    if delegations.succinct_roles is not None:
        names.append(delegations.succinct_roles.name_prefix)
    lists = [found for role in roles for found in (role.paths, role.path_hash_prefixes) if found is not None]
    if not all(isinstance(name, str) for name in names) or not all(isinstance(found, list) for found in lists):
        _refuse("the targets metadata has a malformed delegation")
    patterns = [pattern for role in roles for pattern in role.paths or ()]
    if len(patterns) > MAX_PATTERNS or any(
        len(pattern) > MAX_PATTERN_CHARS or sum(map(pattern.count, "*?[")) > MAX_WILDCARDS for pattern in patterns
    ):
        _refuse("the targets metadata delegates by too many or too long patterns")


def _refuse(message: str) -> NoReturn:
    advice = "what is installed keeps working; tell the publisher"
    raise TrustError(message, advice=advice, role=Targets.type, reason="malformed")
