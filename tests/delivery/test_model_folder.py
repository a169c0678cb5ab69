"""kensho.delivery.model_folder: what is published, and what is no model."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kensho.base.errors import ConfigError, ModelError
from kensho.delivery.model_folder import list_model_files


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


def names(folder: Path) -> list[str]:
    return [file.path for file in list_model_files(folder)]


def test_all_regular_files_are_published_and_hidden_ones_are_not(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / ".gitattributes").write_text("")
    (folder / "assets").mkdir()
    (folder / "assets" / "b.txt").write_text("")
    assert names(folder) == ["assets/b.txt", "config.json", "model.safetensors"]


def test_a_link_inside_the_folder_is_published_as_what_it_points_to(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "copy.bin").symlink_to("model.safetensors")
    found = {file.path: file.location for file in list_model_files(folder)}
    assert found["copy.bin"] == (folder / "model.safetensors").resolve()


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda m: (m / "passwd").symlink_to("/etc/passwd"), "leaves the folder"),
        (lambda m: (m / "up").symlink_to(".."), "leaves the folder"),
        (lambda m: (m / "dead").symlink_to("nothing"), "link to nothing"),
        (lambda m: (m / "loop").symlink_to("loop"), "link to"),
        (lambda m: ((m / "d").mkdir(), (m / "e").symlink_to("d")), "neither a file"),
        (lambda m: os.mkfifo(m / "pipe"), "neither a file"),
        (lambda m: (m / "CONFIG.json").write_text("{}"), "clash"),
        (lambda m: (m / "a:b").write_text(""), "not allowed"),
        (lambda m: (m / "con.txt").write_text(""), "not allowed"),
        (lambda m: (m / "config.json").unlink(), "is not a model"),
        (lambda m: (m / "model.safetensors").unlink(), "is not a model"),
        (lambda m: (m / "config.json").write_text("{"), "config.json is not a JSON object"),
        (lambda m: (m / "config.json").write_bytes(b"\xff"), "config.json is not a JSON object"),
        (lambda m: (m / "model.safetensors.index.json").write_text("{}"), "no weight_map"),
        (
            lambda m: (m / "model.safetensors.index.json").write_text('{"weight_map":{"a":"model-2.safetensors"}}'),
            "which is missing",
        ),
    ],
)
def test_what_cannot_be_published_is_refused_in_one_sentence(
    spoil: Callable[[Path], object], word: str, tmp_path: Path
) -> None:
    folder = model(tmp_path / "m")
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        list_model_files(folder)
    assert word in caught.value.message
    assert caught.value.advice


def test_an_empty_a_missing_and_an_unreadable_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for folder in ("empty", "missing", "file"):
        with pytest.raises(ModelError):
            list_model_files(tmp_path / folder)
    with pytest.raises(ConfigError, match="cannot be read"):
        list_model_files(tmp_path / ("x" * 300))


def test_onnx_and_gguf_models_need_no_config(tmp_path: Path) -> None:
    for name in ("onnx/model.onnx", "model.gguf"):
        path = tmp_path / name.rpartition(".")[2] / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        assert names(tmp_path / name.rpartition(".")[2]) == [name]
