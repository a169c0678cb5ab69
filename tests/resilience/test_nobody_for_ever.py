"""On an idle engine nobody is refused for ever by an estimate, whatever others ask of it: whoever is refused is not
measured, so whatever is believed of it without a measurement would be believed for ever."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.structs import Struct
from kensho.resilience.admission import AdmissionQueue, Candidate, Estimate, Priority
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.estimate import AnswerLengths, EngineTimes, Work, size_of

STEP_S = 0.02
A_LITTLE = 1.051
"""What was stopped counts as if it had taken 5 % longer."""


class Asked(Struct):
    ids: int
    limit: int
    """0: a stream."""
    tokens: int
    """That it would have."""
    within_s: float
    priority: Priority
    pause_s: float


class IdleEngine:
    """Takes what it takes; one request at a time, begun at once if it is let in, and cut at its deadline. `growth`: by
    how much a prefill takes longer with each size."""

    def __init__(self, growth: list[float]) -> None:
        self.queue = AdmissionQueue(AdmissionSettings())
        self.times = EngineTimes()
        self.lengths = AnswerLengths()
        self.now_s = 0.0
        self.slowness = 1.0
        self._prefill_s = [sum(growth[: i + 1]) for i in range(len(growth))]

    def prefill_s(self, ids: int) -> float:
        """Rises from size to size, and within each."""
        size = max(0, ids - 1).bit_length()
        below_s, most_s = ([0.0, *self._prefill_s][size], self._prefill_s[size])
        return self.slowness * (below_s + (most_s - below_s) * ids / (1 << size))

    def ask(self, asked: Asked) -> bool:
        """Whether it was let in."""
        times, medians = self.times.times(self.now_s), self.times.medians(self.now_s)
        estimate = Estimate((Candidate("e", times, medians),), idle=("e",))
        by_median, work = asked.priority is Priority.CRITICAL, Work(asked.ids)
        if asked.limit:
            work = self.lengths.work(asked.ids, asked.limit, 0, self.now_s, by_median=by_median)
        ticket, refused = self.queue.offer(asked.priority, self.now_s + asked.within_s, self.now_s, estimate, work=work)
        if refused:
            return False
        assert self.queue.take(self.now_s, estimate, "e") == (ticket, [])
        self._answer(asked)
        return True

    def _answer(self, asked: Asked) -> None:
        due_s, first_s = self.now_s + asked.within_s, self.prefill_s(asked.ids)
        if first_s > asked.within_s:
            self.now_s = due_s
            self.times.stopped(asked.ids, asked.within_s, self.now_s)
            return
        self.now_s += first_s
        self.times.prefilled(asked.ids, first_s, self.now_s)
        for made in range(1, asked.tokens):
            if asked.limit and self.now_s + STEP_S * self.slowness > due_s:
                self.lengths.stopped(asked.limit, made, self.now_s)
                return
            self.now_s += STEP_S * self.slowness
            self.times.stepped(STEP_S * self.slowness, self.now_s)
        if asked.limit:
            self.lengths.ended(asked.limit, asked.tokens, self.now_s)


IDS = st.one_of(st.integers(1, 8), st.integers(1, 1 << 12))
GROWTH = st.lists(st.sampled_from([0.0, 0.001, 0.1, 3.0]), min_size=14, max_size=14)
REQUESTS = st.lists(
    st.builds(
        Asked,
        IDS,
        st.sampled_from([0, 0, 10, 300, 4000]),
        st.integers(1, 80),
        st.floats(0.001, 50.0),
        st.sampled_from(list(Priority)),
        st.floats(0.0, 20.0),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(
    growth=GROWTH,
    others=REQUESTS,
    ids=IDS,
    limit=st.sampled_from([0, 1, 10, 300]),
    priority=st.sampled_from(list(Priority)),
    repeat=st.integers(1, 3),
    every=st.integers(1, 20),
)
def test_who_has_the_time_for_a_prompt_of_its_size_and_for_all_it_may_have_is_never_refused(
    growth: list[float], others: list[Asked], ids: int, limit: int, priority: Priority, repeat: int, every: int
) -> None:
    engine = IdleEngine(growth)
    enough_s = engine.prefill_s(size_of(ids)) * A_LITTLE + STEP_S * limit * 1.001 + 0.001
    for number, other in enumerate(others * repeat):
        engine.ask(other)
        engine.now_s += other.pause_s
        if number % every == 0:
            assert engine.ask(Asked(ids, limit, max(1, limit), enough_s, priority, 0.0))


@settings(max_examples=40, deadline=None)
@given(growth=GROWTH, others=REQUESTS, ids=IDS, tokens=st.integers(1, 60), priority=st.sampled_from(list(Priority)))
def test_who_does_not_say_how_long_its_answer_may_be_is_not_refused_for_what_others_have(
    growth: list[float], others: list[Asked], ids: int, tokens: int, priority: Priority
) -> None:
    """Its limit is that of the context, as of every request that names none. Streams and other limits say nothing."""
    engine = IdleEngine(growth)
    enough_s = engine.prefill_s(size_of(ids)) * A_LITTLE + STEP_S * tokens * 1.001 + 0.001
    for other in others:
        engine.ask(other)
        engine.now_s += other.pause_s
        assert engine.ask(Asked(ids, 32_768, tokens, enough_s, priority, 0.0))


@settings(max_examples=40, deadline=None)
@given(others=REQUESTS, ids=IDS, slowness=st.sampled_from([8.0, 1000.0]), priority=st.sampled_from(list(Priority)))
def test_after_a_slow_time_nobody_is_refused_for_longer_than_a_minute(
    others: list[Asked], ids: int, slowness: float, priority: Priority
) -> None:
    engine = IdleEngine([0.01] * 14)
    engine.slowness = slowness
    for other in others:
        engine.ask(other)
        engine.now_s += other.pause_s
    engine.slowness, better_s = 1.0, engine.now_s
    asked = Asked(ids, 0, 1, engine.prefill_s(size_of(ids)) * A_LITTLE + 0.001, priority, 0.0)
    for other in others * 3:
        engine.now_s += 1.0
        engine.ask(other)
        assert engine.ask(asked) or engine.now_s <= better_s + 60.0
    engine.now_s = max(engine.now_s, better_s + 60.1)
    assert engine.ask(asked)


@pytest.mark.parametrize("priority", list(Priority))
def test_what_is_really_too_long_for_its_deadline_is_tried_once_a_minute(priority: Priority) -> None:
    engine, tried = IdleEngine([1.0] * 14), 0
    for _ in range(200):
        engine.now_s += 1.0
        tried += engine.ask(Asked(100, 0, 1, 2.0, priority, 0.0))
    assert tried == 4
