from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kensho.base.errors import ConfigError, EngineError, WrongNumbers
from kensho.base.inference import Sampling
from kensho.runtime.engine.faults import Faults
from kensho.runtime.engine.generation import Generator
from kensho.runtime.engine.sequences import MAX_OTHERS
from kensho.runtime.hosts.frames import DoneReason, Generate

VOCABULARY = 50


class Arithmetic:
    """A model whose logits are a function of the whole sequence, and which notices a KV cache that is not it."""

    max_context = 200
    vocab_size = VOCABULARY
    piece_tokens = 200

    def __init__(self, *, is_roomy: bool = True) -> None:
        self.rows: list[tuple[int, ...]] = []
        """What the KV cache holds for each id."""
        self.aside: list[tuple[int, ...]] | None = None
        self.appended: list[int] = []
        self.most = 0
        """Positions in memory at once."""
        self._is_roomy = is_roomy

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        assert 0 < len(ids) <= self.piece_tokens
        self.rows += [self.row(token, index, len(ids)) for index, token in enumerate(ids)]
        assert len(self.rows) <= self.max_context
        self.most = max(self.most, len(self.rows) + len(self.aside or ()))
        self.appended.append(len(ids))
        seed = np.random.default_rng(abs(hash(tuple(self.rows))))
        return seed.standard_normal(VOCABULARY, dtype=np.float32)

    def row(self, token: int, index: int, count: int) -> tuple[int, ...]:
        del index, count
        return (token,)

    def rewind(self, position: int) -> None:
        assert 0 <= position <= len(self.rows)
        del self.rows[position:]

    def branch(self, position: int) -> None:
        assert 0 <= position <= len(self.rows)
        self.rows, self.aside = self.rows[:position], self.rows
        self.most = max(self.most, len(self.rows) + len(self.aside))

    def swap(self) -> None:
        assert self.aside is not None
        self.rows, self.aside = self.aside, self.rows

    def give_back(self) -> None:
        self.aside = None

    def has_memory(self, positions: int) -> bool:
        assert 0 < positions <= self.max_context
        return self._is_roomy


class Grainy(Arithmetic):
    """Its last bits depend on how a position was computed, as a real model's do: alone or with others, and which."""

    def row(self, token: int, index: int, count: int) -> tuple[int, ...]:
        return token, index, count


def run(
    generator: Generator, prompt: Sequence[int], accepted: Sequence[int], sampling: Sampling, cancel_after: int = 10**6
) -> tuple[list[int], DoneReason]:
    made: list[int] = []
    request = Generate(1, tuple(prompt), tuple(accepted), sampling)
    reason = generator.run(request, is_cancelled=lambda: len(made) >= cancel_after, on_token=made.append)
    return made, reason


IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=90)


@settings(max_examples=30, deadline=None)
@given(IDS, IDS, st.integers(0, 30), st.sampled_from([0.0, 0.7]), st.booleans())
def test_a_stream_goes_on_anywhere_as_if_undisturbed(
    before: list[int], prompt: list[int], cut: int, temperature: float, is_same_start: bool
) -> None:
    sampling = Sampling(max_tokens=30, temperature=temperature, seed=4)
    whole, reason = run(Generator(Arithmetic(), Faults()), prompt, (), sampling)
    assert (len(whole), reason) == (30, "length")
    other = Generator(Arithmetic(), Faults())
    run(other, prompt + before if is_same_start else before, (), sampling)  # it has worked on something else
    assert run(other, prompt, whole[:cut], sampling) == (whole[cut:], "length")


def test_prompt_and_accepted_ids_are_prefilled_in_one_step() -> None:
    model = Arithmetic()
    run(Generator(model, Faults()), [1, 2, 3], [4, 5], Sampling(max_tokens=4))
    assert model.appended == [5, 1]


def test_a_stop_id_ends_the_answer_and_is_not_part_of_it() -> None:
    free, _ = run(Generator(Arithmetic(), Faults()), [1], (), Sampling(max_tokens=9))
    sampling = Sampling(max_tokens=9, stop_ids=(free[4],))
    assert run(Generator(Arithmetic(), Faults()), [1], (), sampling) == (free[: free.index(free[4])], "stop")


def test_a_cancelled_request_stops_before_the_next_step() -> None:
    model = Arithmetic()
    made, reason = run(Generator(model, Faults()), [1], (), Sampling(max_tokens=99), cancel_after=3)
    assert (len(made), reason, len(model.appended)) == (3, "cancelled", 3)


def test_the_context_is_filled_to_the_last_position_and_no_further() -> None:
    model = Arithmetic()
    made, reason = run(Generator(model, Faults()), [1] * 190, (), Sampling(max_tokens=99))
    assert (len(made), reason, len(model.rows)) == (11, "context", 200)


def test_a_long_common_beginning_is_not_computed_again() -> None:
    model = Arithmetic()
    generator = Generator(model, Faults())
    prompt = [i % VOCABULARY for i in range(100)]
    run(generator, prompt, (), Sampling(max_tokens=1))
    run(generator, [*prompt, 7, 8], (), Sampling(max_tokens=1))
    assert model.appended == [100, 2]


@pytest.mark.parametrize("ids", [[], [VOCABULARY], [1] * 201], ids=["empty", "unknown id", "too long"])
def test_what_the_model_cannot_take_is_the_callers_error(ids: list[int]) -> None:
    with pytest.raises(ConfigError):
        run(Generator(Arithmetic(), Faults()), ids, (), Sampling())


@pytest.mark.parametrize(("kind", "error"), [("fail", EngineError), ("nan", WrongNumbers), ("oom", MemoryError)])
def test_a_fault_is_for_one_request_and_leaves_a_clean_engine(kind: str, error: type[Exception]) -> None:
    faults = Faults()
    generator = Generator(Arithmetic(), faults)
    expected = run(generator, [1, 2], (), Sampling(max_tokens=5))
    faults.arm(kind)
    with pytest.raises(error):
        run(generator, [1, 2], (), Sampling(max_tokens=5))
    assert run(generator, [1, 2], (), Sampling(max_tokens=5)) == expected


# --- interruptions ---

LONG = [i % VOCABULARY for i in range(100)]
HALF = Sampling(max_tokens=30, temperature=0.7, seed=4)
OTHER = [7, 7, 7]


class InPieces(Grainy):
    piece_tokens = 16


def interrupted(model: Arithmetic, prompt: Sequence[int], tokens: int) -> tuple[Generator, list[int]]:
    """A generator that was taken from a stream after so many tokens, and these."""
    generator = Generator(model, Faults())
    made, reason = run(generator, prompt, (), HALF, tokens)
    assert (len(made), reason) == (tokens, "cancelled")
    return generator, made


def test_a_cancelled_prefill_ends_after_its_piece_and_goes_on_with_the_next() -> None:
    model = InPieces()
    generator = Generator(model, Faults())
    request = Generate(1, tuple(LONG), (), HALF)
    reason = generator.run(request, is_cancelled=lambda: len(model.appended) == 5, on_token=lambda _: None)
    assert (reason, model.appended) == ("cancelled", [16] * 5)
    assert run(generator, LONG, (), HALF) == run(Generator(InPieces(), Faults()), LONG, (), HALF)
    assert model.appended[:8] == [16, 16, 16, 16, 16, 16, 4, 1]


@settings(max_examples=30, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=110),
    pieces=st.integers(0, 7),
    tokens=st.integers(0, 20),
    unseen=st.integers(0, 3),
    others=st.lists(st.tuples(IDS, st.integers(0, 9)), max_size=3),
)
def test_an_interrupted_stream_goes_on_bit_for_bit(
    prompt: list[int], pieces: int, tokens: int, unseen: int, others: list[tuple[list[int], int]]
) -> None:
    """Wherever it is interrupted, also when the last tokens did not arrive, and again on the way."""
    whole, _ = run(Generator(InPieces(), Faults()), prompt, (), HALF)
    model = InPieces()
    generator = Generator(model, Faults())
    if tokens:
        run(generator, prompt, (), HALF, tokens)
    else:  # in its prefill
        request = Generate(1, tuple(prompt), (), HALF)
        generator.run(request, is_cancelled=lambda: len(model.appended) >= pieces, on_token=lambda _: None)
    known = max(0, tokens - unseen)
    for ids, cancel_after in others:
        run(generator, ids, (), Sampling(max_tokens=5), cancel_after or 99)
        model.appended.clear()
        part, _ = run(generator, prompt, whole[:known], HALF, 2)
        assert part == whole[known : known + 2]
        known += 2
        if tokens >= 5 and known < 25:
            assert sum(model.appended) <= 4, "no prefill"
    assert run(generator, prompt, whole[:known], HALF) == (whole[known:], "length")


@settings(max_examples=25, deadline=None)
@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from([LONG[:70], [*LONG[:70], 3, 4], LONG, [2, 3], [9] * 190, OTHER]),
            st.integers(0, 6),
            st.integers(0, 8),
            st.sampled_from(["run", "run", "run", "logits", "fault"]),
        ),
        max_size=14,
    ),
)
def test_requests_and_cancels_in_any_order_are_answered_as_by_a_fresh_generator(
    is_roomy: bool, steps: list[tuple[list[int], int, int, str]]
) -> None:
    model, faults = Arithmetic(is_roomy=is_roomy), Faults()
    model.piece_tokens = 16
    generator = Generator(model, faults)
    sampling = Sampling(max_tokens=25)
    for prompt, known, cancel_after, what in steps:
        if what == "logits":
            model.piece_tokens = 200
            assert (generator.logits(prompt) == Arithmetic().append(prompt)).all()
            model.piece_tokens = 16
            continue
        whole, reason = run(Generator(Arithmetic(), Faults()), prompt, (), sampling)
        if what == "fault":
            faults.arm("fail")
            with pytest.raises(EngineError):
                run(generator, prompt, whole[:known], sampling)
            assert model.aside is None
        elif cancel_after and known + cancel_after < len(whole):
            part = whole[known : known + cancel_after]
            assert run(generator, prompt, whole[:known], sampling, cancel_after) == (part, "cancelled")
        else:
            assert run(generator, prompt, whole[:known], sampling) == (whole[known:], reason)
    assert model.most <= (400 if is_roomy else 200)


def test_what_is_kept_aside_is_given_back_when_it_was_taken_up() -> None:
    model = Grainy()
    generator, made = interrupted(model, LONG, 5)
    run(generator, OTHER, (), HALF)
    assert model.aside is not None
    model.appended.clear()
    run(generator, LONG, made, HALF)
    assert model.appended == [1] * 25
    assert model.aside is None


@pytest.mark.parametrize("others", [MAX_OTHERS, MAX_OTHERS + 1])
def test_what_is_kept_aside_waits_for_so_many_requests_and_no_more(others: int) -> None:
    model = Grainy()
    generator, made = interrupted(model, LONG, 5)
    for number in range(others):
        if number % 2:
            generator.logits(OTHER)
        else:
            run(generator, OTHER, (), HALF)
    assert (model.aside is not None) == (others == MAX_OTHERS)
    model.appended.clear()
    run(generator, LONG, made, HALF)
    assert model.appended[0] == (1 if others == MAX_OTHERS else 105)


def test_of_two_interrupted_streams_the_later_one_is_kept() -> None:
    model = Grainy()
    generator, first = interrupted(model, LONG, 5)
    second, _ = run(generator, LONG[1:], (), HALF, 5)
    run(generator, OTHER, (), HALF)
    model.appended.clear()
    second += run(generator, LONG[1:], second, HALF, 3)[0]
    assert model.appended == [1] * 3
    run(generator, LONG, first, HALF)  # what the second one holds is kept aside for it again
    assert model.appended[3] == 105
    model.appended.clear()
    run(generator, LONG[1:], second, HALF, 3)
    assert model.appended == [1] * 3


def test_a_failure_in_between_clears_everything() -> None:
    model, faults = Grainy(), Faults()
    generator = Generator(model, faults)
    made, _ = run(generator, LONG, (), HALF, 5)
    run(generator, OTHER, (), HALF)
    faults.arm("fail")
    with pytest.raises(EngineError):
        run(generator, OTHER, (), HALF)
    assert model.aside is None
    model.appended.clear()
    run(generator, LONG, made, HALF)
    assert model.appended[0] == 105


def test_the_callers_error_is_nobody_elses_loss() -> None:
    model = Grainy()
    generator, made = interrupted(model, LONG, 5)
    run(generator, OTHER, (), HALF)
    with pytest.raises(ConfigError):
        run(generator, [VOCABULARY], (), HALF)
    model.appended.clear()
    run(generator, LONG, made, HALF)
    assert model.appended == [1] * 25


def test_without_memory_to_spare_both_sequences_share_one_context() -> None:
    model = Arithmetic(is_roomy=False)
    generator, _ = interrupted(model, LONG, 5)
    run(generator, OTHER, (), Sampling(max_tokens=90))
    assert model.aside is not None
    whole, reason = run(generator, OTHER, (), Sampling(max_tokens=999))
    assert (len(whole), reason, model.aside, model.most) == (198, "context", None, 200)
    generator, _ = interrupted(model, LONG, 5)
    run(generator, [9] * 97, (), HALF)  # does not fit beside it: computes where the other did
    assert (model.aside, model.most) == (None, 200)


def test_where_there_is_no_memory_for_a_second_sequence_the_interrupted_one_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(position: int) -> None:
        del position
        raise MemoryError

    model = Grainy()
    generator, made = interrupted(model, LONG, 5)
    monkeypatch.setattr(model, "branch", refuse)
    assert run(generator, OTHER, (), HALF) == run(Generator(Grainy(), Faults()), OTHER, (), HALF)
    model.appended.clear()
    run(generator, LONG, made, HALF)
    assert model.appended[0] == 105


def test_a_beginning_in_common_with_an_interrupted_stream_is_copied_not_taken() -> None:
    model = Grainy()
    generator, made = interrupted(model, LONG, 5)
    model.appended.clear()
    run(generator, [*LONG[:80], 7, 7], (), Sampling(max_tokens=1))
    assert model.appended == [2]
    run(generator, LONG, made, HALF)
    assert model.appended == [2, *[1] * 25]


def test_the_same_prompt_again_is_another_request() -> None:
    """As long as nothing was handed out nobody can say whose it is, and both get the logits that were computed."""
    model = Grainy()
    generator, made = interrupted(model, LONG, 5)
    model.appended.clear()
    run(generator, LONG, (), Sampling(max_tokens=1))
    assert model.appended == []
    run(generator, LONG, made, HALF)
    assert model.appended == [1] * 25


def test_a_short_prompt_is_one_and_the_same_computation_whoever_was_interrupted() -> None:
    """Canaries."""
    canary = LONG[:16]
    whole, _ = run(Generator(Grainy(), Faults()), canary, (), HALF)
    model = Grainy()
    generator, _ = interrupted(model, canary, 4)
    for _ in range(2):
        model.appended.clear()
        assert (generator.logits(canary) == Grainy().append(canary)).all()
        assert run(generator, canary, (), HALF, 4) == (whole[:4], "cancelled")
        assert model.appended == [16, 16, 1, 1, 1]


def test_a_fault_meets_a_request_that_need_not_compute() -> None:
    faults = Faults()
    generator = Generator(Grainy(), faults)
    made, _ = run(generator, LONG, (), HALF, 5)
    faults.arm("nan")
    with pytest.raises(WrongNumbers):
        run(generator, LONG, made[:4], HALF)
