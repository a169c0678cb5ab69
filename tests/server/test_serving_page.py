"""docs/serving.md tells no lies: its commands are run as they stand, in their order, and its tables are complete."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from daemon_process import make_store

from kensho.base.events import Service
from kensho.cli.client import SERVED
from kensho.cli.commands.fault import KINDS
from kensho.server.openai_errors import _TABLE
from kensho.settings import Settings, load_settings

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.real
@pytest.mark.needs("curl")
def test_every_command_of_the_page_works_as_written(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    first, *others, last = blocks("sh")
    assert len(others) == 2
    (program,) = blocks("python")
    (tmp_path / "chat.py").write_text(program.replace("8420", port))
    by_python = f"echo; echo BY PYTHON; {sys.executable} chat.py; echo; echo END\n"
    script = "\n".join(["set -eum", first, by_python, *others, last]).replace("8420", port)
    env = {
        **os.environ,
        "KENSHO_STORE": str(make_store(tmp_path)),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "address").read_text().strip() == f"http://127.0.0.1:{port}"
    assert done.stdout.count("Hello! I am the demonstration model") >= 4
    assert "BY PYTHON\nHello! I am the demonstration model" in done.stdout
    assert "daemon: running, 1 model loaded" in done.stdout
    assert "1 failovers" in done.stderr


def test_the_page_names_every_setting_command_fault_service_and_status() -> None:
    names = [name for name in Settings.__annotations__ if name.startswith("http_")]
    for word in (*names, "stop_s", *SERVED, *KINDS, *get_args(Service), *(code for *_, code in _TABLE if code)):
        assert f"`{word}`" in PAGE, word
    for status in {str(status) for _, status, _, _ in _TABLE}:
        assert re.search(rf"^\| .*{status}", PAGE, re.MULTILINE), status
    settings = load_settings({}, {})
    assert (
        f"| {settings.http_port}; 0" in PAGE
        and f'`"{settings.http_host}"`' in PAGE
        and f"| {settings.stop_s} |" in PAGE
    )
