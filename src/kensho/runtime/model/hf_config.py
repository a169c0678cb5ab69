"""From a Hugging Face folder to what the graph builder needs to know: sizes, layer kinds, tensor names and shapes.

`families.FAMILIES` names the architectures whose mathematics is implemented and compared with transformers. All else,
and every unknown setting, is refused by name (UnknownArchitecture): a wrong guess would still produce fluent text.
Reads config.json and the tensor tables, never the weights.
"""

import json
from collections.abc import Callable
from pathlib import Path

from kensho.base.errors import ModelError, UnknownArchitecture
from kensho.base.structs import Struct
from kensho.runtime.model.config_reader import ConfigReader
from kensho.runtime.model.families import read_spec
from kensho.runtime.model.model_spec import HEAD, ModelSpec, expected_tensors
from kensho.runtime.model.safetensors import Tensor, read_tensors

CONFIG = "config.json"
_MAX_CONFIG_BYTES = 1024 * 1024
_WEIGHT_TYPES = ("BF16", "F16", "F32")


class Model(Struct):
    """A folder that was read and found complete."""

    folder: Path
    spec: ModelSpec
    tensors: dict[str, Tensor]


def read_model(folder: Path, on_tensor: Callable[[int, int], None] | None = None) -> Model:
    """The model in `folder`, every tensor's name, shape and type checked. Raises ModelError, UnknownArchitecture.

    `on_tensor(done, total)` is called with 0 and then for each tensor checked. Costs two small reads.
    """
    spec = parse_config(_read_config(folder))
    tensors = read_tensors(folder)
    check_tensors(spec, tensors, on_tensor)
    return Model(folder, spec, tensors)


def parse_config(data: bytes) -> ModelSpec:
    """The description in the bytes of config.json. Pure. Raises ModelError, UnknownArchitecture."""
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"config.json is not valid JSON ({str(error)[:120]})", advice="export the model again"
        ) from error
    if not isinstance(values, dict):
        raise ModelError("config.json is not a JSON object", advice="export the model again")
    config = ConfigReader(values)
    spec = read_spec(config)
    config.refuse_unread()
    return spec


def check_tensors(
    spec: ModelSpec, tensors: dict[str, Tensor], on_tensor: Callable[[int, int], None] | None = None
) -> None:
    """Each expected tensor is there with its shape and a type that can be read, and no tensor is left over."""
    expected = expected_tensors(spec)
    if on_tensor:
        on_tensor(0, len(expected))
    for done, (name, shape) in enumerate(expected.items(), start=1):
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelError(f"tensor {name} is missing", advice="download or export the model again", tensor=name)
        if tensor.shape != shape:
            raise ModelError(
                f"tensor {name} has shape {list(tensor.shape)}, config.json says {list(shape)}",
                advice="config.json and the weights belong to different models; export the model again",
                tensor=name,
            )
        if tensor.dtype not in _WEIGHT_TYPES:
            raise UnknownArchitecture(
                f"tensor {name} has type {tensor.dtype}", advice=f"export the model as {' or '.join(_WEIGHT_TYPES)}"
            )
        if on_tensor:
            on_tensor(done, len(expected))
    # A checkpoint may repeat the tied head; anything else left over (a bias, an adapter) would change the answer.
    if left := sorted(set(tensors) - set(expected) - {HEAD}):
        raise UnknownArchitecture(
            f"tensor {left[0][:80]} has no place in a {spec.family} model",
            advice="merge adapters and export the model again",
        )


def _read_config(folder: Path) -> bytes:
    try:
        with (folder / CONFIG).open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelError(
            f"{folder.name or folder} is not a model folder: {CONFIG} cannot be read ({error.strerror})",
            advice="give the folder that holds config.json, model.safetensors and tokenizer.json",
        ) from error
    if len(data) > _MAX_CONFIG_BYTES:
        raise ModelError(f"{CONFIG} is longer than {_MAX_CONFIG_BYTES} bytes", advice="this is no model's config.json")
    return data
