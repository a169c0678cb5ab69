"""The publisher's keys: one Ed25519 key for each TUF role, as PEM files in a folder of the publisher's.

    KEYS/root.pem       can replace all the others: keep it off the machine that publishes, in a safe
    KEYS/targets.pem    says which files a release has: needed for each publish
    KEYS/snapshot.pem   ties the releases together: needed for each publish
    KEYS/timestamp.pem  says that all this is current: needed for each publish and for `kensho resign`
    KEYS/<role>.pub     the public halves
    KEYS/<role>.next.pem         a key that is being introduced; it takes the place of <role>.pem when that is done
    KEYS/<role>.until-root-N.*   what it replaced, last named by root version N

Private files have mode 0600 in a folder of mode 0700; a private key that others can read is refused. Keys are never
overwritten: who loses the root key must hand out a new root file by other ways. One folder of keys for one repository.
"""

from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from kensho.base.errors import ConfigError
from kensho.delivery.disk import Disk, RealDisk, storage_errors
from kensho.delivery.durable import make_folders

ROLES: Final = ("root", "targets", "snapshot", "timestamp")
MAX_KEY_BYTES = 16 << 10


def keygen(folder: Path, disk: Disk | None = None) -> dict[str, str]:
    """Make new keys for all roles in `folder`; returns role -> key id (as in the metadata).

    All or nothing, also after a power cut: the keys are made beside and appear by one rename. ConfigError if the folder
    has anything in it.
    """
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.partial")
    disk = disk or RealDisk()
    with storage_errors("make the keys", folder):
        make_folders(disk, folder.parent)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            disk.fsync_folder(folder.parent)  # who made it may have been killed before that
            raise ConfigError(f"{folder} is not empty", advice="keys are never overwritten: choose a new folder")
        disk.make_folder(partial)
        partial.chmod(0o700)
        ids = {role: _make_key(disk, partial, role) for role in ROLES}
        disk.fsync_folder(partial)
        disk.rename(partial, folder)
        disk.fsync_folder(folder.parent)
    return ids


def make_next_key(disk: Disk, folder: Path, role: str) -> CryptoSigner:
    """What will sign for the role: a new key beside the present one, or the one that an interrupted run has made.

    It is there for good before anybody relies on it.
    """
    path = folder / f"{role}.next.pem"
    if not path.exists():
        private, _ = _halves(Ed25519PrivateKey.generate())
        with storage_errors("make a key", folder):
            _replace(disk, path, private)
    return load_signer(folder, f"{role}.next")


def promote_next_key(disk: Disk, folder: Path, role: str, root_version: int) -> None:
    """The next key is the role's key from now on; the one before is kept under another name.

    May be interrupted and done again: as long as `<role>.next.pem` is there, this is not done.
    """
    following, current = folder / f"{role}.next.pem", folder / f"{role}.pem"
    _, public = _halves(_load_private(folder, f"{role}.next"))
    with storage_errors("replace a key", folder):
        for suffix in ("pem", "pub"):
            before, kept = folder / f"{role}.{suffix}", folder / f"{role}.until-root-{root_version}.{suffix}"
            if disk.lstat(before) and not disk.lstat(kept):
                _replace(disk, kept, _read(before))
        _replace(disk, folder / f"{role}.pub", public)
        disk.rename(following, current)
        disk.fsync_folder(folder)


def next_key_id(folder: Path, role: str) -> str | None:
    """Id of the key that is being introduced for the role; None if none is."""
    if not (folder / f"{role}.next.pem").exists():
        return None
    return load_signer(folder, f"{role}.next").public_key.keyid


def load_public_key(folder: Path, role: str) -> SSlibKey:
    """The public half of a role's key. ConfigError if there is none or it is not Ed25519."""
    path = folder / f"{role}.pub"
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _not_a_key(path) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key(path)
    return SSlibKey.from_crypto(key)


def load_signer(folder: Path, role: str) -> CryptoSigner:
    """What signs for the role. ConfigError if the private key is missing, unfit, or readable by others."""
    return CryptoSigner(_load_private(folder, role))


def _load_private(folder: Path, name: str) -> Ed25519PrivateKey:
    path = folder / f"{name}.pem"
    data = _read(path)
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"private key {path} can be read by others", advice=f"run: chmod 600 {path}")
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _not_a_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a_key(path)
    return key


def _make_key(disk: Disk, folder: Path, name: str) -> str:
    key = Ed25519PrivateKey.generate()
    private, public = _halves(key)
    _write(disk, folder / f"{name}.pem", private)
    _write(disk, folder / f"{name}.pub", public)
    return SSlibKey.from_crypto(key.public_key()).keyid


def _halves(key: Ed25519PrivateKey) -> tuple[bytes, bytes]:
    """The private and the public key as PEM."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _replace(disk: Disk, path: Path, data: bytes) -> None:
    """`path` has the data afterwards, also after a power cut; until then what it had. Mode 0600."""
    partial = path.with_name(f".{path.name}.partial")
    _write(disk, partial, data)
    disk.rename(partial, path)
    disk.fsync_folder(path.parent)


def _write(disk: Disk, path: Path, data: bytes) -> None:
    disk.unlink(path)  # of a run that was killed; a new file is made with mode 0600
    fd = disk.open_write(path)
    try:
        disk.write(fd, data, 0)
        disk.fsync(fd)
    finally:
        disk.close(fd)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(
            f"key {path} cannot be read: {(error.strerror or str(error)).lower()}",
            advice="make keys with `kensho keygen KEYS`, or bring the key back from where it is kept",
        ) from error


def _not_a_key(path: Path) -> ConfigError:
    return ConfigError(f"{path} is not an Ed25519 key in PEM form", advice="make keys with `kensho keygen KEYS`")
