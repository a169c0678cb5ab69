"""Where things lie in a repository: plain relative paths, so that any web server or USB stick can hold it. Pure.

    metadata/1.root.json ... timestamp.json, N.snapshot.json, N.targets.json      signed by TUF
    targets/<model>/<version>/<sha256>.manifest.json                             one release
    targets/<model>/chunks/<sha256>.<sha256>.chunks                              content-addressed, shared by releases
    packs/<sha256>.pack                                                          encoded chunks, read by range

A *target* is TUF's name of a signed document (`<model>/<version>/manifest.json`). With consistent snapshots its file
carries its own digest in front of the last part, so that a new release never changes a file that a client is reading.
"""

from typing import Final

from kensho.base.ids import Digest

TIMESTAMP: Final = "metadata/timestamp.json"
"""The only file that is ever replaced by other bytes of the same name: writing it publishes everything before it."""


def manifest_target(model: str, version: str) -> str:
    return f"{model}/{version}/manifest.json"


def chunk_list_target(model: str, digest: Digest) -> str:
    return f"{model}/chunks/{digest}.chunks"


def target_path(target: str, digest: str) -> str:
    """Path of the file that holds a target, relative to the repository."""
    folder, slash, name = target.rpartition("/")
    return f"targets/{folder}{slash}{digest}.{name}"


def pack_path(pack: Digest) -> str:
    return f"packs/{pack}.pack"


def metadata_path(role: str, version: int) -> str:
    """Path of root, snapshot or targets metadata; the timestamp has no version in its name."""
    return f"metadata/{version}.{role}.json"
