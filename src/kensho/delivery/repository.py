"""The publisher's end of one repository folder: reads its signed metadata, verified, and extends it.

    with repository_lock(disk, repo):
        repository = Repository.open(repo, keys, disk)
        repository.add_target("voice/2.0/manifest.json", data, custom)
        repository.commit(now, validity_of(None))

Rules: (1) nothing is signed again that was not signed by these keys; (2) targets come before the metadata that names
them, the timestamp comes last, each by rename: a publisher killed at any moment leaves the old release in place,
complete, and publishing again works (what the killed one left is overwritten or harmless).
"""

import re
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from kensho.base.errors import ConfigError, NotEnoughSpace, StoreBusy, TrustError
from kensho.base.ids import Digest, digest_of, parse_digest
from kensho.delivery.disk import Disk, RealDisk, storage_error
from kensho.delivery.durable import make_folders, read_document, write_document
from kensho.delivery.keys import (
    ROLES,
    load_public_key,
    load_signer,
    make_next_key,
    next_key_id,
    promote_next_key,
)
from kensho.delivery.layout import TIMESTAMP, metadata_path, target_path
from kensho.delivery.releases import ReleaseRef, read_release
from kensho.delivery.signing import (
    HASHES,
    MAX_TARGETS_BYTES,
    MetadataSigner,
    OnlineRoles,
    Payload,
    Validity,
    validity_of,
)

_ADVICE = "restore the repository from a good copy, or publish into a new one"
_ROOT_FILE = re.compile(r"([1-9][0-9]{0,8})\.root\.json")


@contextmanager
def repository_errors(repo: Path) -> Iterator[None]:
    """Translates OSError into StorageError or NotEnoughSpace, with what a publisher can do."""
    try:
        yield
    except OSError as error:
        found = storage_error(error, "use the repository", repo)
        is_full = isinstance(found, NotEnoughSpace)
        remedy = "free space" if is_full else "make it a folder that this user can read and write"
        found.advice = f"{remedy}, then run it again: the repository serves what it served before"
        raise found from error


@contextmanager
def repository_lock(disk: Disk, repo: Path) -> Iterator[None]:
    """One publisher at a time: StoreBusy if another is at work. The kernel releases it, so it is never stale."""
    with repository_errors(repo):
        make_folders(disk, repo)
        try:
            fd = disk.lock(repo / ".lock")
        except BlockingIOError as error:
            raise StoreBusy(
                f"another process is publishing into {repo}", advice="wait until it has finished"
            ) from error
    try:
        yield
    finally:
        disk.close(fd)


class Repository:
    """The verified metadata of a repository, and what is to be added. Used under `repository_lock`, by one thread."""

    def __init__(
        self, repo: Path, keys: Path | None, disk: Disk, root: Metadata[Root] | None, online: OnlineRoles | None
    ) -> None:
        self._repo, self._given_keys, self._disk = repo, keys, disk
        self._root, self._online = root, online
        self._added: dict[str, tuple[bytes, TargetFile]] = {}
        self._removed: set[str] = set()

    @classmethod
    def open(cls, repo: Path, keys: Path | None, disk: Disk) -> "Repository":
        """Load what is there. TrustError if it was not signed by these keys; expired metadata is no reason.
        Without keys it can be read, whoever signed it.

        An empty repository is fine, and so is one whose first publisher was killed: it has a root at most.
        ConfigError if a key was being replaced when the machine stopped.
        """
        with repository_errors(repo):
            root = _load_root(repo, keys, disk)
            if root is not None and keys is not None:
                _check_rotations(keys, root.signed)
            online = None if root is None else _load_online(repo, [root.signed], disk)
        return cls(repo, keys, disk, root, online)

    @classmethod
    def open_to_rotate(cls, repo: Path, keys: Path, disk: Disk) -> "Repository":
        """The same for `rotate`, which an interrupted one may have left with metadata that the last root's keys signed.

        ConfigError if nothing was published yet.
        """
        with repository_errors(repo):
            root = _load_root(repo, keys, disk)
            if root is None or disk.lstat(repo / TIMESTAMP) is None:
                raise ConfigError(f"{repo} has no release to sign", advice="publish one with `kensho publish`")
            roots = [root.signed]
            if root.signed.version > 1:
                roots.append(_read(Root, repo / metadata_path("root", root.signed.version - 1), disk)[0].signed)
            online = _load_online(repo, roots, disk)
        return cls(repo, keys, disk, root, online)

    @property
    def _keys(self) -> Path:
        if self._given_keys is None:
            raise ConfigError("nothing can be signed without keys", advice="give the folder of keys")
        return self._given_keys

    @property
    def root_path(self) -> Path:
        """The newest root file, the one to hand out. It exists after `commit`."""
        return self._repo / metadata_path("root", self._root.signed.version if self._root else 1)

    @property
    def expires(self) -> datetime | None:
        """When the timestamp does: after that nobody is led to what it names now. None if nothing was published."""
        return self._online.timestamp.signed.expires if self._online else None

    def named_files(self) -> set[str]:
        """Paths of all files that a client is led to: metadata, and signed documents. Packs are named in those."""
        if self._root is None or self._online is None:
            return set()
        versions = self._online.versions()
        found = {metadata_path("root", version) for version in range(1, self._root.signed.version + 1)}
        found |= {TIMESTAMP, *(metadata_path(role, versions[role]) for role in ("snapshot", "targets"))}
        for name, target in self._online.targets.signed.targets.items():
            found.add(target_path(name, parse_digest(target.hashes.get("sha256"))))
        return found

    def check_keys(self) -> None:
        """ConfigError if a key that the next `commit` needs is missing or unfit: before any work is done."""
        for role in ("targets", "snapshot", "timestamp", *(() if self._root else ("root",))):
            load_signer(self._keys, role)

    def releases(self) -> list[ReleaseRef]:
        """All releases, by model, newest first."""
        targets = self._online.targets.signed.targets if self._online else {}
        found = [read_release(name, t.length, t.hashes.get("sha256"), t.custom) for name, t in targets.items()]
        return sorted((ref for ref in found if ref), key=lambda ref: (ref.model, -ref.release))

    def read_target(self, target: str) -> bytes:
        """The bytes of a signed document of this repository, verified. TrustError if they are not the signed ones."""
        signed = self._online.targets.signed.targets.get(target) if self._online else None
        if signed is None:
            raise TrustError(f"the repository has no target {target!r}", advice=_ADVICE)
        digest = parse_digest(signed.hashes.get("sha256"))
        with repository_errors(self._repo):
            data = read_document(self._disk, self._repo / target_path(target, digest), max_bytes=signed.length)
        if data is None or digest_of(data) != digest:
            raise TrustError(f"the repository's document {target!r} is missing or not the signed one", advice=_ADVICE)
        return data

    def add_target(self, target: str, data: bytes, custom: dict[str, object] | None = None) -> Digest:
        """Take the document into the next `commit`; returns its digest. Adding the same twice is fine."""
        signed = TargetFile.from_data(target, data, HASHES)
        if custom is not None:
            signed.unrecognized_fields["custom"] = custom
        self._added[target] = (data, signed)
        return Digest(signed.hashes["sha256"])

    def keep_targets(self, targets: Set[str]) -> None:
        """With the next `commit`, what is not among these (nor added) is no longer named. Its file stays."""
        self._removed = set(self._online.targets.signed.targets if self._online else ()) - targets

    def commit(self, now: datetime, validity: Validity) -> dict[str, int]:
        """Write the added documents, sign, and publish; returns role -> version. Packs must be in place already.

        Everything is signed before anything is written. ConfigError if a key is missing or is not this repository's;
        StorageError or NotEnoughSpace if the disk refuses: the old release is then still served.
        """
        signer = MetadataSigner(self._keys, now, validity)
        root = self._root or signer.first_root()
        targets = dict(self._online.targets.signed.targets) if self._online else {}
        targets = {name: signed for name, signed in targets.items() if name not in self._removed}
        targets |= {name: signed for name, (_, signed) in self._added.items()}
        online = signer.next_roles(root.signed, self._online, targets)
        with repository_errors(self._repo):
            for name, (data, signed) in self._added.items():
                path = target_path(name, Digest(signed.hashes["sha256"]))
                if self._has(path, data):
                    self._disk.fsync_folder((self._repo / path).parent)  # a publisher killed before that wrote it
                else:
                    self._write(path, data)
            self._write_metadata(root, online)
        self._added, self._removed = {}, set()
        return {"root": root.signed.version, **online.versions()}

    def resign(self, now: datetime, validity: Validity) -> dict[str, int]:
        """A new timestamp, and anew whatever would expire before it does; returns role -> version of what was signed.

        Needs the keys of those roles only. ConfigError if nothing was published yet.
        """
        if self._root is None or self._online is None:
            raise ConfigError(f"{self._repo} has no release to sign", advice="publish one with `kensho publish`")
        signer = MetadataSigner(self._keys, now, validity)
        until = now + timedelta(days=validity.timestamp)
        root = signer.next_root(self._root.signed) if self._root.signed.expires < until else self._root
        online = signer.renewed_roles(root.signed, self._online, until)
        before = {"root": self._root.signed.version, **self._online.versions()}
        after = {"root": root.signed.version, **online.versions()}
        with repository_errors(self._repo):
            self._write_metadata(root, online)
        return {role: version for role, version in after.items() if version != before[role]}

    def rotate(self, role: str, now: datetime, validity: Validity) -> dict[str, int]:
        """Another key for the role; returns role -> version of what was signed. Needs the root key, and those of the
        roles above. Done again after an interruption, it finishes what was begun.

        As long as the old key is there, everything that the role signs is signed by both and published before the new
        root is: there is no moment at which a client finds metadata that the root it has would refuse. If the old key
        is lost, the root comes first, and clients refuse updates (for milliseconds) until the rest is there.
        """
        if self._root is None or self._online is None:  # `open_to_rotate` saw to it
            raise ConfigError(f"{self._repo} has no release to sign", advice="publish one with `kensho publish`")
        load_signer(self._keys, "root")  # before anything is made: without it nothing can be replaced
        new = make_next_key(self._disk, self._keys, role)
        old = load_signer(self._keys, role) if (self._keys / f"{role}.pem").exists() else None
        before = {"root": self._root.signed.version, **self._online.versions()}
        is_begun = new.public_key.keyid in self._root.signed.roles[role].keyids
        signer = MetadataSigner(self._keys, now, validity, signers={role: [new, *([old] if old else [])]})
        root = self._root if is_begun else signer.rotated_root(self._root.signed, role, new.public_key)
        online = self._online if role == "root" else signer.signed_anew(root.signed, self._online, role)
        with repository_errors(self._repo):
            if old is not None and role != "root" and not is_begun:
                self._write_metadata(self._root, online)
            self._write_metadata(root, online)
        promote_next_key(self._disk, self._keys, role, root.signed.version - 1)
        after = {"root": root.signed.version, **online.versions()}
        return {name: version for name, version in after.items() if version != before[name]}

    def _write_metadata(self, root: Metadata[Root], online: OnlineRoles) -> None:
        """The order is the protocol: a client that sees the new timestamp finds everything that it leads to."""
        if root is not self._root:
            self._write(metadata_path("root", root.signed.version), root.to_bytes())
        if online is self._online:
            self._root = root
            return
        self._write(metadata_path("targets", online.targets.signed.version), online.targets_bytes)
        self._write(metadata_path("snapshot", online.snapshot.signed.version), online.snapshot_bytes)
        self._write(TIMESTAMP, online.timestamp.to_bytes())
        self._root, self._online = root, online

    def _has(self, path: str, data: bytes) -> bool:
        """A chunk list that an earlier release has, too: its file keeps its time stamp, for those who mirror."""
        found = self._disk.lstat(self._repo / path)
        is_same_size = found is not None and found.st_size == len(data)
        return is_same_size and read_document(self._disk, self._repo / path, max_bytes=len(data)) == data

    def _write(self, path: str, data: bytes) -> None:
        target = self._repo / path
        make_folders(self._disk, target.parent)
        write_document(self._disk, target, data)


def resign(
    repo: Path,
    keys: Path,
    *,
    rotate: str | None = None,
    now: datetime,
    expires_days: int | None = None,
    disk: Disk | None = None,
) -> dict[str, int]:
    """Renew the timestamp of a repository, and what expires before it; returns role -> version of what was signed.

    With `rotate`, the role of that name gets another key, and only what that asks for is signed. Raises as `publish`.
    With `expires_days` as at publishing, or the defaults of `validity_of`.
    """
    disk = disk or RealDisk()
    if not (repo / TIMESTAMP).exists():
        raise ConfigError(f"{repo} is not a repository", advice="publish into it with `kensho publish`")
    validity = validity_of(expires_days)
    with repository_lock(disk, repo):
        if rotate is not None:
            return Repository.open_to_rotate(repo, keys, disk).rotate(rotate, now, validity)
        return Repository.open(repo, keys, disk).resign(now, validity)


def _load_root(repo: Path, keys: Path | None, disk: Disk) -> Metadata[Root] | None:
    """The newest root, if it is signed by the root key in `keys`."""
    folder = repo / "metadata"
    names: list[str] = []
    if disk.lstat(folder):
        disk.fsync_folder(folder)  # whoever published last may have been killed before that
        names = disk.list_folder(folder)
    versions = [int(found[1]) for name in names if (found := _ROOT_FILE.fullmatch(name))]
    if not versions:
        if disk.lstat(repo / TIMESTAMP):
            raise TrustError(f"{repo} has a timestamp but no root", advice=_ADVICE)
        return None
    root, _ = _read(Root, repo / metadata_path("root", max(versions)), disk)
    mine = {load_public_key(keys, "root").keyid, next_key_id(keys, "root")} if keys else set()
    if keys and mine.isdisjoint(root.signed.roles["root"].keyids):
        raise TrustError(f"the repository {repo} belongs to other keys", advice="use the keys that it was made with")
    _verify(root, [root.signed], repo)
    return root


def _check_rotations(keys: Path, root: Root) -> None:
    for role in ROLES:
        if next_key_id(keys, role) in root.roles[role].keyids:
            raise ConfigError(
                f"the {role} key was being replaced when that was interrupted",
                advice=f"finish it: kensho resign --rotate {role}",
            )


def _load_online(repo: Path, roots: Sequence[Root], disk: Disk) -> OnlineRoles | None:
    """What the timestamp leads to; None if there is no timestamp, which is written last. Signed by one of the roots."""
    if disk.lstat(repo / TIMESTAMP) is None:
        return None
    timestamp, _ = _read(Timestamp, repo / TIMESTAMP, disk)
    _verify(timestamp, roots, repo)
    snapshot, snapshot_bytes = _read_named(Snapshot, timestamp.signed.snapshot_meta, repo, disk)
    _verify(snapshot, roots, repo)
    targets, targets_bytes = _read_named(Targets, snapshot.signed.meta["targets.json"], repo, disk)
    _verify(targets, roots, repo)
    return OnlineRoles(targets, targets_bytes, snapshot, snapshot_bytes, timestamp)


def _read_named(kind: type[Payload], meta: MetaFile, repo: Path, disk: Disk) -> tuple[Metadata[Payload], bytes]:
    path = repo / metadata_path(kind.type, meta.version)
    metadata, data = _read(kind, path, disk)
    try:
        meta.verify_length_and_hashes(data)
    except RepositoryError as error:
        raise TrustError(f"{path} is not the file that was signed", advice=_ADVICE) from error
    return metadata, data


def _read(kind: type[Payload], path: Path, disk: Disk) -> tuple[Metadata[Payload], bytes]:
    data = read_document(disk, path, max_bytes=MAX_TARGETS_BYTES)
    if data is None:
        raise TrustError(f"{path} is missing", advice=_ADVICE)
    try:
        metadata = Metadata[Payload].from_bytes(data)
    except DeserializationError as error:
        raise TrustError(f"{path} is not TUF metadata", advice=_ADVICE) from error
    if not isinstance(metadata.signed, kind):
        raise TrustError(f"{path} is not {kind.type} metadata", advice=_ADVICE)
    return metadata, data


def _verify(metadata: Metadata[Payload], roots: Sequence[Root], repo: Path) -> None:
    role = metadata.signed.type
    for root in roots:
        try:
            root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except RepositoryError as error:
            refused = error
        else:
            return
    raise TrustError(f"the {role} metadata of {repo} is not signed by its keys", advice=_ADVICE) from refused
