"""Who may stay when there are more connections than places."""

from hypothesis import given
from hypothesis import strategies as st

from kensho.server.descriptors import _FEWEST, HTTP_PLACES, WANTED, places_under
from kensho.server.places import Entry, Places


def never(one: str) -> bool:
    return False


def test_a_newcomer_takes_the_place_of_the_one_that_has_waited_longest() -> None:
    places: Places[str] = Places(2, told=1, has_said=never)
    assert places.enter("a") == places.enter("b") == Entry("stays")
    places.asked("a")
    places.waits("a")
    assert places.enter("c") == Entry("stays", "b")
    assert places.enter("d") == Entry("stays", "a")


def test_who_is_busy_keeps_its_place_and_few_are_told() -> None:
    places: Places[str] = Places(1, told=1, has_said=never)
    places.enter("a")
    places.asked("a")
    assert [places.enter(name).verdict for name in "bc"] == ["is_told", "is_cut"]
    places.asked("b")  # it asked to be told
    places.leave("a")
    assert places.enter("d") == Entry("stays")
    places.leave("b")
    places.asked("d")
    assert places.enter("e").verdict == "is_told"


def test_whose_words_were_not_looked_at_yet_keeps_its_place() -> None:
    places: Places[str] = Places(3, told=0, has_said="ac".__contains__)
    for name in "abc":
        places.enter(name)
    assert places.enter("d") == Entry("stays", "b")
    places.asked("d")
    assert places.enter("e") == Entry("is_cut")
    places.waits("a")  # it was no request
    assert places.enter("e") == Entry("is_cut")


@given(
    st.lists(st.tuples(st.sampled_from(["enter", "asked", "waits", "leave"]), st.integers(0, 9)), max_size=60),
    st.sets(st.integers(0, 9)),
)
def test_places_are_never_exceeded_and_only_who_waits_loses_its_place(
    steps: list[tuple[str, int]], said: set[int]
) -> None:
    places: Places[int] = Places(3, told=2, has_said=lambda one: one in said)
    inside: dict[int, bool] = {}  # with a place; whether it is busy
    told: set[int] = set()
    for action, one in steps:
        if action == "enter":
            if one in inside or one in told:
                continue
            entry = places.enter(one)
            if entry.instead_of is not None:
                assert entry.instead_of not in said
                assert inside.pop(entry.instead_of) is False
            if entry.verdict == "stays":
                inside[one] = False
            else:
                assert len(inside) == 3 and all(is_busy or each in said for each, is_busy in inside.items())
                assert (entry.verdict == "is_told") is (len(told) < 2)
                told |= {one} if entry.verdict == "is_told" else set()
        else:
            getattr(places, action)(one)
            if action == "leave":
                inside.pop(one, None)
                told.discard(one)
            elif one in inside:
                inside[one] = action == "asked"
        assert len(places) == len(inside) <= 3


def test_connections_get_what_the_rest_can_spare() -> None:
    assert places_under(WANTED) == HTTP_PLACES
    assert 200 < places_under(1024) < 500
    assert places_under(64) == _FEWEST
