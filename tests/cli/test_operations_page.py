"""docs/operations.md tells no lies: its commands are run as they stand, in their order."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest

from kensho.app.status import State
from kensho.cli import exits
from kensho.testing.client import FIRST, SECOND, model_files
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.real

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_every_command_of_the_page_works_as_written(tmp_path: Path) -> None:
    world = SimulatedRepository(tmp_path / "world", now=datetime.now(UTC))
    world.publish("voice", "1.0", model_files(FIRST))
    (tmp_path / "1.root.json").write_bytes(world.root)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 6
    script = "\n".join(["set -eu", *blocks])
    env = {**os.environ, "URL": world.folder.as_uri(), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    # The publisher's second version comes before the first pull without names.
    head, tail = script.split("\nkensho pull\n", 1)
    done = subprocess.run(["sh", "-c", head], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    world.publish("voice", "2.0", model_files(SECOND))
    rest = f'set -eu\nexport KENSHO_STORE="$PWD/store"\nkensho pull\n{tail}'
    done = subprocess.run(["sh", "-c", rest], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "voice is 1.0 again" in done.stdout
    assert "voice is held at 1.0" in done.stdout
    assert done.stdout.count("voice 2.0: updated") == 2


def test_the_page_names_every_exit_code_and_every_state() -> None:
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    assert codes == {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    for state in get_args(State):
        assert f"`{state}`" in PAGE
