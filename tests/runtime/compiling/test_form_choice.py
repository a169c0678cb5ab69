"""A form is correct first, then precise, then fast; a difference that may be noise decides nothing."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from kensho.base.clock import SystemClock
from kensho.base.errors import CompileFailed
from kensho.runtime.cache.header import FormSpeed, SelfTestVector
from kensho.runtime.compiling.form_choice import Candidate, MeasuredSpeed, Speed, choose, find_form, forms_to_try
from kensho.runtime.graph.graph_int8 import FORMS, Form
from kensho.testing.clock import VirtualClock

U8, S8, U7 = FORMS
VECTOR = SelfTestVector((1,), (2,), (3,), 4)


def _candidate(form: Form, decode_us: int) -> Candidate:
    return Candidate(form, b"", VECTOR, decode_us)


@pytest.mark.parametrize(
    ("u8_us", "s8_us", "chosen"), [(100, 80, S8), (100, 95, U8), (100, 200, U8), (100, 100, U8), (200, 100, S8)]
)
def test_the_faster_form_wins_if_it_is_clearly_faster(u8_us: int, s8_us: int, chosen: Form) -> None:
    assert choose([_candidate(U8, u8_us), _candidate(S8, s8_us)]).form == chosen


def test_a_form_with_a_hopeless_product_is_not_tried() -> None:
    assert forms_to_try({U8: 10, S8: 500, U7: 11}) == [U8, U7]
    assert forms_to_try({U8: 10, S8: 30}) == [U8, S8]
    assert forms_to_try({}) == []


def _find(speed: Speed, answers: dict[Form, Candidate | str]) -> tuple[Form, list[str], list[Form]]:
    tried = []

    def try_form(form: Form) -> Candidate | str:
        tried.append(form)
        return answers[form]

    candidate, speeds = find_form(FORMS, try_form, speed)
    return candidate.form, [entry.form for entry in speeds], tried


def test_a_coarser_form_is_tried_only_when_no_finer_one_is_correct(fixed_speed: Callable[..., Speed]) -> None:
    fast_u7 = {U8: _candidate(U8, 100), S8: _candidate(S8, 120), U7: _candidate(U7, 1)}
    assert _find(fixed_speed({}, {}), fast_u7) == (U8, ["u8", "s8"], [U8, S8])
    wrong = {U8: "relative error 0.9", S8: "relative error 0.8", U7: _candidate(U7, 1)}
    assert _find(fixed_speed({}, {}), wrong) == (U7, ["u7"], [U8, S8, U7])


def test_no_correct_form_is_an_error_that_names_each(fixed_speed: Callable[..., Speed]) -> None:
    with pytest.raises(CompileFailed, match=r"u8: bad; s8: bad; u7: bad"):
        find_form(FORMS, lambda form: "bad", fixed_speed({}, {}))


class _Steps:
    """Every step takes as long as the list says, the last one again and again."""

    vocab_size, max_context = 10, 10

    def __init__(self, clock: VirtualClock, times_s: list[float]) -> None:
        self.position = 0
        self.count = 0
        self._clock = clock
        self._times_s = times_s

    def append(self, ids: Sequence[int]) -> np.ndarray:
        self._clock.sleep(self._times_s[min(self.count, len(self._times_s) - 1)])
        self.count += 1
        self.position += len(ids)
        return np.zeros(10, np.float32)

    def rewind(self, position: int) -> None:
        self.position = position


@pytest.mark.parametrize(
    ("times_s", "decode_us", "count"),
    [
        ([1.0, 0.005, 0.004, 0.006, 0.006], 4000, 5),  # the first one warms up; 20 ms of the others
        ([1.0, 0.5], 500_000, 4),  # never less than three
        ([0.0], 1, 1001),  # never for ever
    ],
)
def test_the_fastest_step_of_20_ms_counts(times_s: list[float], decode_us: int, count: int) -> None:
    clock = VirtualClock()
    session = _Steps(clock, times_s)
    assert MeasuredSpeed(clock).decode_us(U8, session) == decode_us
    assert (session.count, session.position) == (count, 0)


def test_a_real_product_takes_some_time() -> None:
    assert 1 <= MeasuredSpeed(SystemClock()).product_us(U8) < 100_000


def test_what_was_measured_is_what_the_header_gets(fixed_speed: Callable[..., Speed]) -> None:
    answers = {form: _candidate(form, time) for form, time in ((U8, 300), (S8, 200), (U7, 100))}
    candidate, speeds = find_form(FORMS, answers.__getitem__, fixed_speed({}, {}))
    assert candidate.form == S8
    assert speeds == (FormSpeed("u8", 300), FormSpeed("s8", 200))
