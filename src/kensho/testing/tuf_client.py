"""`python -m kensho.testing.tuf_client`: Kensho's trust core as the program that TUF conformance suites drive.

    --metadata-dir M init ROOT
    --metadata-dir M --metadata-url U refresh
    --metadata-dir M --metadata-url U --target-name T --target-base-url B --target-dir D download

Exit 0, or 1 with one line on stderr. `kensho.delivery.trust` decides and persists; here is only where a suite's
addresses and folders differ from a store's: metadata and targets have an address each, names of roles are quoted once,
and M is the trusted folder itself. `--target-name` may be given several times: one client looks them up, in order.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from kensho.base.clock import SystemClock
from kensho.base.errors import ConfigError, DigestMismatch, KenshoError
from kensho.base.events import Event
from kensho.delivery.disk import RealDisk, storage_errors
from kensho.delivery.durable import make_folders, read_document, write_document
from kensho.delivery.http_source import HttpSource
from kensho.delivery.sources import Source
from kensho.delivery.trust import Trust

T = TypeVar("T")
OpenSource = Callable[[str], Source]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = parse(arguments)
    clock = SystemClock()
    try:
        run(
            args,
            now=lambda: datetime.fromtimestamp(clock.wall_s(), UTC),
            open_metadata=lambda url: _Metadata(url, clock=clock),
            open_targets=lambda url: HttpSource(url, clock=clock),
        )
    except KenshoError as error:
        print(f"{error.message}; {error.advice}", file=sys.stderr)
        return 1
    return 0


def run(
    args: argparse.Namespace, *, now: Callable[[], datetime], open_metadata: OpenSource, open_targets: OpenSource
) -> None:
    """KenshoError if the command did not succeed as a whole."""
    folder: Path = args.metadata_dir
    if args.command == "init":
        with storage_errors("read the root", args.root):
            root = read_document(RealDisk(), args.root.absolute(), max_bytes=1 << 20)
        if root is None:
            raise ConfigError(f"there is no {args.root}", advice="give the publisher's root file")
        Trust.initialise(folder.absolute(), root)
        return
    trust = Trust(folder.absolute(), now=now, emit=_ignore)
    source = open_metadata(_given(args.metadata_url, "--metadata-url"))
    trust.refresh(source)
    if args.command == "download":
        targets = open_targets(_given(args.target_base_url, "--target-base-url"))
        target_folder: Path = _given(args.target_dir, "--target-dir")
        for name in _given(args.target_name, "--target-name"):
            _download(trust.find_target(source, name), trust, targets, target_folder.absolute())


def _download(target: TargetFile, trust: Trust, source: Source, folder: Path) -> None:
    disk = RealDisk()
    name = quote(target.path, safe="")
    path = folder / (name if name.strip(".") else name.replace(".", "%2E"))  # `..` is no file of this folder
    with storage_errors("keep the target", folder):
        make_folders(disk, folder)
        found = disk.lstat(path)
        if found and found.st_size == target.length:
            mine = read_document(disk, path, max_bytes=target.length)
            if mine is not None and _is_signed(target, mine):
                return
        data = source.read(trust.location(target).removeprefix("targets/"), max_bytes=target.length)
        if not _is_signed(target, data):
            raise DigestMismatch(f"{source.name} has other bytes than the signed ones", advice="ask another source")
        write_document(disk, path, data)


def _is_signed(target: TargetFile, data: bytes) -> bool:
    try:
        target.verify_length_and_hashes(data)
    except LengthOrHashMismatchError:
        return False
    return True


class _Metadata(HttpSource):
    """The address is that of the metadata folder, and the names are quoted already."""

    def _address(self, path: str) -> str:
        return self._base + path.removeprefix("metadata/")


def _given(value: T | None, option: str) -> T:
    if value is None:
        raise ConfigError(f"{option} is missing", advice="see --help")
    return value


def _ignore(event: Event) -> None:
    """What happened is told by the exit code."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m kensho.testing.tuf_client", description=__doc__)
    parser.add_argument("--metadata-dir", required=True, type=Path)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append")
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
