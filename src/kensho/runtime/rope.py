"""Rotary position embedding: its settings in both spellings of config.json, and its tables. Pure.

transformers 4 writes `rope_theta`, `rope_local_base_freq` and `rope_scaling`; transformers 5 writes `rope_parameters`,
either per layer kind (`{"full_attention": {...}, "sliding_attention": {...}}`) or flat, in which case it speaks about
the full-attention layers. When both spellings are present they must agree.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kensho.base.errors import ModelError
from kensho.runtime.config_reader import ConfigReader

KINDS = ("full_attention", "sliding_attention")
_MAX_THETA = 1e12
_MAX_FACTOR = 1e6


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotation of pair i at position p by the angle p / factor / theta ** (2 i / head_dim)."""

    theta: float
    factor: float = 1.0
    """Linear scaling ("position interpolation"); 1 = none."""


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
    frequencies = (rope.theta**-exponents).astype(np.float32) / np.float32(rope.factor)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies[None, :]
    return np.cos(angles), np.sin(angles)


def _refuse_disagreement(config: ConfigReader, older: tuple[str, ...], old: Rope, new: Rope) -> None:
    if old != new and any(config.value(name) is not None for name in older):
        raise ModelError(
            f"config.json: rope_parameters and {' or '.join(older)} disagree", advice="keep one of the two spellings"
        )


def _theta(config: ConfigReader, name: str) -> float | None:
    return None if config.value(name) is None else config.number(name, 1.0, _MAX_THETA)


def _rope(section: ConfigReader | None, theta: float | None, default: float) -> Rope:
    if section is None:
        return Rope(default if theta is None else theta)
    for name in ("rope_type", "type"):
        section.expect(name, ("default", "linear"), "default")
    is_linear = "linear" in (section.value("rope_type"), section.value("type"))
    section.expect("partial_rotary_factor", (1, 1.0), 1.0)
    own_theta = _theta(section, "rope_theta")
    theta = own_theta if own_theta is not None else theta
    factor = section.number("factor", 1.0, _MAX_FACTOR) if is_linear else 1.0
    section.refuse_unread()
    return Rope(default if theta is None else theta, factor)
