from pathlib import Path

import pytest

from kensho.base.errors import UsageError
from kensho.settings import load_settings

ENV = {"HOME": "/home/someone", "PATH": "/bin", "SECRET": "x"}


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    config = tmp_path / "kensho.toml"
    config.write_text('store = "/from/file"\nconnections = 2\nopen_s = 3\n')
    assert load_settings({}, ENV).store == Path("/home/someone/.local/share/kensho")
    assert load_settings({}, {**ENV, "XDG_DATA_HOME": "/data"}).store == Path("/data/kensho")
    assert load_settings({"config": config}, ENV).store == Path("/from/file")
    env = {**ENV, "KENSHO_STORE": "/from/env"}
    assert load_settings({"config": config}, env).store == Path("/from/env")
    settings = load_settings({"config": config, "store": "/from/line", "connections": None}, env)
    assert (settings.store, settings.connections, settings.open_s) == (Path("/from/line"), 2, 3)


@pytest.mark.parametrize(
    "line",
    ["conections = 3", "connections = 0", "connections = 2.5", "connections = true", 'tier = "fast"', "network = 1",
     'open_s = "60"', "store = 3", "not toml", "max_context = 1e9", "http_port = 70000", "http_names = [1]",
     'http_names = "kiosk"', "http_host = 1", 'config = "c.toml"'],
)  # fmt: skip
def test_a_wrong_setting_is_refused_by_name_with_advice(line: str, tmp_path: Path) -> None:
    config = tmp_path / "kensho.toml"
    config.write_text(line)
    with pytest.raises(UsageError) as caught:
        load_settings({"config": config}, ENV)
    assert caught.value.advice


def test_the_settings_say_which_file_they_came_from(tmp_path: Path) -> None:
    config = tmp_path / "kensho.toml"
    config.write_text('http_names = ["kiosk-7"]\n')
    settings = load_settings({}, {**ENV, "KENSHO_CONFIG": str(config)})
    assert (settings.config, settings.http_names) == (str(config), ("kiosk-7",))
    assert load_settings({}, ENV).config == ""


def test_a_missing_or_huge_file_is_a_clear_refusal(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_settings({"config": tmp_path / "none"}, ENV)
    (tmp_path / "huge").write_bytes(b"#" * 100_000)
    with pytest.raises(UsageError, match="64 KiB"):
        load_settings({"config": tmp_path / "huge"}, ENV)


def test_child_processes_get_chosen_variables_only() -> None:
    assert load_settings({}, ENV).child_env == {"PATH": "/bin", "HOME": "/home/someone"}


def test_proxy_comes_from_the_environment() -> None:
    assert load_settings({}, {**ENV, "https_proxy": "http://proxy:3128"}).proxy == "http://proxy:3128"


def test_tasks_are_lists_of_models(tmp_path: Path) -> None:
    config = tmp_path / "kensho.toml"
    config.write_text('[tasks]\nchat = ["voice-2", "dialogue"]\n')
    assert load_settings({"config": config}, {}).tasks == {"chat": ("voice-2", "dialogue")}
    for bad in (
        '[tasks]\n"my chat" = ["dialogue"]',
        'tasks = "chat"',
        "[tasks]\nchat = []",
        '[tasks]\nchat = "dialogue"',
        "[tasks]\nchat = [1]",
    ):
        config.write_text(bad)
        with pytest.raises(UsageError, match="tasks"):
            load_settings({"config": config}, {})


def test_defaults_of_a_command_give_way_to_the_file(tmp_path: Path) -> None:
    config = tmp_path / "kensho.toml"
    config.write_text("scrub = false\n")
    loaded = load_settings({"config": str(config)}, ENV, defaults={"scrub": True, "warm_up": True})
    assert (loaded.scrub, loaded.warm_up) == (False, True)
