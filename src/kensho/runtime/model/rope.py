"""Rotary position embedding: its settings in both spellings of config.json, and its tables. Pure.

transformers 4 writes `rope_theta`, `rope_local_base_freq` and `rope_scaling`; transformers 5 writes `rope_parameters`,
either per layer kind (`{"full_attention": {...}, "sliding_attention": {...}}`) or flat, in which case it speaks about
the full-attention layers. When both spellings are present they must agree.
"""

import numpy as np
from numpy.typing import NDArray

from kensho.base.errors import ModelError
from kensho.base.structs import Struct
from kensho.runtime.model.config_reader import ConfigReader

KINDS = ("full_attention", "sliding_attention")
_MAX_THETA = 1e12
_MAX_FACTOR = 1e6
_TYPES = ("default", "linear")
_LLAMA_TYPES = (*_TYPES, "llama3")


class Rope(Struct):
    """Rotation of pair i at position p by the angle p / factor / theta ** (2 i / head_dim)."""

    theta: float
    factor: float = 1.0
    """Linear scaling ("position interpolation"); 1 = none."""
    bands: "Bands | None" = None
    """The factor is for slow pairs only (Llama 3); None = for all of them."""

    @property
    def name(self) -> str:
        """Exact, for the names of the tables: two ropes that differ in the last digit are two."""
        numbers = [self.theta, self.factor]
        if self.bands:
            numbers += [self.bands.low, self.bands.high, self.bands.positions]
        return ".".join(map(repr, numbers))


class Bands(Struct):
    """Llama 3: a pair that turns fewer than `low` times in `positions` is slowed down by the factor, one that turns
    more than `high` times is left alone, between them the two are blended."""

    low: float
    high: float
    positions: int
    """The context that the model was first trained for."""


def read_rope(config: ConfigReader, *, theta: float) -> Rope:
    """The rope of a model that has one for all layers, llama3 scaling included. `theta` is the family's default."""
    old = _rope(config.section("rope_scaling"), _theta(config, "rope_theta"), theta, _LLAMA_TYPES)
    parameters = config.section("rope_parameters")
    if parameters is None:
        return old
    new = _rope(parameters, None, theta, _LLAMA_TYPES)
    _refuse_disagreement(config, ("rope_theta", "rope_scaling"), old, new)
    return new


def read_ropes(config: ConfigReader, *, full_theta: float, local_theta: float) -> tuple[Rope, Rope]:
    """(full, sliding) rope of a model whose layer kinds differ. The thetas are the family's defaults."""
    old_full = _rope(config.section("rope_scaling"), _theta(config, "rope_theta"), full_theta)
    old_local = _rope(None, _theta(config, "rope_local_base_freq"), local_theta)
    parameters = config.section("rope_parameters")
    if parameters is None:
        return old_full, old_local
    if any(parameters.value(kind) is not None for kind in KINDS):
        full = _rope(parameters.section(KINDS[0]), None, full_theta)
        local = _rope(parameters.section(KINDS[1]), None, local_theta)
        parameters.refuse_unread()
    else:
        full, local = _rope(parameters, None, full_theta), old_local
    _refuse_disagreement(config, ("rope_theta", "rope_scaling"), old_full, full)
    _refuse_disagreement(config, ("rope_local_base_freq",), old_local, local)
    return full, local


def rope_tables(rope: Rope, head_dim: int, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(cos, sin), each of shape (positions, head_dim / 2).

    Angles are rounded to float32 as transformers does, so that far positions agree with it.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = _scale((rope.theta**-exponents).astype(np.float32), rope)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies[None, :]
    return np.cos(angles), np.sin(angles)


def _scale(frequencies: NDArray[np.float32], rope: Rope) -> NDArray[np.float32]:
    """The angle per position of each pair. Source: `_compute_llama3_parameters` in transformers 4.57.6."""
    slow = frequencies / np.float32(rope.factor)
    if rope.bands is None:
        return slow
    turns = np.float32(rope.bands.positions / (2 * np.pi)) * frequencies
    share = (turns - np.float32(rope.bands.low)) / np.float32(rope.bands.high - rope.bands.low)
    share = np.clip(share, np.float32(0), np.float32(1))
    scaled: NDArray[np.float32] = (1 - share) * slow + share * frequencies
    return scaled


def _refuse_disagreement(config: ConfigReader, older: tuple[str, ...], old: Rope, new: Rope) -> None:
    if old != new and any(config.value(name) is not None for name in older):
        raise ModelError(
            f"config.json: rope_parameters and {' or '.join(older)} disagree", advice="keep one of the two spellings"
        )


def _theta(config: ConfigReader, name: str) -> float | None:
    return None if config.value(name) is None else config.number(name, 1.0, _MAX_THETA)


def _rope(section: ConfigReader | None, theta: float | None, default: float, types: tuple[str, ...] = _TYPES) -> Rope:
    if section is None:
        return Rope(default if theta is None else theta)
    for name in ("rope_type", "type"):
        section.expect(name, types, "default")
    stated = {section.value("rope_type"), section.value("type")} - {None, "default"}
    section.expect("partial_rotary_factor", (1, 1.0), 1.0)
    own_theta = _theta(section, "rope_theta")
    theta = own_theta if own_theta is not None else theta
    factor = section.number("factor", 1.0, _MAX_FACTOR) if stated else 1.0
    bands = _bands(section) if "llama3" in stated else None
    section.refuse_unread()
    return Rope(default if theta is None else theta, factor, bands)


def _bands(section: ConfigReader) -> Bands:
    bands = Bands(
        section.number("low_freq_factor", 0.0, _MAX_FACTOR),
        section.number("high_freq_factor", 0.0, _MAX_FACTOR),
        section.integer("original_max_position_embeddings", 1, 2**30),
    )
    if bands.low >= bands.high:
        raise ModelError("config.json: low_freq_factor is not below high_freq_factor", advice="export the model again")
    return bands
