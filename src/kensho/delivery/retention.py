"""What is kept: going back to the previous version, holding a version, and removing what nothing needs.

All of it is local. Never removed: the current and the previous version of a model; a pinned one; one that a process
uses (`leases`); and, where the previous version is damaged, the newest other one that is not, so that there is always
something to go back to. What a killed run left goes with the next one; what was fetched for a version that is not
complete yet stays for a week.

A pull that brought something collects too, but only what was not needed before it either: so there is one version more
to go back to, and one more to take chunks from, until the next update. Where space is short a pull collects first.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import Damaged, NotInstalled
from kensho.base.events import Emit, RolledBack
from kensho.base.ids import Digest
from kensho.delivery.checker import check_version
from kensho.delivery.disk import storage_errors
from kensho.delivery.installed import Record, Release
from kensho.delivery.leases import Lease, claim_version
from kensho.delivery.planted import is_folder
from kensho.delivery.store import Store

STAGING_MAX_AGE_S: Seconds = 7 * 86400.0
"""Partial files that no run has touched for so long are given up. A guess: a week offline must not cost a download."""


def rollback(store: Store, model: str, to: str | None = None, *, clock: Clock, emit: Emit) -> str:
    """Makes the previous version (or `to`, if it is installed) the current one; returns it. No network.

    The version is checked first (load grade). Damaged: nothing was switched, repair it. NotInstalled: not on this disk.
    """
    with store.writing():
        current = store.model(model)
        target = to or current.previous
        if target is None:
            raise NotInstalled(f"model {model!r} has no previous version", advice="name an installed one with --to")
        store.release(model, target)
        if target == current.version:
            return target
        report = check_version(store, model, target, clock=clock, emit=emit)
        if report.damaged:
            raise Damaged(
                f"{model} {target} is damaged ({report.damaged[0].path}); {current.version} stays in use",
                advice="run `kensho repair`, then roll back",
            )
        store.state.switch(model, target)
    emit(RolledBack(model=model, from_version=current.version, to_version=target))
    return target


def pin(store: Store, model: str, version: str | None) -> None:
    """Hold the model at a version that a pull may bring, or (None) follow the newest again."""
    with store.writing():
        store.model(model)
        store.state.pin(model, version)


def gc(store: Store, *, clock: Clock) -> int:
    """Removes versions, blobs and partial files that nothing needs; returns the bytes freed. Can be killed anywhere."""
    with store.writing():
        return collect(store, clock=clock)


def collect(
    store: Store, *, clock: Clock, also_keep: Collection[tuple[str, str]] = (), fetching: Collection[Digest] = ()
) -> int:
    """`gc` for a caller that has the store's lock already. `also_keep`: versions (model, version) to leave; `fetching`:
    files that are just being fetched, whose blobs and partial files stay whatever their age seems to be."""
    freed = 0
    needed, unneeded = _sort_releases(store)
    needed += [release for release in unneeded if (release.model, release.version) in also_keep]
    unneeded = [release for release in unneeded if release not in needed]
    with _claims(store, unneeded) as claimed:
        kept = needed + [release for release in unneeded if release not in claimed]
        valid = _valid_records(store, kept, now=clock.wall_s())
        for release in claimed:
            # Forgotten first: a version that is half removed must not be listed.
            store.state.remove_release(release.model, release.version)
            freed += store.versions.remove(store.versions.path(release.model, release.version))
    freed += _remove_unlisted(store, {(release.model, release.version) for release in kept})
    freed += _remove_blobs(store, _digests(kept) | set(fetching), _digests(claimed), now=clock.wall_s())
    freed += _remove_staging(store, set(fetching), now=clock.wall_s())
    # Removing a name changes the ctime of its blob, and nothing else: records that were valid are renewed.
    after = [record.relinked(found) for path, record in valid.items() if (found := store.disk.lstat(path))]
    store.state.keep_records({(record.dev, record.inode) for record in valid.values()})
    store.state.put_records(record for record in after if record)
    return freed


def needed_versions(store: Store) -> set[tuple[str, str]]:
    """(model, version) of what is needed by rule: what `gc` would leave even if nobody used it."""
    return {(release.model, release.version) for release in _sort_releases(store)[0]}


def reclaimable_bytes(store: Store) -> int:
    """What `gc` would free of versions and blobs, about."""
    needed, unneeded = _sort_releases(store)
    with _claims(store, unneeded) as claimed:
        kept = _digests(needed + [release for release in unneeded if release not in claimed])
        sizes = {file.used: file.size_bytes for release in claimed for file in release.files if file.used}
    return sum(size for digest, size in sizes.items() if digest not in kept)


def _sort_releases(store: Store) -> tuple[list[Release], list[Release]]:
    """Those that are needed by rule, and the rest."""
    rows = {row.model: row for row in store.state.models()}
    needed: list[Release] = []
    unneeded: list[Release] = []
    for release in store.state.releases():
        row = rows.get(release.model)
        is_needed = row is not None and release.version in (row.current, row.previous, row.pinned)
        (needed if is_needed else unneeded).append(release)
    for row in rows.values():
        others = [release for release in unneeded if release.model == row.model]
        previous = [release for release in needed if (release.model, release.version) == (row.model, row.previous)]
        if others and previous and not _looks_whole(store, previous[0]):
            good = [release for release in others if _looks_whole(store, release)]
            needed += good[:1]
            unneeded = [release for release in unneeded if release not in good[:1]]
    return needed, unneeded


def _looks_whole(store: Store, release: Release) -> bool:
    """Every file of it is there under its name, as it was when it was last verified. Hashes nothing."""
    known = store.state.records()
    folder = store.versions.path(release.model, release.version)
    with storage_errors("look at a version", folder):
        for file in release.files:
            found = store.disk.lstat(folder / file.path) if file.used else None
            record = known.get((found.st_dev, found.st_ino)) if found else None
            if file.used and not (found and record and record.vouches_for(file.used, found, now=record.verified_at)):
                return False
    return True


@contextmanager
def _claims(store: Store, releases: list[Release]) -> Iterator[list[Release]]:
    """Those of `releases` that nobody uses; nobody can begin to until the end."""
    claimed: list[Release] = []
    claims: list[Lease] = []
    try:
        for release in releases:
            claim = claim_version(store.versions.path(release.model, release.version))
            if claim:
                claims.append(claim)
                claimed.append(release)
        yield claimed
    finally:
        for claim in claims:
            claim.close()


def _digests(releases: list[Release]) -> set[Digest]:
    documents = {digest for r in releases for digest in (r.manifest, *(file.chunk_list for file in r.files))}
    return documents | {digest for r in releases for file in r.files for digest in (file.digest, file.used) if digest}


def _remove_unlisted(store: Store, listed: set[tuple[str, str]]) -> int:
    """Version folders without a row: left by a run that was killed before its commit, or in the middle of a gc."""
    freed, root = 0, store.root / "versions"
    with storage_errors("list versions", root):
        models = store.disk.list_folder(root)
        planted = [model for model in models if not is_folder(store.disk, root / model)]
        folders = [(m, v) for m in models if m not in planted for v in store.disk.list_folder(root / m)]
    for model in planted:
        freed += store.versions.remove(root / model)
    for model, version in folders:
        if (model, version) not in listed:
            freed += store.versions.remove(root / model / version)
    return freed


def _remove_blobs(store: Store, kept: set[Digest], given_up: set[Digest], *, now: Seconds) -> int:
    """Blobs of the versions that are given up. A blob of no version at all was fetched by a pull that did not get to
    its end: it is kept as long as a partial file is."""
    root, freed = store.root / "blobs", 0
    with storage_errors("list blobs", root):
        for name in store.disk.list_folder(root):
            found = store.disk.lstat(root / name)
            is_young = found is not None and now - found.st_mtime <= STAGING_MAX_AGE_S
            if name not in kept and (name in given_up or not is_young):
                freed += store.versions.remove(root / name)
    return freed


def _remove_staging(store: Store, kept: set[Digest], *, now: Seconds) -> int:
    root, freed = store.root / "staging", 0
    with storage_errors("list partial files", root):
        for name in store.disk.list_folder(root):
            found = store.disk.lstat(root / name)
            is_old = found is not None and now - found.st_mtime > STAGING_MAX_AGE_S
            if name.removesuffix(".part") not in kept and (is_old or not name.endswith(".part")):
                freed += store.versions.remove(root / name)
    return freed


def _valid_records(store: Store, releases: list[Release], *, now: Seconds) -> dict[Path, Record]:
    """By path, the records that vouch for a blob or a copy right now: only those may follow our own unlinking."""
    known = store.state.records()
    names: dict[Path, Digest] = {store.blob_path(digest): digest for digest in _digests(releases)}
    for release in releases:
        folder = store.versions.path(release.model, release.version)
        names |= {folder / file.path: file.used for file in release.files if file.used}
    valid: dict[Path, Record] = {}
    with storage_errors("look at blobs", store.root):
        for path, digest in names.items():
            found = store.disk.lstat(path)
            record = known.get((found.st_dev, found.st_ino)) if found else None
            if found and record and record.vouches_for(digest, found, now=now):
                valid[path] = record
    return valid
