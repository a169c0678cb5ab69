"""The command line's frame, without a store."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kensho.cli.main import main
from kensho.cli.usage import COMMANDS


def summary_of(text: str) -> dict[str, object]:
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["type"] for line in lines].count("summary") == 1
    assert lines[-1]["type"] == "summary"
    return dict(lines[-1])


@pytest.mark.parametrize("argv", [[], ["--json"], ["nonsense"], ["pull", "--nonsense"], ["publish"], ["--store"]])
def test_a_usage_error_is_exit_code_2_without_a_traceback(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err or captured.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert COMMANDS[command] in capsys.readouterr().out


def test_global_options_stand_before_or_after_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (
        ["--json", "--store", str(tmp_path / "s"), "status"],
        ["status", "--store", str(tmp_path / "s"), "--json"],
    ):
        assert main(argv) == 1
        assert summary_of(capsys.readouterr().out)["state"] == "storage-missing"


def test_a_wrong_setting_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.toml"
    config.write_text("connektions = 3\n")
    assert main(["--json", "--config", str(config), "status"]) == 2
    summary = summary_of(capsys.readouterr().out)
    assert summary["error"] == "usage" and "connektions" in str(summary["message"]) and summary["advice"]


@pytest.mark.real
def test_help_and_version_import_nothing_heavy() -> None:
    program = (
        "import sys; from kensho.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'numpy', 'onnxruntime', 'onnx', 'tuf', 'urllib3', 'msgspec', 'jinja2', 'rich', 'asyncio'}\n"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else code)\n"
    )
    for argument in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", program, argument], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
