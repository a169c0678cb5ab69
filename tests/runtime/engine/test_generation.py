import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_model import VOCABULARY, Arithmetic, InPieces, run

from kensho.base.errors import ConfigError, EngineError, WrongNumbers
from kensho.base.inference import Sampling
from kensho.runtime.engine.faults import Faults
from kensho.runtime.engine.generation import Generator

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


def test_a_fault_is_asked_for_before_each_step() -> None:
    class Counting(Faults):
        steps = 0

        def before_step(self) -> None:
            self.steps += 1

    model, faults = InPieces(), Counting()
    run(Generator(model, faults), [1] * 40, (), Sampling(max_tokens=5))
    assert (model.appended, faults.steps) == ([16, 16, 8, 1, 1, 1, 1], 7)
