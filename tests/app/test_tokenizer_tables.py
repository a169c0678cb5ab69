"""Tables for models that came without: nothing before an answer, once, and ended with the application."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from kensho.app.tokenizer_tables import TablesInBackground
from kensho.base.events import Event, RequestFinished
from kensho.base.ids import Digest
from kensho.base.structs import fields
from kensho.settings import Settings
from kensho.testing.clock import VirtualClock
from kensho.testing.loop import run_virtual

DIGESTS = {"tokenizer.json": Digest("1" * 64)}
INSTALLED = cast("Any", SimpleNamespace(model="m", version="1", folder=Path("/m")))


class Builder:
    """Takes ten seconds."""

    def __init__(self, is_wanted: bool = True) -> None:
        self._is_wanted = is_wanted
        self.begun = 0
        self.ended: list[str] = []

    def is_wanted(self, digests: Mapping[str, Digest]) -> bool:
        return self._is_wanted and digests == DIGESTS

    async def build(self, model: str, version: str, folder: Path, digests: Mapping[str, Digest]) -> None:
        self.begun += 1
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("made")


def codec(source: str, *refused: str) -> Any:
    return SimpleNamespace(source=source, refused=refused)


def answered(model: str) -> RequestFinished:
    values = dict.fromkeys(fields(RequestFinished), cast("Any", 1)) | {"model": model, "version": "1"}
    return RequestFinished(**values)


def tables(tmp_path: Path, builder: Builder) -> tuple[TablesInBackground, list[Event]]:
    events: list[Event] = []
    made = TablesInBackground(Settings(store=tmp_path), clock=VirtualClock(), emit=events.append)
    made._builder = cast("Any", builder)
    return made, events


def test_tables_are_begun_after_the_first_answer_of_their_model_and_once(tmp_path: Path) -> None:
    builder = Builder()
    made, events = tables(tmp_path, builder)

    async def scene() -> None:
        made.note(INSTALLED, codec("library"), DIGESTS)
        made.hear(answered("other"))
        await asyncio.sleep(1)
        assert builder.begun == 0
        for _ in range(3):
            made.hear(answered("m"))
        await asyncio.sleep(1)
        assert builder.begun == 1
        await made.finish(INSTALLED)
        assert builder.ended == ["made"]
        made.note(INSTALLED, codec("tables"), DIGESTS)
        made.hear(answered("m"))
        await made.close()

    run_virtual(scene())
    assert (builder.begun, len(events)) == (1, 5)


def test_what_waits_for_a_models_graph_waits_for_its_tables(tmp_path: Path) -> None:
    builder = Builder()
    made, _ = tables(tmp_path, builder)

    async def scene() -> None:
        await made.finish(INSTALLED)
        made.note(INSTALLED, codec("library"), DIGESTS)
        await made.finish(INSTALLED)
        await made.close()

    run_virtual(scene())
    assert builder.ended == ["made"]


def test_closing_ends_a_build(tmp_path: Path) -> None:
    builder = Builder()
    made, _ = tables(tmp_path, builder)

    async def scene() -> None:
        made.note(INSTALLED, codec("library"), DIGESTS)
        made.hear(answered("m"))
        await asyncio.sleep(1)
        await made.close()

    run_virtual(scene())
    assert builder.ended == ["cancelled"]


def test_refused_tables_are_told_and_known_reasons_are_not_tried_again(tmp_path: Path) -> None:
    builder = Builder(is_wanted=False)
    made, events = tables(tmp_path, builder)

    async def scene() -> None:
        made.note(INSTALLED, codec("library", "tokenizer.tables: block 3 is damaged"), DIGESTS)
        made.hear(answered("m"))
        await made.close()

    run_virtual(scene())
    assert builder.begun == 0
    assert events[0].message() == "tokenizer tables of m 1: refused tokenizer.tables: block 3 is damaged"
