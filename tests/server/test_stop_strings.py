"""Stop strings, however the answer is cut into pieces."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.server.stop_strings import StopScanner

TEXT = st.text("abE", max_size=20)


@settings(max_examples=40)
@given(st.lists(TEXT, max_size=8), st.lists(st.text("abE", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_the_answer_up_to_the_first_stop_and_nothing_is_taken_back(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
    scan = StopScanner(stops)
    shown = ""
    for piece in pieces:
        shown += scan.push(piece)
        assert whole.startswith(shown)
        assert not any(stop in shown for stop in stops)
    if not scan.is_stopped:
        shown += scan.finish()
    assert scan.is_stopped == bool(ends)
    # Two stops may overlap: the one that is complete first ends the answer, as it would for who reads along.
    assert shown == whole if not ends else len(shown) >= min(ends) and whole.startswith(shown)


def test_without_stops_nothing_is_held_back() -> None:
    assert StopScanner(()).push("E") == "E"


def test_the_beginning_of_a_stop_is_held_back_until_it_is_certain() -> None:
    scan = StopScanner(("END",))
    assert [scan.push(piece) for piece in ("a", "E", "N", "X", "EN", "D tail", "more")] == [
        "a",
        "",
        "",
        "ENX",
        "",
        "",
        "",
    ]
    assert scan.is_stopped and scan.finish() == ""
