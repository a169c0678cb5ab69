"""A real daemon in a process of its own, on a store with the demonstration model, and commands that speak to it."""

import atexit
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from kensho.cli.main import main
from kensho.delivery.keys import keygen
from kensho.demo.stage import embedded_model, questions

QUESTION = questions("1.0.0")[0]


@cache
def _original() -> Path:
    """Made once for a run of the tests: a store with the demonstration model, pulled and compiled."""
    folder = Path(tempfile.mkdtemp(prefix="kensho-daemon-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    keygen(folder / "keys")
    repository, store = folder / "repository", folder / "store"
    argv = ["publish", str(embedded_model() / "v1"), "--model", "demo", "--version", "1.0.0", "--quiet"]
    assert main([*argv, "--to", str(repository), "--keys", str(folder / "keys")]) == 0
    root = repository / "metadata" / "1.root.json"
    assert main(["init", "--from", repository.as_uri(), "--root", str(root), "--store", str(store), "--quiet"]) == 0
    assert main(["pull", "demo", "--store", str(store), "--quiet"]) == 0
    assert main(["warm", "demo", "--store", str(store), "--quiet"]) == 0
    return store


def make_store(folder: Path) -> Path:
    """A store with the demonstration model, compiled for this machine."""
    subprocess.run(["cp", "-a", _original(), folder / "store"], check=True)  # keeps what is one file by two names
    return folder / "store"


class Daemon:
    """`kensho serve` until it ends. `url` once it answers."""

    def __init__(self, store: Path, *options: str, open_files: tuple[int, int] | None = None) -> None:
        """`open_files`: its soft and hard limit."""
        self.store = store
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kensho", "serve", "--port", "0", "--json", "--store", str(store), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if open_files:  # the interpreter needs longer to start than this
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, open_files)
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        self.url = str(json.loads(line)["url"])

    def kensho(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        """A command on its store, as a person would run it."""
        return kensho(self.store, *argv)

    def loaded(self) -> list[dict[str, Any]]:
        """What it says that it has loaded."""
        summary = json.loads(self.kensho("status", "--json").stdout.splitlines()[-1])
        assert summary["daemon"] is not None, "no daemon answered"
        return list(summary["daemon"]["loaded"])

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code; every process that it started is gone within seconds."""
        children = self.children() if self.process.poll() is None else []
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive
        return self.process.returncode


def kensho(store: Path, *argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "kensho", "--store", str(store), *argv],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "KENSHO_CONFIG": ""},
    )  # fmt: skip


@contextmanager
def running(store: Path, *options: str, open_files: tuple[int, int] | None = None) -> Iterator[Daemon]:
    daemon = Daemon(store, *options, open_files=open_files)
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.stop()
        for pipe in (daemon.process.stdout, daemon.process.stderr):
            if pipe:
                pipe.close()
