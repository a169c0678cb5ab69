"""kensho.testing.tuf_client: the classes of cases of TUF conformance suites, in process and as a program."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import TargetFile
from tuf_suite import NOW, Suite

from kensho.testing.tuf_repository import TOP_LEVEL, TufRepository, new_key

pytestmark = pytest.mark.store

FIRST_REQUESTS = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]


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
