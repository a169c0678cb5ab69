"""What a pull tries: named models, else what is here or was wanted; pinned versions only; newest first."""

import pytest

from kensho.base.errors import NotInstalled
from kensho.base.ids import digest_of
from kensho.delivery.choosing import Candidates, choose
from kensho.delivery.installed import ModelRow
from kensho.delivery.releases import ReleaseRef


def ref(model: str, release: int) -> ReleaseRef:
    return ReleaseRef(model, f"{release}.0", release, f"{model}/{release}.0/manifest.json", digest_of(b""), 1)


def row(model: str, pinned: str | None = None) -> ModelRow:
    return ModelRow(model, "1.0", None, pinned, 0, None)


OFFERED = [ref("a", 1), ref("a", 3), ref("a", 2), ref("b", 1)]


def chosen(names: list[str], *rows: ModelRow, lacking: tuple[str, ...] = ()) -> list[tuple[str, list[int]]]:
    found = choose(OFFERED, names, rows={row.model: row for row in rows}, lacking=lacking)
    return [(candidates.model, [ref.release for ref in candidates.refs]) for candidates in found]


def test_named_models_are_tried_once_newest_first() -> None:
    assert chosen(["b", "a", "b"]) == [("b", [1]), ("a", [3, 2, 1])]


def test_without_names_all_that_is_installed_or_was_wanted_is_meant() -> None:
    assert chosen([], row("a"), lacking=("b",)) == [("a", [3, 2, 1]), ("b", [1])]
    with pytest.raises(NotInstalled, match="none is named"):
        chosen([])
    assert choose(OFFERED[-1:], [], rows={}, lacking=()) == [Candidates("b", (OFFERED[-1],))]


def test_a_pinned_model_has_its_version_or_nothing() -> None:
    assert chosen([], row("a", "2.0")) == [("a", [2])]
    [held] = choose(OFFERED, ["a"], rows={"a": row("a", "1.0")}, lacking=())
    assert held.is_pinned


def test_what_is_not_published_any_more_stops_nobody_unless_it_was_named() -> None:
    assert chosen([], row("a", "9.0"), row("gone")) == [("a", []), ("gone", [])]
    for names, rows in ((["a"], [row("a", "9.0")]), (["gone"], [row("gone")]), (["none"], [])):
        with pytest.raises(NotInstalled) as caught:
            chosen(names, *rows)
        assert "a, b" in caught.value.advice
