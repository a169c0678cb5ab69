"""keygen, publish, resign, prune: what a publisher types, and the keys of the summaries."""

import json
from pathlib import Path

import pytest

from kensho.cli.main import main
from kensho.testing.client import model_files, weights

pytestmark = pytest.mark.store


class Shell:
    """Commands on a repository; each returns the summary."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._capsys = folder, capsys

    def run(self, *words: str) -> dict[str, object]:
        main(["--json", "--store", str(self._folder / "store"), *words])
        summary: dict[str, object] = json.loads(self._capsys.readouterr().out.splitlines()[-1])
        return summary

    def on_repo(self, command: str, *words: str) -> dict[str, object]:
        return self.run(command, "--to", str(self._folder / "repo"), *words)

    def publish(self, version: str, *words: str, seed: int = 1) -> dict[str, object]:
        source = self._folder / f"model{seed}"
        source.mkdir(exist_ok=True)
        for name, data in model_files(weights(seed)).items():
            (source / name).write_bytes(data)
        return self.on_repo("publish", str(source), "--model", "voice", "--version", version, *self.keys, *words)

    @property
    def keys(self) -> list[str]:
        return ["--keys", str(self._folder / "keys")]


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    made = Shell(tmp_path, capsys)
    found = made.run("keygen", str(tmp_path / "keys"))
    assert sorted(found["key_ids"]) == ["root", "snapshot", "targets", "timestamp"]  # type: ignore[call-overload]
    assert made.publish("1.0")["ok"]
    return made


def test_a_release_is_rolled_out_in_steps_and_never_changed(shell: Shell) -> None:
    assert shell.publish("2.0", "--rollout", "10", seed=2)["bytes_packed"] != 0
    further = shell.publish("2.0", "--rollout", "50", seed=2)
    assert (further["ok"], further["bytes_packed"]) == (True, 0)
    other = shell.publish("2.0", "--rollout", "60", seed=3)
    assert (other["ok"], other["code"], other["error"]) == (False, 1, "config")
    assert shell.publish("3.0", "--rollout", "101", seed=3)["error"] == "config"


def test_resigning_says_which_versions_were_signed(shell: Shell) -> None:
    assert shell.on_repo("resign", *shell.keys)["versions"] == {"timestamp": 2}
    rotated = shell.on_repo("resign", *shell.keys, "--rotate", "snapshot")
    assert rotated["versions"] == {"root": 2, "snapshot": 2, "timestamp": 3}
    assert shell.on_repo("resign", *shell.keys, "--rotate", "nobody")["code"] == 2


def test_pruning_says_what_it_freed_and_what_waits(shell: Shell) -> None:
    shell.publish("2.0", seed=2)
    first = shell.on_repo("prune", "--keep", "1", *shell.keys)
    assert (first["ok"], first["bytes_freed"]) == (True, 0)
    assert first["removed"] == [{"model": "voice", "version": "1.0"}]
    assert first["waiting_until"] is not None
    now = shell.on_repo("prune", "--keep", "1", "--grace", "0")
    assert now["bytes_freed"] == first["bytes_waiting"] != 0
    assert shell.on_repo("prune", "--keep", "0")["error"] == "config"
