"""README's commands are run as they are written there, and its transcript is what one really sees."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kensho.demo.second_version import copy_model
from kensho.demo.stage import embedded_model
from kensho.demo.story import STEPS

pytestmark = pytest.mark.real

README = (Path(__file__).parents[2] / "README.md").read_text()


def block_after(heading: str, number: int = 0, language: str = "") -> str:
    """The text of a code block of the section."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[number]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_five_commands_publish_pull_and_run_a_model(tmp_path: Path) -> None:
    copy_model(embedded_model() / "v1", tmp_path / "path" / "to" / "folder")
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    kensho = bin_folder / "kensho"
    kensho.write_text(f'#!/bin/sh\nexec {sys.executable} -m kensho "$@"\n')
    kensho.chmod(0o755)
    port = str(free_port())
    # The one thing a person would add: waiting until the server that was started with & listens.
    wait = f"until (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.05; done\n"
    publish = block_after("Publish your own model").replace("8088", port)
    publish = publish.replace("kensho init", wait + "kensho init", 1)
    script = "set -e\n" + publish + "kill %1\n" + block_after("Publish your own model", 1)
    env = {**os.environ, "KENSHO_STORE": str(tmp_path / "store"), "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Hello! I am the demonstration model of Kensho." in done.stdout


def test_the_python_example_runs(tmp_path: Path) -> None:
    from kensho.cli.main import main
    from kensho.server.origin import Origin

    copy_model(embedded_model() / "v1", tmp_path / "folder")
    assert main(["keygen", str(tmp_path / "keys"), "--quiet"]) == 0
    argv = ["publish", str(tmp_path / "folder"), "--model", "my-model", "--version", "1.0.0", "--quiet"]
    assert main([*argv, "--to", str(tmp_path / "repository"), "--keys", str(tmp_path / "keys")]) == 0
    program = block_after("From Python", language="python")
    with Origin(tmp_path / "repository", port=0) as origin:
        program = program.replace("http://127.0.0.1:8088", origin.url)
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.stdout.startswith("Hello! I am the demonstration model of Kensho."), done.stderr


def test_the_transcript_shows_every_step_of_the_story() -> None:
    transcript = block_after("What you will see")
    for number, (_, title, _) in enumerate(STEPS, 1):
        assert f"{number}. {title}" in transcript
    rows = transcript.split("What happened\n")[1].splitlines()
    assert [row.split()[0] for row in rows[: len(STEPS)]] == ["ok"] * len(STEPS)


def test_every_command_that_is_named_exists() -> None:
    from kensho.cli.usage import COMMANDS

    named = set(re.findall(r"`kensho ([a-z]+)", README))
    assert named <= set(COMMANDS)
