"""docs/keys.md: every command on the page works, as it is written and in the order of the page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kensho.testing.client import FIRST, model_files

PAGE = Path(__file__).parents[2] / "docs" / "keys.md"


@pytest.mark.real
def test_the_commands_of_the_page_work_as_they_are_written(ram: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) > 8
    (ram / "model").mkdir()
    for name, data in model_files(FIRST).items():
        (ram / "model" / name).write_bytes(data)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "set -eux\n" + "".join(blocks)
    environment = {"PATH": path, "HOME": str(ram), "LANG": "C.UTF-8"}
    done = subprocess.run(["bash", "-c", script], cwd=ram, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((ram / "repo" / "metadata").glob("*.root.json"))) == 8
    assert not list((ram / "keys").glob("root.pem"))
    assert "voice 1.2" in done.stdout
