"""Which files of a folder are a model to be published, and whether it looks like one. Reads names and small files only.

Published: all regular files at any depth, in the order of their paths. Left out: names that begin with a dot, files
and folders alike (.git, .cache, .gitattributes: tools' own). Links to files inside the folder are published as what
they point to. Refused, each with one ModelError: a link that leaves the folder or stands for a folder, a socket or
device, a name that is not safe on every system, too many files.

A model is config.json with *.safetensors, or any *.onnx, or any *.gguf; every shard that an index names must be there.
"""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NoReturn

from kensho.base.errors import ConfigError, ModelError, TrustError
from kensho.base.ids import check_file_paths
from kensho.base.structs import Struct
from kensho.delivery.manifest import MAX_FILES

MAX_JSON_BYTES = 64 << 20
"""Guess: larger than any index of shards seen (some MB)."""


class SourceFile(Struct):
    path: str
    """Relative, `/` between parts: its name in the model."""
    location: Path
    """The regular file to read; no link."""


def list_model_files(folder: Path) -> list[SourceFile]:
    """The files to publish, sorted by path. ModelError if the folder is no model, ConfigError if it cannot be read."""
    files: list[SourceFile] = []
    with reading(str(folder)):
        if not folder.is_dir():
            _refuse(f"{folder} is not a folder", "give the folder that has the model's config.json")
        folder = folder.resolve()
        _collect(folder, folder, files)
    files.sort(key=lambda file: file.path)
    try:
        check_file_paths([file.path for file in files])
    except TrustError as error:
        raise ModelError(error.message, advice="rename the file") from error
    _check_is_model(folder, {file.path: file.location for file in files})
    return files


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Translates OSError into ConfigError: what is to be published belongs to the person who asked for it."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{what} cannot be read: {reason}", advice="give this user the right to read it") from error


def _collect(folder: Path, root: Path, files: list[SourceFile]) -> None:
    for path in sorted(folder.iterdir()):
        name = path.relative_to(root).as_posix()
        if path.name.startswith("."):
            continue
        location = _resolve(path, name)
        if not location.is_relative_to(root):
            _refuse(f"{name} is a link that leaves the folder", "copy the model without links: cp -rL")
        if not location.exists():
            _refuse(f"{name} is a link to nothing", "get the file it should point to")
        kind = location.stat().st_mode
        if stat.S_ISDIR(kind) and not path.is_symlink():
            _collect(path, root, files)
        elif stat.S_ISREG(kind):
            files.append(SourceFile(name, location))
        else:
            _refuse(f"{name} is neither a file nor a folder", "remove it, or copy the model without links: cp -rL")
        if len(files) > MAX_FILES:
            _refuse(f"{root} has more than {MAX_FILES} files", "give the folder of one model")


def _resolve(path: Path, name: str) -> Path:
    try:
        return path.resolve()
    except RuntimeError:  # Python before 3.13 says so of links in a circle
        _refuse(f"{name} is a link to itself", "remove it")


def _check_is_model(folder: Path, files: dict[str, Path]) -> None:
    kinds = {PurePosixPath(path).suffix for path in files}
    if ".safetensors" in kinds and "config.json" in files:
        _read_object(files["config.json"], "config.json")
    elif not kinds & {".onnx", ".gguf"}:
        _refuse(
            f"{folder} is not a model: it has neither config.json with *.safetensors, nor *.onnx, nor *.gguf",
            "give the folder that has these files",
        )
    for path, location in files.items():
        if path.endswith(".safetensors.index.json"):
            shards = _read_object(location, path).get("weight_map")
            if not isinstance(shards, dict):
                _refuse(f"{path} has no weight_map", "get the file again from where it came from")
            beside = PurePosixPath(path).parent
            for shard in set(map(str, shards.values())):
                if str(beside / shard) not in files:
                    _refuse(f"{path} names {shard[:200]!r}, which is missing", "download the whole model")


def _read_object(location: Path, path: str) -> dict[str, object]:
    with reading(path), location.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    try:
        value = json.loads(data.decode("utf-8")) if len(data) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        _refuse(f"{path} is not a JSON object", "get the file again from where it came from")
    return value


def _refuse(message: str, advice: str) -> NoReturn:
    raise ModelError(message, advice=advice)
