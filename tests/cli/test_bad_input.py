"""Bad input: one clear sentence with advice, the exit code of the contract, no traceback, nothing changed."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kensho.cli.main import main
from kensho.demo.second_version import copy_model
from kensho.demo.stage import embedded_model
from kensho.server.origin import Origin

pytestmark = pytest.mark.real


@dataclass
class World:
    """A model folder, a repository with it, and an origin."""

    folder: Path
    model: Path
    keys: Path
    repository: Path
    origin: Origin
    capsys: pytest.CaptureFixture[str]

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def kensho(self, *argv: object) -> dict[str, object]:
        """Run a command in this process; its summary, after checking the rules that hold for every command."""
        code = main(["--json", "--store", str(self.store), *map(str, argv)])
        captured = self.capsys.readouterr()
        lines = [json.loads(line) for line in captured.out.splitlines()]
        summary = dict(lines[-1])
        assert [line["type"] for line in lines].count("summary") == 1
        assert "Traceback" not in captured.out + captured.err
        assert (summary["code"], summary["ok"]) == (code, code == 0)
        if code not in (0, 3):
            assert summary["error"] and summary["message"] and summary["advice"], summary
        return summary

    def publish(self, source: Path, version: str = "1.0.0", repository: Path | None = None) -> dict[str, object]:
        to = repository or self.repository
        return self.kensho("publish", source, "--model", "demo", "--version", version, "--to", to, "--keys", self.keys)

    def init(self) -> None:
        root = self.repository / "metadata" / "1.root.json"
        assert self.kensho("init", "--from", self.origin.url, "--root", root)["code"] == 0


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[World]:
    model, keys, repository = tmp_path / "model", tmp_path / "keys", tmp_path / "repository"
    copy_model(embedded_model() / "v1", model)
    assert main(["keygen", str(keys), "--quiet"]) == 0
    argv = [
        "publish",
        str(model),
        "--model",
        "demo",
        "--version",
        "1.0.0",
        "--to",
        str(repository),
        "--keys",
        str(keys),
    ]
    assert main([*argv, "--quiet"]) == 0
    capsys.readouterr()
    with Origin(repository, port=0) as origin:
        yield World(tmp_path, model, keys, repository, origin, capsys)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_is_no_model_is_refused_before_anything_is_written(world: World) -> None:
    empty, text = world.folder / "empty", world.folder / "text"
    empty.mkdir()
    text.mkdir()
    (text / "notes.txt").write_text("no model")
    for source in (empty, text, world.folder / "missing", world.model / "config.json"):
        before = files_of(world.repository)
        summary = world.publish(source, "2.0.0")
        assert (summary["code"], summary["error"]) == (1, "not_a_model")
        assert files_of(world.repository) == before


@pytest.mark.parametrize("keep", [0, 7, 100, 100_000, -1])
def test_a_truncated_safetensors_file_is_refused_before_anything_is_written(world: World, keep: int) -> None:
    weights = world.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    before = files_of(world.repository)
    summary = world.publish(world.model, "2.0.0")
    assert (summary["code"], summary["error"]) == (1, "not_a_model")
    assert files_of(world.repository) == before


def test_an_unknown_architecture_is_named_when_it_is_to_run(world: World) -> None:
    config = json.loads((world.model / "config.json").read_text())
    (world.model / "config.json").write_text(json.dumps({**config, "model_type": "mamba9"}))
    assert world.publish(world.model, "2.0.0")["code"] == 0
    world.init()
    assert world.kensho("pull", "demo")["code"] == 0
    summary = world.kensho("run", "demo", "Hello")
    assert (summary["code"], summary["error"]) == (1, "unknown_architecture")
    assert "mamba9" in str(summary["message"])


def test_a_port_in_use_is_named(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        summary = world.kensho("origin", world.repository, "--port", taken.getsockname()[1])
    assert (summary["code"], summary["error"]) == (1, "port_in_use")


def test_an_unreachable_origin_leaves_the_installed_model_working(world: World) -> None:
    world.init()
    assert world.kensho("pull", "demo")["code"] == 0
    world.origin.close()
    before = files_of(world.store / "blobs")
    summary = world.kensho("pull", "demo")
    assert (summary["code"], summary["error"]) == (7, "network_unavailable")
    assert files_of(world.store / "blobs") == before
    assert world.kensho("verify", "--full")["damaged"] == []
    assert world.kensho("status")["state"] == "ready"


def test_no_network_allowed_is_said_and_nothing_is_tried(world: World) -> None:
    world.init()
    before = world.origin.requests
    summary = world.kensho("pull", "demo", "--no-network")
    assert (summary["code"], summary["error"]) == (7, "network_not_allowed")
    assert world.origin.requests == before


@pytest.mark.needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_too_little_space_is_told_with_numbers_before_the_first_byte(world: World) -> None:
    """A tmpfs of 1 MB as the store's disk, in a mount namespace of its own."""
    small = world.folder / "small"
    small.mkdir()
    root = world.repository / "metadata" / "1.root.json"
    kensho = f"{sys.executable} -m kensho --json --store {small}/store"
    script = (
        f"mount -t tmpfs -o size=1m tmpfs {small} && {kensho} init --from file://{world.repository} --root {root}"
        f" && {kensho} pull demo; code=$?; find {small}/store -type f -size +100k >&2; exit $code"
    )
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, summary["error"]) == (6, "no_space"), done.stderr
    assert "need" in summary["message"] and "free" in summary["message"]


@pytest.mark.needs("setpriv")
@pytest.mark.skipif(os.geteuid() != 0, reason="giving up root needs root")
def test_a_store_that_may_not_be_written_is_read_and_left_alone(world: World) -> None:
    world.init()
    assert world.kensho("pull", "demo")["code"] == 0
    before = files_of(world.store / "versions")
    world.folder.chmod(0o755)
    for parent in world.folder.parents:
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-m", "kensho"]
    for command, code in ((("status",), 0), (("verify",), 0), (("pull", "demo"), 1), (("repair",), 1)):
        argv = [*nobody, "--json", "--store", str(world.store), *command]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"HOME": "/nonexistent"})
        assert done.returncode == code, (command, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
    assert files_of(world.store / "versions") == before


def test_a_store_on_a_file_or_missing_is_one_sentence(world: World) -> None:
    summary = world.kensho("status")
    assert (summary["code"], summary["state"]) == (1, "storage-missing")
    world.store.write_text("in the way")
    assert world.kensho("pull", "demo")["code"] == 1


def test_a_root_that_is_no_root_is_refused_and_nothing_is_trusted(world: World) -> None:
    bad = world.folder / "root.json"
    for text in ("", "{}", "[]", "not json", (world.repository / "metadata" / "1.targets.json").read_text()):
        bad.write_text(text)
        summary = world.kensho("init", "--from", world.origin.url, "--root", bad)
        assert summary["code"] == 5, text[:20]
    assert not (world.store / "trusted").exists() or not list((world.store / "trusted").glob("*.json"))


def test_a_model_that_is_not_published_or_not_installed_is_named(world: World) -> None:
    world.init()
    summary = world.kensho("run", "demo", "Hello", "--no-network")
    assert (summary["code"], summary["error"]) == (1, "not_installed")
    summary = world.kensho("pull", "dialogue")
    assert summary["code"] == 1 and "dialogue" in str(summary["message"])
    for name in ("../x", "", "a b"):
        assert world.kensho("pull", name)["code"] == 2


def test_the_same_version_twice_is_refused(world: World) -> None:
    before = files_of(world.repository)
    assert world.publish(world.model, "1.0.0")["code"] == 1
    assert files_of(world.repository) == before


def test_keys_are_never_overwritten(world: World) -> None:
    before = files_of(world.keys)
    assert world.kensho("keygen", world.keys)["code"] == 1
    assert files_of(world.keys) == before


def test_a_stranger_with_other_keys_cannot_publish_here(world: World) -> None:
    other = world.folder / "other"
    assert world.kensho("keygen", other)["code"] == 0
    shutil.rmtree(world.keys)
    other.rename(world.keys)
    before = files_of(world.repository)
    assert world.publish(world.model, "2.0.0")["code"] == 5
    assert files_of(world.repository) == before
