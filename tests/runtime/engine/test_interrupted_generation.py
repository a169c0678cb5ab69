"""What an interrupted request held is there when it comes back: rules, on a scripted model. On a real one:
`test_interruption`."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_model import VOCABULARY, Arithmetic, Grainy, InPieces, run

from kensho.base.errors import ConfigError, EngineError, WrongNumbers
from kensho.base.inference import Sampling
from kensho.runtime.engine.faults import Faults
from kensho.runtime.engine.generation import Generator
from kensho.runtime.engine.sequences import MAX_OTHERS
from kensho.runtime.hosts.frames import Generate

IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=90)
LONG = [i % VOCABULARY for i in range(100)]
HALF = Sampling(max_tokens=30, temperature=0.7, seed=4)
OTHER = [7, 7, 7]


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
    run(generator, OTHER, (), HALF)  # it is not interrupted any more
    assert model.aside is None


def test_a_token_that_did_not_arrive_is_not_computed_again() -> None:
    model = Grainy()
    generator, made = interrupted(model, LONG, 5)
    run(generator, OTHER, (), HALF)
    model.appended.clear()
    assert run(generator, LONG, made[:4], HALF)[0][0] == made[4]
    assert model.appended == [1] * 25


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
    second += run(generator, LONG[1:], second, HALF, 3)[0]
    first = run(generator, LONG, (), HALF, 5)[0]
    second += run(generator, LONG[1:], second, HALF, 3)[0]  # taken up while the first one is interrupted too
    run(generator, LONG, first, HALF)
    assert model.appended == [*[1] * 3, 100, *[1] * 4, *[1] * 3, *[1] * 25]


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
    faults.arm("nan")
    with pytest.raises(WrongNumbers):
        run(generator, LONG, made, HALF)
    run(generator, LONG, made, HALF)
    assert [count for count in model.appended if count > 1] == [105, 105]


def test_logits_that_cannot_be_had_clear_everything_too() -> None:
    model, faults = Grainy(), Faults()
    generator = Generator(model, faults)
    run(generator, LONG, (), HALF, 5)
    run(generator, OTHER, (), HALF)
    faults.arm("nan")
    with pytest.raises(WrongNumbers):
        generator.logits(OTHER)
    assert model.aside is None


def test_a_request_that_was_cancelled_before_it_began_leaves_nothing_to_keep() -> None:
    model = Grainy()
    generator = Generator(model, Faults())
    assert run(generator, OTHER, (), HALF, 0) == ([], "cancelled")
    run(generator, OTHER, (), HALF)
    assert model.aside is None


def test_the_callers_error_is_nobody_elses_loss() -> None:
    model = Grainy()
    generator, made = interrupted(model, LONG, 5)
    run(generator, OTHER, (), HALF)
    with pytest.raises(ConfigError):
        run(generator, [VOCABULARY], (), HALF)
    model.appended.clear()
    run(generator, LONG, made, HALF)
    assert model.appended == [1] * 25


@pytest.mark.parametrize(("tokens", "fits"), [(94, True), (95, False)])
def test_without_memory_to_spare_both_sequences_share_one_context(tokens: int, fits: bool) -> None:
    """The interrupted one holds 104 ids, the other one 2 and its tokens but the last."""
    model = Arithmetic(is_roomy=False)
    generator, _ = interrupted(model, LONG, 5)
    made, reason = run(generator, OTHER, (), Sampling(max_tokens=tokens))
    assert (len(made), reason, model.aside is not None) == (tokens, "length", fits)
    made, reason = run(generator, OTHER, (), Sampling(max_tokens=999))
    assert (len(made), reason, model.aside, model.most) == (198, "context", None, 200)


@pytest.mark.parametrize("prompt", [[9] * 97, [*LONG[:95], 9, 9]], ids=["nothing in common", "much in common"])
def test_what_does_not_fit_beside_an_interrupted_one_takes_its_place(prompt: list[int]) -> None:
    model = Arithmetic(is_roomy=False)
    generator, _ = interrupted(model, LONG, 5)
    run(generator, prompt, (), HALF)
    assert (model.aside, model.most) == (None, 126)
    generator, _ = interrupted(model, LONG, 5)
    run(generator, prompt[1:], (), Sampling(max_tokens=1))
    assert model.aside is not None


def test_with_memory_to_spare_each_has_a_context() -> None:
    model = Arithmetic()
    generator, made = interrupted(model, LONG, 5)
    whole, reason = run(generator, OTHER, (), Sampling(max_tokens=999))
    assert (len(whole), reason, model.most) == (198, "context", 304)
    model.appended.clear()
    run(generator, LONG, made, HALF)
    assert model.appended == [1] * 25


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
    run(generator, [*LONG[:80], 7, 8], (), Sampling(max_tokens=1))
    run(generator, OTHER, (), Sampling(max_tokens=1))
    run(generator, [*LONG[:80], 7, 9], (), Sampling(max_tokens=1))
    assert model.appended == [2, 1, 3, 82]
    model.appended.clear()
    run(generator, LONG, made, HALF)
    assert model.appended == [1] * 25


def test_the_longer_of_two_beginnings_is_used() -> None:
    model = Arithmetic()
    generator, _ = interrupted(model, LONG[:70], 1)
    generator.logits(LONG[:90])
    model.appended.clear()
    run(generator, LONG, (), Sampling(max_tokens=1))
    assert model.appended == [10]


def test_the_same_prompt_again_is_another_request() -> None:
    """As long as nothing was handed out nobody can say whose it is, and both get the logits that were computed."""
    model = Grainy()
    generator, made = interrupted(model, LONG, 5)
    model.appended.clear()
    run(generator, LONG, (), Sampling(max_tokens=1))
    assert model.appended == []
    run(generator, LONG, made, HALF)
    assert model.appended == [1] * 25


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_short_prompt_is_one_and_the_same_computation_whoever_was_interrupted(tokens: int) -> None:
    """Canaries."""
    canary = LONG[:16]
    whole, _ = run(Generator(Grainy(), Faults()), canary, (), HALF)
    model = Grainy()
    generator, _ = interrupted(model, canary, tokens)
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
