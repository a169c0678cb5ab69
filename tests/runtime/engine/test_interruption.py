"""A stream that is interrupted goes on as if it had not been: on a real session, to the last bit of its logits."""

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kensho.base.inference import Sampling
from kensho.runtime.cache.header import GraphHeader
from kensho.runtime.engine.faults import Faults
from kensho.runtime.engine.generation import Generator
from kensho.runtime.engine.kv_cache import KvCache
from kensho.runtime.engine.sampling import choose
from kensho.runtime.engine.session import Session, Tier
from kensho.runtime.hosts.frames import Generate

pytestmark = pytest.mark.real
IDS = np.random.default_rng(3).integers(0, 4096, 40).tolist()
Compiled = tuple[Path, GraphHeader]


def _load(graph: Path, model: Path, tier: Tier) -> Session:
    return Session.load(graph, model, tier=tier, threads=1)


class Watched:
    """A generator on a real session, which writes down every row of logits that a token was chosen from."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[np.ndarray] = []
        self.fed: list[int] = []
        append = session.append

        def fed(ids: Sequence[int]) -> np.ndarray:
            self.fed.append(len(ids))
            return append(ids)

        def seen(logits: np.ndarray, position: int, sampling: Sampling) -> int:
            self.rows.append(logits.copy())
            return choose(logits, position, sampling)

        monkeypatch.setattr("kensho.runtime.engine.generation.choose", seen)
        monkeypatch.setattr(session, "append", fed)
        self._generator = Generator(session, Faults())

    def run(
        self, prompt: Sequence[int], accepted: Sequence[int] = (), *, tokens: int = 99, pieces: int = 99
    ) -> tuple[list[int], np.ndarray]:
        """What was made, and the logits, until so many tokens or pieces of the prefill have been made."""
        self.rows.clear()
        self.fed.clear()
        made: list[int] = []
        self._generator.run(
            Generate(1, tuple(prompt), tuple(accepted), Sampling(max_tokens=12, temperature=0.8, seed=5)),
            is_cancelled=lambda: len(made) >= tokens or len(self.fed) >= pieces,
            on_token=made.append,
        )
        return made, np.array(self.rows)


PROMPT = [*IDS, *IDS[::-1]]
URGENT = IDS[:7]


@pytest.mark.parametrize("tier", ["raw", "mapped", "packed"])
@pytest.mark.parametrize(("tokens", "unseen"), [(1, 0), (1, 1), (6, 0), (6, 1), (6, 3), (6, 6)])
def test_an_interrupted_stream_goes_on_with_the_same_ids_and_logits_bit_for_bit(
    tier: Tier,
    tokens: int,
    unseen: int,
    compiled_tiny: Compiled,
    raw_graph: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caches: weakref.WeakSet[KvCache],
) -> None:
    """`unseen`: tokens that the engine had made and nobody has got."""
    graph = raw_graph if tier == "raw" else compiled_tiny[0]
    whole, rows = Watched(_load(graph, tiny_model, tier), monkeypatch).run(PROMPT)
    engine = Watched(_load(graph, tiny_model, tier), monkeypatch)
    one = len(caches)
    urgent, urgent_rows = engine.run(URGENT)
    assert engine.run(PROMPT, tokens=tokens)[0] == whole[:tokens]
    again, again_rows = engine.run(URGENT)
    assert (again, (again_rows == urgent_rows).all()) == (urgent, True)
    assert len(caches) == one + 1
    known = tokens - unseen
    rest, rest_rows = engine.run(PROMPT, whole[:known])
    assert rest == whole[known:]
    assert (rest_rows == rows[known:]).all()
    is_another = unseen == 6  # nothing was handed out: it may be another request with this prompt
    assert set(engine.fed) == ({80, 1} if is_another else {1})
    assert len(caches) == one + is_another


def test_otherwise_the_last_bits_would_differ(
    raw_graph: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above would see on the raw tier if the stream paid a prefill."""
    whole, rows = Watched(_load(raw_graph, tiny_model, "raw"), monkeypatch).run(PROMPT)
    rest_rows = Watched(_load(raw_graph, tiny_model, "raw"), monkeypatch).run(PROMPT, whole[:6])[1]
    assert not (rest_rows == rows[6:]).all()


@pytest.mark.parametrize("tier", ["raw", "mapped", "packed"])
@pytest.mark.parametrize("is_other_between", [False, True])
def test_a_prefill_that_was_interrupted_goes_on_with_its_next_piece_and_the_same_bits(
    tier: Tier,
    is_other_between: bool,
    compiled_tiny: Compiled,
    raw_graph: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kensho.runtime.engine.session.PIECE_TOKENS", 32)
    graph = raw_graph if tier == "raw" else compiled_tiny[0]
    plain = _load(graph, tiny_model, tier)
    prompt = [*PROMPT, *PROMPT[:5]]
    at_once = plain.append(prompt)  # its pieces are the session's own
    engine = Watched(_load(graph, tiny_model, tier), monkeypatch)
    whole, rows = engine.run(prompt)
    assert (rows[0] == at_once).all()
    engine.run(URGENT)  # overwrites it
    assert engine.run(prompt, pieces=2)[0] == []
    assert engine.fed == [32, 32]
    if is_other_between:
        engine.run(URGENT)
    made, made_rows = engine.run(prompt)
    assert engine.fed[:2] == [21, 1]
    assert made == whole
    assert (made_rows == rows).all()
