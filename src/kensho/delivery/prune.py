"""Remove old releases from a repository, in two steps, so that no client in the middle of a pull misses a file.

1. The signed metadata stops naming the releases that are to go: new clients do not see them any more.
2. What nothing names is only marked, with the moment a day after the timestamp expires that had led to it: until then
   somebody may use that (a client in the middle of a pull, a mirror, a cache). A later run removes it.

Kept are the newest `keep` releases of each model, and older ones down to the newest that is rolled out to every
machine: those that are not in a roll-out yet need it. Also gone after their time: old snapshot and targets metadata,
and what killed publishers left behind. Root metadata stays: a machine that was off for years needs the whole chain.

Killed at any moment, the repository is complete, and the next run goes on. The marks are in REPO/.pruned.json; they are
never believed about what is needed, which is found anew, under the publisher's lock, whenever something is removed.
"""

import re
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

from kensho.base.errors import ConfigError, TrustError
from kensho.base.structs import Struct
from kensho.delivery.disk import Disk, RealDisk
from kensho.delivery.durable import read_document, write_document
from kensho.delivery.layout import TIMESTAMP, chunk_list_target, pack_path
from kensho.delivery.manifest import Manifest, parse_chunk_list, parse_manifest
from kensho.delivery.releases import ReleaseRef
from kensho.delivery.repository import Repository, repository_errors, repository_lock
from kensho.delivery.signing import validity_of
from kensho.delivery.strict_json import Fields, dump, parse, refuse

MARKS = ".pruned.json"
MAX_MARKS_BYTES = 64 << 20
"""Of some 400 000 files; more marks than that are forgotten, which only delays the removal."""
PULL_TIME = timedelta(days=1)
"""For a pull that began when the timestamp expired. A guess: 100 GB at 10 Mbit/s."""
_OURS = re.compile(
    r"metadata/[1-9][0-9]{0,18}\.(snapshot|targets)\.json|packs/[0-9a-f]{64}\.pack|targets/.*/[0-9a-f]{64}\.[^/]+"
)


class PruneReport(Struct):
    releases: tuple[ReleaseRef, ...]
    """That are named no more since this run; without keys, that nobody can fetch once their time is over."""
    bytes_freed: int
    bytes_waiting: int
    """Marked, to be removed by a run at `waiting_until` or later."""
    waiting_until: datetime | None


def prune(
    repo: Path,
    keys: Path | None,
    *,
    keep: int,
    now: datetime,
    grace_days: float | None = None,
    expires_days: int | None = None,
    disk: Disk | None = None,
) -> PruneReport:
    """Keep the newest `keep` (1 or more) releases of each model. Blocks; reads every chunk list of a kept release.

    `grace_days` from now instead: 0 removes at once, which breaks pulls under way. Without `keys`
    nothing can be signed: the old releases stay named, but their packs go. Raises as `publish`.
    """
    disk = disk or RealDisk()
    if keep < 1:
        raise ConfigError(f"{keep} releases cannot be kept", advice="keep 1 or more")
    if grace_days is not None and not 0 <= grace_days <= 3650:
        raise ConfigError(f"a grace of {grace_days} days is not possible", advice="choose 0 to 3650 days")
    if not (repo / TIMESTAMP).exists():
        raise ConfigError(f"{repo} is not a repository", advice="publish into it with `kensho publish`")
    with repository_lock(disk, repo):
        repository = Repository.open(repo, keys, disk)
        expires = repository.expires or now
        manifests = {ref: parse_manifest(repository.read_target(ref.target)) for ref in repository.releases()}
        kept = {ref: manifests[ref] for ref in choose_kept(manifests, keep)}
        gone = tuple(ref for ref in manifests if ref not in kept)
        packs, documents = _needs(repository, kept)
        used: set[str] = set()
        if gone and keys is not None:
            used = repository.named_files() | _needs(repository, manifests)[0]
            repository.keep_targets(documents)
            repository.commit(now, validity_of(expires_days))
        needed = repository.named_files() | packs
        with repository_errors(repo):
            unneeded = {path: size for path, size in _files(disk, repo) if path not in needed}
            marked = _read_marks(disk, repo)
            # An old mark of what was in use until now says nothing: it was wanted again in between.
            default = int((max(expires, now) + PULL_TIME).timestamp())
            marks = {path: default if path in used else marked.get(path, default) for path in unneeded}
            if grace_days is not None:
                at_most = int((now + timedelta(days=grace_days)).timestamp())
                marks = {path: min(due, at_most) for path, due in marks.items()}
            waiting = {path: due for path, due in marks.items() if due > now.timestamp()}
            if waiting != marked:
                write_document(disk, repo / MARKS, dump({"format": 1, "waiting": waiting}))
            for path in marks.keys() - waiting.keys():
                disk.unlink(repo / path)
                _remove_empty_folders(disk, repo, (repo / path).parent)
    return PruneReport(
        releases=gone,
        bytes_freed=sum(size for path, size in unneeded.items() if path not in waiting),
        bytes_waiting=sum(unneeded[path] for path in waiting),
        waiting_until=datetime.fromtimestamp(max(waiting.values()), UTC) if waiting else None,
    )


def choose_kept(manifests: Mapping[ReleaseRef, Manifest], keep: int) -> set[ReleaseRef]:
    """The newest `keep` of each model, and down to the newest that every machine gets. Pure."""
    kept: set[ReleaseRef] = set()
    for _, group in groupby(sorted(manifests, key=lambda ref: (ref.model, -ref.release)), key=lambda ref: ref.model):
        is_for_all = False
        for number, ref in enumerate(group):
            if number >= keep and is_for_all:
                break
            kept.add(ref)
            is_for_all |= manifests[ref].rollout_percent == 100
    return kept


def _needs(repository: Repository, kept: Mapping[ReleaseRef, Manifest]) -> tuple[set[str], set[str]]:
    """Paths of the packs that the kept releases need, and names of their documents."""
    packs: set[str] = set()
    documents: set[str] = set()
    for ref, manifest in kept.items():
        documents.add(ref.target)
        for file in manifest.files:
            target = chunk_list_target(ref.model, file.chunk_list)
            if target not in documents:
                documents.add(target)
                chunks = parse_chunk_list(repository.read_target(target), file).chunks
                packs |= {pack_path(pack) for pack in {chunk.pack for chunk in chunks}}
    return packs, documents


def _remove_empty_folders(disk: Disk, repo: Path, folder: Path) -> None:
    while folder.parent not in (repo, folder) and not disk.list_folder(folder):
        disk.remove_folder(folder)
        folder = folder.parent


def _files(disk: Disk, repo: Path) -> Iterator[tuple[str, int]]:
    """Path and bytes of the files that are named as a publisher names them. Never follows a link."""
    pending = [folder for folder in ("metadata", "packs", "targets") if disk.lstat(repo / folder)]
    while pending:
        folder = pending.pop()
        for name in disk.list_folder(repo / folder):
            path = f"{folder}/{name}"
            found = disk.lstat(repo / path)
            if found is None:
                continue
            if stat.S_ISDIR(found.st_mode):
                pending.append(path)
            elif stat.S_ISREG(found.st_mode) and _OURS.fullmatch(path):
                yield path, found.st_size


def _read_marks(disk: Disk, repo: Path) -> dict[str, int]:
    """Path -> when it may go (seconds since 1970). Damaged marks are none: everything waits anew."""
    try:
        data = read_document(disk, repo / MARKS, max_bytes=MAX_MARKS_BYTES)
        if data is None:
            return {}
        fields = Fields(parse(data, what="the marks", max_bytes=MAX_MARKS_BYTES), "the marks", {"format", "waiting"})
        fields.integer("format", low=1, high=1)
        waiting = fields.value("waiting")
        if not isinstance(waiting, dict) or any(type(due) is not int for due in waiting.values()):
            refuse("the marks are damaged")
        return dict(waiting)
    except TrustError:
        return {}
