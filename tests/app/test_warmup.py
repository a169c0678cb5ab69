"""Which models are warmed: named ones, then those of this hour of yesterday, and only what fits."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.app.warmup import (
    DAY_HOURS,
    HOUR_S,
    KEPT_HOURS,
    LEAD_S,
    MAX_MODELS,
    Candidate,
    HourUses,
    Room,
    add_uses,
    choose_warmup,
    dump_uses,
    hour_of,
    next_look_s,
    parse_uses,
)

NOW_S = 1_800_000_000.0 + 1200.0
"""20 minutes past an hour."""
YESTERDAY = hour_of(NOW_S) - DAY_HOURS
ALL = [Candidate(name, 100) for name in "abcd"]
ROOM = Room(1000, 3)


def choose(uses: HourUses, named: tuple[str, ...] = (), room: Room = ROOM, now_s: float = NOW_S) -> tuple[str, ...]:
    return choose_warmup(now_s, named, uses, candidates=ALL, loaded=(), room=room)


def at(hour: int, **counts: int) -> HourUses:
    return {model: {hour: count} for model, count in counts.items()}


def test_what_was_asked_most_at_this_hour_of_yesterday_comes_first() -> None:
    assert choose(at(YESTERDAY, a=1, b=7, c=3)) == ("b", "c", "a")
    assert choose(at(YESTERDAY, b=2, a=2)) == ("a", "b")


def test_named_models_come_before_guessed_ones_in_their_order() -> None:
    assert choose(at(YESTERDAY, a=9, d=5), named=("c", "d")) == ("c", "d", "a")


def test_other_hours_say_nothing() -> None:
    assert choose({"a": {YESTERDAY - 1: 9, YESTERDAY + 1: 9, YESTERDAY + DAY_HOURS: 9}}) == ()


def test_just_before_an_hour_begins_its_own_yesterday_counts() -> None:
    uses = {"a": {YESTERDAY: 9}, "b": {YESTERDAY + 1: 1}}
    next_hour_s = (hour_of(NOW_S) + 1) * HOUR_S
    assert choose(uses, now_s=next_hour_s - LEAD_S - 1) == ("a",)
    assert choose(uses, now_s=next_hour_s - LEAD_S) == ("b",)


def test_only_what_fits_is_chosen_and_what_is_loaded_takes_no_room_anew() -> None:
    uses = at(YESTERDAY, a=4, b=3, c=2, d=1)
    assert choose(uses, room=Room(250, 3)) == ("a", "b")
    assert choose(uses, room=Room(1000, 1)) == ("a",)
    assert choose(uses, room=Room(1000, 0)) == ()
    assert choose_warmup(NOW_S, (), uses, candidates=ALL, loaded={"a"}, room=Room(100, 1)) == ("b",)
    large = [Candidate("a", 900), Candidate("b", 100)]
    assert choose_warmup(NOW_S, (), uses, candidates=large, loaded=(), room=Room(500, 3)) == ("b",)


def test_what_is_not_installed_is_not_chosen() -> None:
    assert choose(at(YESTERDAY, gone=9), named=("never",)) == ()


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 4e9))
def test_the_next_look_is_just_before_an_hour_and_never_now(now_s: float) -> None:
    wait_s = next_look_s(now_s)
    assert 0 < wait_s <= HOUR_S
    past_s = (now_s + wait_s + LEAD_S) % HOUR_S
    assert min(past_s, HOUR_S - past_s) < 0.01


def test_requests_are_counted_by_hour_and_forgotten_after_two_days() -> None:
    uses: HourUses = {}
    for _ in range(3):
        uses = add_uses(uses, {"a": 2}, NOW_S)
    assert uses == {"a": {hour_of(NOW_S): 6}}
    later = add_uses(uses, {"b": 1}, NOW_S + (KEPT_HOURS - 1) * HOUR_S)
    assert set(later) == {"a", "b"}
    assert set(add_uses(later, {}, NOW_S + KEPT_HOURS * HOUR_S)) == {"b"}


def test_a_clock_that_was_set_back_forgets_the_future() -> None:
    uses = add_uses({}, {"a": 1}, NOW_S)
    assert add_uses(uses, {}, NOW_S - 7200) == {}


def test_what_is_kept_is_bounded() -> None:
    uses = add_uses({}, {f"m{number}": number + 1 for number in range(3 * MAX_MODELS)}, NOW_S)
    assert len(uses) == MAX_MODELS
    assert "m0" not in uses
    for hour in range(200):
        uses = add_uses(uses, {"a": 10**9}, NOW_S + hour * HOUR_S)
    assert set(uses) == {"a"}
    assert len(uses["a"]) == KEPT_HOURS
    assert len(dump_uses(uses)) < 2000


USES = st.dictionaries(
    st.text(max_size=9), st.dictionaries(st.integers(0, 10**6), st.integers(1, 10**9), min_size=1), max_size=4
)


@settings(max_examples=30, deadline=None)
@given(USES)
def test_uses_are_read_as_written(uses: HourUses) -> None:
    assert parse_uses(dump_uses(uses)) == uses


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=50) | st.sampled_from(["null", "[]", '{"a":1}', '{"a":{"x":1}}', '{"a":{"1":-1}}', "9" * 5000]))
def test_no_text_makes_the_reader_fail(text: str) -> None:
    assert isinstance(parse_uses(text), dict)
