"""kensho.testing.tuf_client: the classes of cases of TUF conformance suites, in process and as a program."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, TargetFile

from kensho.base.errors import KenshoError
from kensho.testing.memory_source import MemorySource
from kensho.testing.tuf_client import parse, run
from kensho.testing.tuf_repository import TOP_LEVEL, RecordingSource, TufRepository, new_key

pytestmark = pytest.mark.store

NOW = datetime.now(UTC).replace(microsecond=0)
FIRST_REQUESTS = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]


class Targets(MemorySource):
    """The targets folder of a repository, at an address of its own."""

    def __init__(self, inner: RecordingSource) -> None:
        super().__init__({})
        self._inner = inner

    def read(self, path: str, *, max_bytes: int) -> bytes:
        return self._inner.read(f"targets/{path}", max_bytes=max_bytes)


class Suite:
    """A client and a repository. Each command is True if it succeeded. Without `url` it runs in this process."""

    def __init__(self, folder: Path, repo: TufRepository, url: str = "") -> None:
        self.repo, self._folder, self._url = repo, folder, url
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        for made in (self.metadata, self.targets):
            made.mkdir(parents=True)

    def init(self, root: bytes | None = None) -> bool:
        file = self._folder / "first.json"
        file.write_bytes(self.repo.source.files["metadata/1.root.json"] if root is None else root)
        return self._run(["init", str(file)])

    def refresh(self, *, days: float = 0) -> bool:
        return self._run(["--metadata-url", f"{self._url}/metadata/", "refresh"], days)

    def download(self, *names: str, days: float = 0) -> bool:
        wanted = [part for name in names for part in ("--target-name", name)]
        places = ["--target-base-url", f"{self._url}/targets/", "--target-dir", str(self.targets)]
        return self._run(["--metadata-url", f"{self._url}/metadata/", *wanted, *places, "download"], days)

    def version(self, role: str) -> int:
        version: int = json.loads((self.metadata / f"{role}.json").read_bytes())["signed"]["version"]
        return version

    def trusted(self) -> dict[str, int]:
        """Every JSON file in the folder is metadata of a role, as a suite expects."""
        return {path.stem: self.version(path.stem) for path in sorted(self.metadata.glob("*.json"))}

    def artifacts(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.targets.rglob("*") if path.is_file())

    def _run(self, words: list[str], days: float = 0) -> bool:
        arguments = ["--metadata-dir", str(self.metadata), *words]
        if self._url:
            program = [sys.executable, "-m", "kensho.testing.tuf_client", *arguments]
            done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
            assert "Traceback" not in done.stderr
            assert done.returncode == 0 or done.stderr.count("\n") == 1
            return {0: True, 1: False}[done.returncode]
        try:
            run(
                parse(arguments),
                now=lambda: NOW + timedelta(days=days),
                open_metadata=lambda url: self.repo.source,
                open_targets=lambda url: Targets(self.repo.source),
            )
        except KenshoError as error:
            assert error.message
            return False
        return True


@pytest.fixture
def suite(ram: Path) -> Suite:
    """A client that has been given the first root."""
    made = Suite(ram / "client", TufRepository(NOW))
    assert made.init()
    return made


@pytest.fixture
def plain(ram: Path) -> Suite:
    """The same, of a repository whose metadata names other metadata by version only."""
    made = Suite(ram / "client", TufRepository(NOW, has_hashes=False))
    assert made.init()
    return made


# --- init, refresh, what is asked for and what is kept ---


def test_a_first_refresh_asks_for_each_role_once_and_keeps_the_very_bytes(suite: Suite) -> None:
    assert suite.refresh()
    assert suite.repo.requests == FIRST_REQUESTS
    assert suite.trusted() == dict.fromkeys(TOP_LEVEL, 1)
    files = suite.repo.source.files
    for role, name in zip(TOP_LEVEL, ("1.root", "timestamp", "1.snapshot", "1.targets"), strict=True):
        assert (suite.metadata / f"{role}.json").read_bytes() == files[f"metadata/{name}.json"]


def test_a_download_refreshes_first_even_if_it_fails(suite: Suite) -> None:
    assert not suite.download("nonexistent")
    assert suite.repo.requests == FIRST_REQUESTS
    assert suite.trusted() == dict.fromkeys(TOP_LEVEL, 1)


@pytest.mark.parametrize("damage", ["version", "signature", "nothing", "not json"])
def test_an_invalid_first_root_is_refused_before_any_request(damage: str, ram: Path) -> None:
    suite = Suite(ram / "client", TufRepository(NOW))
    root = json.loads(suite.repo.source.files["metadata/1.root.json"])
    if damage == "version":
        del root["signed"]["version"]
    if damage == "signature":
        root["signatures"][0]["sig"] = "00" * 64
    assert not suite.init({"nothing": b"", "not json": b"{"}.get(damage, json.dumps(root).encode()))
    assert not suite.refresh()
    assert suite.repo.requests == []


def test_unknown_fields_are_part_of_what_is_signed(suite: Suite) -> None:
    assert suite.refresh()
    root = suite.repo.root
    root.unrecognized_fields["custom-field"] = "value"
    key = root.keys[root.roles["root"].keyids[0]]
    key.unrecognized_fields["extra-field"] = {"a": 1, "b": 2}
    key.unrecognized_fields["keyid_hash_algorithms"] = ["md5"]
    root.roles["root"].unrecognized_fields["another-field"] = "value"
    suite.repo.publish("root")
    assert suite.refresh()
    assert suite.version("root") == 2


def test_a_repository_without_consistent_snapshots_is_read_by_plain_names(plain: Suite) -> None:
    repo = plain.repo
    repo.root.consistent_snapshot = False
    repo.add_target("targets", "a/b.txt", b"plain")
    repo.publish("root", "targets", "snapshot", "timestamp")
    files = repo.source.files
    files |= {f"metadata/{role}.json": files[f"metadata/2.{role}.json"] for role in ("snapshot", "targets")}
    files["targets/a/b.txt"] = b"plain"
    assert plain.download("a/b.txt")
    assert repo.requests == ["2.root.json", "3.root.json", "timestamp.json", "snapshot.json", "targets.json"]
    assert repo.source.paths[-1] == "targets/a/b.txt"
    assert plain.artifacts() == [b"plain"]


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa-pss", "rsa-pkcs1"])
def test_every_common_kind_of_key_is_verified(kind: str, suite: Suite) -> None:
    key = {
        "ed25519": CryptoSigner.generate_ed25519,
        "ecdsa": CryptoSigner.generate_ecdsa,
        "rsa-pss": CryptoSigner.generate_rsa,
        "rsa-pkcs1": lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256"),
    }[kind]()
    repo = suite.repo
    repo.root.revoke_key(repo.signers["timestamp"][0].public_key.keyid, "timestamp")
    repo.root.add_key(key.public_key, "timestamp")
    repo.publish("root")
    assert not suite.refresh()
    repo.signers["timestamp"] = [key]
    repo.publish("timestamp")
    assert suite.refresh()
    assert suite.version("timestamp") == 2


# --- rollback, mix-and-match ---


def test_a_timestamp_of_the_same_version_changes_nothing(suite: Suite) -> None:
    assert suite.refresh()
    suite.repo.timestamp.snapshot_meta.version = 100
    suite.repo.put("timestamp")
    assert suite.refresh()
    assert (
        json.loads((suite.metadata / "timestamp.json").read_bytes())["signed"]["meta"]["snapshot.json"]["version"] == 1
    )


def test_an_older_timestamp_is_refused(suite: Suite) -> None:
    suite.repo.publish("timestamp")
    assert suite.refresh()
    suite.repo.timestamp.version = 1
    suite.repo.put("timestamp")
    assert not suite.refresh()
    assert suite.version("timestamp") == 2
    assert suite.repo.requests[-1] == "timestamp.json"


@pytest.mark.parametrize("has_hashes", [True, False])
@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_older_metadata_below_a_new_timestamp_is_refused(role: str, has_hashes: bool, ram: Path) -> None:
    suite = Suite(ram / "client", TufRepository(NOW, has_hashes=has_hashes))
    repo = suite.repo
    assert suite.init()
    repo.publish("targets", "snapshot", "timestamp")
    assert suite.refresh()
    repo.payloads[role].version = 0
    repo.publish(role)
    repo.publish("snapshot", "timestamp") if role == "targets" else repo.publish("timestamp")
    assert not suite.refresh()
    assert suite.version(role) == 2
    assert suite.version("snapshot") == 2
    assert suite.version("timestamp") == (3 if role == "targets" else 2)


def test_what_was_only_changed_below_is_not_asked_for(suite: Suite) -> None:
    assert suite.refresh()
    suite.repo.publish("targets")
    suite.repo.source.paths.clear()
    assert suite.refresh()
    assert suite.repo.requests == ["2.root.json", "timestamp.json"]


@pytest.mark.parametrize("role", ["snapshot", "targets"])
@pytest.mark.parametrize("lie", ["version", "hash"])
def test_metadata_is_what_the_role_above_names(role: str, lie: str, ram: Path) -> None:
    suite = Suite(ram / "client", TufRepository(NOW, has_hashes=lie == "hash"))
    repo = suite.repo
    assert suite.init()
    assert suite.refresh()
    repo.publish("targets", "snapshot", "timestamp")
    name = f"metadata/2.{role}.json"
    if lie == "version":
        repo.payloads[role].version = 3
    else:
        repo.payloads[role].expires += timedelta(days=1)
    repo.source.files[name] = repo.signed(role)
    assert not suite.refresh()
    assert suite.trusted()[role] == 1
    assert suite.repo.requests[-1] == name.removeprefix("metadata/")


def test_a_role_that_vanishes_from_the_snapshot_is_refused(suite: Suite) -> None:
    suite.repo.snapshot.meta["other.json"] = MetaFile(1)
    suite.repo.publish("snapshot", "timestamp")
    assert suite.refresh()
    del suite.repo.snapshot.meta["other.json"]
    suite.repo.publish("snapshot", "timestamp")
    assert not suite.refresh()
    assert suite.version("snapshot") == 2


# --- recovery from a thief who made versions run away ---


@pytest.mark.parametrize(
    ("raised", "rotated"),
    [("timestamp", ["timestamp"]), ("snapshot", ["snapshot", "timestamp"]), ("targets", ["snapshot"])],
)
def test_versions_start_again_below_new_keys(raised: str, rotated: list[str], suite: Suite) -> None:
    repo = suite.repo
    repo.payloads[raised].version = 99_999
    above = {"targets": ["snapshot", "timestamp"], "snapshot": ["timestamp"], "timestamp": []}[raised]
    repo.put(raised)
    repo.publish(*above)
    assert suite.refresh()
    assert suite.version(raised) == 99_999
    for role in rotated:
        repo.rotate(role)
    repo.publish("root")
    repo.payloads[raised].version = 0
    repo.publish(raised, *above)
    assert suite.refresh()
    assert suite.version(raised) == 1


# --- expiry ---


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_expired_metadata_is_refused_and_not_kept(role: str, suite: Suite) -> None:
    assert suite.refresh()
    suite.repo.payloads[role].expires = NOW - timedelta(days=5)
    suite.repo.publish(role, *{"targets": ["snapshot", "timestamp"], "snapshot": ["timestamp"]}.get(role, []))
    assert not suite.refresh()
    assert suite.version(role) == 1


def test_an_expired_root_is_kept_and_nothing_else(suite: Suite) -> None:
    assert suite.refresh()
    suite.repo.root.expires = NOW - timedelta(days=1)
    suite.repo.publish("root", "targets", "snapshot", "timestamp")
    assert not suite.refresh()
    assert suite.trusted() == {"root": 2, "timestamp": 1, "snapshot": 1, "targets": 1}


def test_expired_metadata_of_ones_own_still_leads_to_newer_one(suite: Suite) -> None:
    suite.repo.timestamp.expires = NOW + timedelta(days=7)
    suite.repo.publish("timestamp")
    assert suite.refresh()
    suite.repo.publish("targets", "snapshot")
    suite.repo.timestamp.expires = NOW + timedelta(days=21)
    suite.repo.publish("timestamp")
    assert suite.refresh(days=18)
    assert suite.trusted() == {"root": 1, "timestamp": 3, "snapshot": 2, "targets": 2}
    assert not suite.refresh(days=22)


# --- keys ---


@dataclass(frozen=True)
class Signed:
    """Which keys (by number) a role has, how many must sign, and which did."""

    keys: list[int]
    threshold: int
    signers: list[int] = field(default_factory=list)


ONE, FIVE = Signed([1], 1, [1]), Signed([0, 1, 2, 3, 4], 3, [0, 2, 4])


@pytest.mark.parametrize(
    ("roots", "is_good"),
    [
        ([ONE, Signed([2], 1, [2, 1]), Signed([2], 1, [2])], True),
        ([Signed([1], 1, [3, 1, 4]), Signed([2], 1, [3, 2, 1, 4]), Signed([2], 1, [3, 2, 4])], True),
        ([FIVE, Signed(FIVE.keys, 3, [0, 4, 1]), Signed(FIVE.keys, 3, [0, 1, 3])], True),
        ([FIVE, Signed([0, 1, 3, 4, 5], 3, [0, 4, 1])], True),
        ([FIVE, Signed([0, 1, 3, 4, 5], 3, [0, 2, 4, 5]), Signed([0, 1, 3, 4, 5], 3, [0, 4, 5])], True),
        ([FIVE, Signed([5, 6, 7, 8, 9], 3, [0, 2, 4, 5, 6, 7]), Signed([5, 6, 7, 8, 9], 3, [5, 6, 7])], True),
        ([Signed([1, 2, 3], 1, [1]), Signed([1, 2, 3], 2, [1, 2])], True),
        ([Signed([1, 2, 3], 2, [1, 2]), Signed([1, 2, 3], 1, [1, 2]), Signed([1, 2, 3], 1, [1])], True),
        ([ONE, Signed([1, 2], 2, [1, 2])], True),
        ([ONE, Signed([2], 1, [2, 3, 4])], False),
        ([ONE, Signed([2], 1, [1, 3, 4])], False),
        ([FIVE, Signed([0, 1, 3, 4, 5], 3, [0, 2, 4])], False),
        ([FIVE, Signed([0, 1, 3, 4, 5], 3, [0, 4, 5])], False),
        ([Signed([1, 2, 3], 1, [1]), Signed([1, 2, 3], 2, [2])], False),
        ([Signed([1, 2, 3], 2, [1, 2]), Signed([1, 2, 3], 1, [1])], False),
    ],
)
def test_a_root_is_signed_as_the_one_before_and_it_itself_ask(roots: list[Signed], is_good: bool, ram: Path) -> None:
    suite = Suite(ram / "client", TufRepository(NOW))
    repo, keys = suite.repo, [new_key() for _ in range(10)]
    for version, wanted in enumerate(roots, start=1):
        repo.root.roles["root"].keyids.clear()
        give_keys(repo, "root", wanted, keys)
        repo.root.version = version
        repo.put("root")
    assert suite.init()
    assert suite.refresh() is is_good
    last = len(roots) if is_good else len(roots) - 1
    assert (suite.metadata / "root.json").read_bytes() == repo.source.files[f"metadata/{last}.root.json"]


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize(
    ("signed", "is_good"),
    [
        (Signed([2], 1, [2]), True),
        (Signed([1], 1, [3, 1, 4]), True),
        (Signed([2], 1, [1, 3, 4]), False),
        (Signed([0, 1, 3, 4, 5], 3, [0, 2, 4]), False),
        (Signed([0, 1, 3, 4, 5], 3, [0, 4]), False),
        (FIVE, True),
        (Signed(FIVE.keys, 3, [1, 2, 3]), True),
        (Signed(FIVE.keys, 6, [0, 1, 2, 3, 4]), False),
    ],
)
def test_a_role_is_signed_as_the_root_asks(role: str, signed: Signed, is_good: bool, suite: Suite) -> None:
    repo, keys = suite.repo, [new_key() for _ in range(6)]
    assert suite.refresh()
    repo.root.roles[role].keyids.clear()
    give_keys(repo, role, signed, keys)
    repo.publish("root", "targets", "snapshot", "timestamp")
    assert suite.refresh() is is_good
    assert suite.version("root") == 2
    assert suite.version(role) == (2 if is_good else 1)


def give_keys(repo: TufRepository, role: str, wanted: Signed, keys: list[CryptoSigner]) -> None:
    for number in wanted.keys:
        repo.root.add_key(keys[number].public_key, role)
    repo.root.roles[role].threshold = wanted.threshold
    repo.signers[role] = [keys[number] for number in wanted.signers]


def test_an_id_without_a_key_signs_nothing(suite: Suite) -> None:
    suite.repo.root.roles["snapshot"].threshold = 2
    suite.repo.root.roles["snapshot"].keyids.append(new_key().public_key.keyid)
    suite.repo.publish("root", "snapshot", "timestamp")
    assert not suite.refresh()


# --- targets ---


def test_a_target_is_downloaded_once(suite: Suite) -> None:
    suite.repo.add_target("targets", "path/to/a/file.txt", b"contents")
    suite.repo.publish("targets", "snapshot", "timestamp")
    assert suite.refresh()
    assert suite.artifacts() == []
    assert suite.download("path/to/a/file.txt")
    assert suite.artifacts() == [b"contents"]
    suite.repo.source.paths.clear()
    assert suite.download("path/to/a/file.txt")
    assert suite.repo.source.paths == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_a_changed_target_replaces_the_old_one_and_a_forged_one_does_not(suite: Suite) -> None:
    for content in (b"first", b"second, longer", b"3"):
        suite.repo.add_target("targets", "file", content)
        suite.repo.publish("targets", "snapshot", "timestamp")
        assert suite.download("file")
        assert suite.artifacts() == [content]
        place = suite.repo.source.paths[-1]
        for forged in (b"forged" + content, content[:-1], bytes(len(content))):
            suite.repo.source.files[place] = forged
            (suite.targets / "file").write_bytes(b"rot")
            assert not suite.download("file")
            assert suite.artifacts() == [b"rot"]
        suite.repo.source.files[place] = content


@pytest.mark.parametrize(
    ("hashes", "is_good"),
    [(["sha256"], True), (["sha512"], True), (["sha512", "sha256"], True), (["unknown"], False), ([], False)],
)
def test_a_target_is_verified_by_every_hash_that_it_has(hashes: list[str], is_good: bool, suite: Suite) -> None:
    target = TargetFile.from_data("file", b"contents", hashes if is_good else ["sha256"])
    if not is_good:
        target.hashes = {name: target.hashes["sha256"] for name in hashes}
    suite.repo.targets().targets["file"] = target
    suite.repo.publish("targets", "snapshot", "timestamp")
    for value in (*target.hashes.values(), ""):
        suite.repo.source.files[f"targets/{value}.file".replace("/.", "/")] = b"contents"
    assert suite.download("file") is is_good
    assert suite.artifacts() == ([b"contents"] if is_good else [])


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "..", "C:\\outside"])
def test_a_target_never_leaves_its_folder(name: str, suite: Suite) -> None:
    suite.repo.add_target("targets", name, b"1")
    suite.repo.publish("targets", "snapshot", "timestamp")
    assert suite.download(name)
    assert suite.artifacts() == [b"1"]
    assert not list(suite.targets.parent.glob("outside*"))


def test_cached_role_is_verified_against_current_delegator(suite: Suite) -> None:
    """Two searches by one client: the first one makes C good for A only."""
    repo = suite.repo
    repo.delegate("targets", "A", paths=["a/*"])
    repo.delegate("targets", "B", paths=["b/*"])
    repo.delegate("A", "C", paths=["a/*"])
    repo.delegate("B", "C", paths=["b/*"], key=new_key())
    repo.add_target("C", "a/x", b"for A")
    repo.add_target("C", "b/x", b"for B")
    repo.publish("A", "B", "C", "targets", "snapshot", "timestamp")
    assert not suite.download("a/x", "b/x")
    assert suite.artifacts() == [b"for A"]
    assert not suite.download("b/x")
    assert suite.artifacts() == [b"for A"]


# --- the program ---


@pytest.fixture
def serve() -> Iterator[Callable[[TufRepository], str]]:
    """Serves a repository as a suite's simulator does: one answer for each connection, 404 for what is not there."""
    servers = []

    def start(repo: TufRepository) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.removeprefix("/test%5Bx%5D/")
                repo.source.paths.append(path)
                data = repo.source.files.get(path)
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/test%5Bx%5D"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.real
def test_the_program_does_the_three_commands(serve: Callable[[TufRepository], str], tmp_path: Path) -> None:
    repo = TufRepository(NOW)
    suite = Suite(tmp_path / "client", repo, serve(repo))
    assert not suite.refresh()
    assert suite.init()
    repo.add_target("targets", "dir/file.txt", b"contents")
    repo.delegate("targets", "../d?#", paths=["d/*"])
    repo.add_target("../d?#", "d/x", b"delegated")
    repo.publish("../d?#", "targets", "snapshot", "timestamp")
    assert suite.refresh()
    assert repo.requests == ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"]
    assert suite.download("dir/file.txt", "d/x")
    assert repo.requests[-1] == "1...%2Fd%3F%23.json"
    assert suite.artifacts() == [b"contents", b"delegated"]
    assert len(suite.trusted()) == 5
    assert not suite.download("nonexistent")
    repo.timestamp.version = 1
    repo.put("timestamp")
    assert not suite.refresh()
