"""Publish a model folder as one signed release of a repository: files -> chunks -> packs -> manifest -> signatures.

What is refused is refused before anything is written. Only chunks that no earlier release has are packed; a file that
did not change keeps its own `version` and its chunk list. A version that exists is never given other files; published
again with the same ones, it can be rolled out to more machines, or to fewer (those that have it keep it). The release
appears at once, with the timestamp, which is written last (`repository`): killed at any moment, the repository serves
the old release, and publishing again works.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from kensho.base.errors import ConfigError
from kensho.base.events import Emit, ReleasePublished
from kensho.base.ids import Digest, check_name, digest_of
from kensho.base.structs import Struct, replace
from kensho.delivery.chunk_list import dump_chunk_list
from kensho.delivery.disk import Disk, RealDisk
from kensho.delivery.hashing import hash_file
from kensho.delivery.layout import chunk_list_target, manifest_target, pack_path
from kensho.delivery.manifest import (
    MAX_CHANGELOG_BYTES,
    FileEntry,
    Manifest,
    dump_manifest,
    is_client_version,
    parse_chunk_list,
    parse_manifest,
)
from kensho.delivery.model_folder import SourceFile, list_model_files, reading
from kensho.delivery.packing import CutFile, PackedFile, Packer, Progress, measure
from kensho.delivery.packs import Location, PackWriter
from kensho.delivery.releases import ReleaseRef, describe_release
from kensho.delivery.repository import Repository, repository_errors, repository_lock
from kensho.delivery.signing import validity_of


class PublishReport(Struct):
    files: int
    chunks: int
    """Of all files, shared ones counted each time."""
    bytes_source: int
    bytes_packed: int
    """New bytes in the repository's packs."""
    patches: int
    root: Path
    """The root file to hand out to clients, by a way that they trust."""


def publish(
    source: Path,
    repo: Path,
    keys: Path,
    *,
    model: str,
    version: str,
    is_required: bool = True,
    fallback_model: str | None = None,
    changelog: str = "",
    min_client: str = "0.1.0",
    rollout_percent: int = 100,
    expires_days: int | None = None,
    now: datetime,
    emit: Emit,
    progress: Progress = lambda done, total: None,
    disk: Disk | None = None,
    made: Mapping[str, Path | None] | None = None,
) -> PublishReport:
    """Add `version` of `model`, made of the files in `source`, to the repository folder `repo`.

    If it is there, with the same files, `rollout_percent` becomes the share of machines that get it; the other terms
    stay what they were.

    `made`: files that were made from the source's for this release, by path (None: not to be had); they take the
    place of what the source has there, and a version that is published again keeps those that it has.

    Blocks. Measured on two busy cores: 125 to 200 MB/s of new bf16 weights, 300 to 600 MB/s of known ones, 12 MiB of
    memory whatever the size. Raises ModelError (the folder is no model, or a file is truncated), ConfigError (names,
    keys, a version that exists, a file that changes meanwhile), TrustError (the repository was not signed by `keys`),
    StoreBusy, StorageError, NotEnoughSpace. After any of them the repository serves what it served before (the new
    release only if the disk failed in the very last fsync).
    """
    disk = disk or RealDisk()
    _check_terms(model, version, fallback_model, changelog, min_client)
    _check_rollout(rollout_percent)
    validity = validity_of(expires_days)
    made = made or {}
    cuts = [measure(disk, file) for file in _with_made(list_model_files(source), made)]
    with repository_lock(disk, repo):
        repository = Repository.open(repo, keys, disk)
        repository.check_keys()
        if known := next((r for r in repository.releases() if (r.model, r.version) == (model, version)), None):
            given = {path: digest for path, digest in _digests(disk, cuts).items() if path not in made}
            before, after = _change_rollout(repository, known, given, rollout_percent, set(made))
            repository.commit(now, validity)
            return _report(repository, after, _count_chunks(repository, before), 0, emit)
        earlier = _read_earlier(repository, model)
        with repository_errors(repo):
            packer = Packer(disk, PackWriter(repo, disk), _usable_locations(disk, repo, earlier.locations))
            packed = packer.pack(cuts, progress)
        entries = [
            FileEntry(
                path=file.path,
                size_bytes=file.size_bytes,
                digest=file.digest,
                version=_version_of(file, version, earlier.files),
                is_required=True,
                fallback=None,
                chunk_list=_add_chunk_list(repository, model, packer, file),
            )
            for file in packed
        ]
        manifest = Manifest(
            model=model,
            version=version,
            release=earlier.release + 1,
            min_client_version=min_client,
            timestamp=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            changelog=changelog,
            is_required=is_required,
            fallback_model=fallback_model,
            files=tuple(entries),
            rollout_percent=rollout_percent,
            rollout_salt=f"{model}/{version}",
        )
        data = dump_manifest(manifest)
        parse_manifest(data)  # what clients would refuse is never signed
        described = describe_release(model, version, manifest.release)
        repository.add_target(manifest_target(model, version), data, described)
        repository.commit(now, validity)
    return _report(repository, manifest, sum(len(file.chunks) for file in packed), packer.bytes_packed, emit)


def _report(repository: Repository, manifest: Manifest, chunks: int, bytes_packed: int, emit: Emit) -> PublishReport:
    report = PublishReport(
        files=len(manifest.files),
        chunks=chunks,
        bytes_source=manifest.size_bytes,
        bytes_packed=bytes_packed,
        patches=0,
        root=repository.root_path,
    )
    emit(
        ReleasePublished(
            model=manifest.model,
            version=manifest.version,
            files=report.files,
            chunks=report.chunks,
            bytes_source=report.bytes_source,
            bytes_packed=report.bytes_packed,
        )
    )
    return report


def _with_made(files: Sequence[SourceFile], made: Mapping[str, Path | None]) -> list[SourceFile]:
    found = [file for file in files if file.path not in made]
    found += [SourceFile(path, location) for path, location in made.items() if location is not None]
    return sorted(found, key=lambda file: file.path)


def _check_terms(model: str, version: str, fallback_model: str | None, changelog: str, min_client: str) -> None:
    check_name(model, "model")
    check_name(version, "version")
    if fallback_model is not None and check_name(fallback_model, "fallback model") == model:
        raise ConfigError(f"model {model!r} cannot be its own fallback", advice="name another model")
    if len(changelog.encode("utf-8", "surrogatepass")) > MAX_CHANGELOG_BYTES:
        raise ConfigError("the changelog is too long", advice=f"keep it under {MAX_CHANGELOG_BYTES} bytes")
    if not is_client_version(min_client):
        raise ConfigError(f"{min_client!r} is not a client version", advice="give up to four numbers, such as 0.1.0")


def _check_rollout(percent: int) -> None:
    if not 0 <= percent <= 100:
        raise ConfigError(f"a roll-out to {percent} percent is not possible", advice="give 0 to 100")


class _Earlier(Struct):
    """What the repository's earlier releases offer to the next one."""

    release: int
    """Of the newest release of this model; 0 if there is none."""
    files: dict[str, FileEntry]
    """Of that release."""
    locations: dict[Digest, Location]
    """All chunks of all releases of all models."""


def _read_earlier(repository: Repository, model: str) -> _Earlier:
    """Reads every manifest and chunk list once: O(chunks in the repository), 49 bytes each."""
    refs = repository.releases()
    newest = next((ref for ref in refs if ref.model == model), None)
    locations: dict[Digest, Location] = {}
    files: dict[str, FileEntry] = {}
    seen: set[Digest] = set()
    for ref in refs:
        manifest = parse_manifest(repository.read_target(ref.target))
        if ref is newest:
            files = {file.path: file for file in manifest.files}
        for file in manifest.files:
            if file.chunk_list in seen:
                continue
            seen.add(file.chunk_list)
            data = repository.read_target(chunk_list_target(ref.model, file.chunk_list))
            for chunk in parse_chunk_list(data, file).chunks:
                locations[chunk.digest] = Location(chunk.pack, chunk.pack_offset, chunk.encoded_bytes, chunk.encoding)
    return _Earlier(newest.release if newest else 0, files, locations)


def _digests(disk: Disk, cuts: Sequence[CutFile]) -> dict[str, Digest]:
    found: dict[str, Digest] = {}
    for cut in cuts:
        with reading(cut.source.path):
            fd = disk.open_read(cut.source.location)
            try:
                found[cut.source.path] = hash_file(disk, fd, cut.size_bytes)
            finally:
                disk.close(fd)
    return found


def _change_rollout(
    repository: Repository, known: ReleaseRef, files: dict[str, Digest], percent: int, made: set[str]
) -> tuple[Manifest, Manifest]:
    """The release's manifest, now for this share of the machines: the one thing of a release that may change.

    ConfigError if anything of its files is another, or nothing is.
    """
    before = parse_manifest(repository.read_target(known.target))
    what = f"model {known.model!r} {known.version} is already published"
    if files != {file.path: file.digest for file in before.files if file.path not in made}:
        raise ConfigError(f"{what}, with other files", advice="choose another version")
    if percent == before.rollout_percent:
        raise ConfigError(what, advice="choose another version, or another share of the machines (--rollout)")
    after = replace(before, rollout_percent=percent)
    described = describe_release(known.model, known.version, known.release)
    repository.add_target(known.target, dump_manifest(after), described)
    return before, after


def _count_chunks(repository: Repository, manifest: Manifest) -> int:
    lists = [(file, chunk_list_target(manifest.model, file.chunk_list)) for file in manifest.files]
    return sum(len(parse_chunk_list(repository.read_target(target), file).chunks) for file, target in lists)


def _usable_locations(disk: Disk, repo: Path, locations: dict[Digest, Location]) -> dict[Digest, Location]:
    """Without the chunks whose pack is gone or too short: those are packed anew."""
    sizes: dict[Digest, int] = {}
    for place in locations.values():
        if place.pack not in sizes:
            found = disk.lstat(repo / pack_path(place.pack))
            sizes[place.pack] = found.st_size if found else 0
    return {
        digest: place for digest, place in locations.items() if place.offset + place.encoded_bytes <= sizes[place.pack]
    }


def _version_of(file: PackedFile, version: str, earlier: dict[str, FileEntry]) -> str:
    """A file that did not change keeps the version in which it appeared."""
    before = earlier.get(file.path)
    return before.version if before and before.digest == file.digest else version


def _add_chunk_list(repository: Repository, model: str, packer: Packer, file: PackedFile) -> Digest:
    data = dump_chunk_list(packer.chunk_list(file))
    return repository.add_target(chunk_list_target(model, digest_of(data)), data)
