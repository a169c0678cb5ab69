"""The edge of the router: what is asked of a store, and which error is told when nobody can answer."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kensho.app.routing import Router, look_at_tasks
from kensho.base.errors import Damaged, KenshoError, NotEnoughMemory, NotInstalled, TrustError


class Models:
    """`there` has what can be had; `broken` what raises; `instead` the fallbacks."""

    def __init__(self, there: str = "", instead: dict[str, str] | None = None, **broken: KenshoError) -> None:
        self.there = there.split()
        self.instead = instead or {}
        self.broken = broken
        self.asked: list[str] = []

    async def ready(self, model: str) -> Any:
        self.asked.append(model)
        if model in self.broken:
            raise self.broken[model]
        if model not in self.there:
            raise NotInstalled(f"{model} is not installed")
        return SimpleNamespace(model=model, version="1")

    async def fallback_of(self, model: str) -> str | None:
        return self.instead.get(model)

    def router(self, wanted: str, tasks: Any = None) -> Router:
        return Router(
            wanted, None, tasks=tasks or {}, ready=self.ready, fallback_of=self.fallback_of, engines_of=lambda _: ()
        )


def chosen(models: Models, wanted: str, tasks: Any = None) -> tuple[str, bool, str]:
    _, choice = asyncio.run(models.router(wanted, tasks).choose())
    return choice.model, choice.is_fallback, choice.reason


def test_what_is_there_answers_and_nothing_else_is_looked_at() -> None:
    models = Models("voice dialogue", {"voice": "dialogue"})
    assert chosen(models, "voice") == ("voice", False, "asked for")
    assert models.asked == ["voice"]


def test_a_damaged_model_is_replaced_by_the_one_that_its_publisher_named() -> None:
    models = Models("dialogue", {"voice": "dialogue"}, voice=Damaged("voice is damaged"))
    assert chosen(models, "voice") == ("dialogue", True, "fallback of 'voice'; voice: voice is damaged")


def test_a_model_that_does_not_fit_is_replaced_after_it_was_tried() -> None:
    async def use() -> str:
        router = Models("big small", {"big": "small"}).router("big")
        installed, _ = await router.choose()
        await router.lost(installed.model, NotEnoughMemory("needs 8 GiB"))
        return (await router.choose())[1].reason

    assert asyncio.run(use()) == "fallback of 'big'; big: needs 8 GiB"


def test_the_error_of_the_model_that_was_asked_for_is_told() -> None:
    models = Models("", {"voice": "dialogue"}, voice=Damaged("voice is damaged"))
    with pytest.raises(Damaged):
        chosen(models, "voice")
    with pytest.raises(NotInstalled, match="unknown"):
        chosen(models, "unknown")


def test_what_the_trust_refuses_has_no_fallback() -> None:
    models = Models("dialogue", {"voice": "dialogue"}, voice=TrustError("expired"))
    with pytest.raises(TrustError):
        chosen(models, "voice")
    assert models.asked == ["voice"]


def test_a_task_is_answered_by_the_first_of_its_models_that_is_there() -> None:
    models = Models("small")
    assert chosen(models, "chat", {"chat": ("big", "small")})[:2] == ("small", True)
    assert models.asked == ["big", "small"]


def test_tasks_that_can_be_answered_are_known_without_loading_anything() -> None:
    tasks = {"chat": ("voice-2", "dialogue"), "draw": ("image",), "speak": ("voice-2",)}
    instead = {"voice-2": "voice"}

    def answering(*installed: str) -> dict[str, str]:
        found = look_at_tasks(tasks, dict.fromkeys(installed, "1.0"), fallback_of=instead.get)
        assert all(task.models == tasks[task.name] for task in found)
        return {task.name: task.answering for task in found}

    assert answering() == {}
    assert answering("dialogue", "voice-2") == {"chat": "voice-2", "speak": "voice-2"}
    assert answering("dialogue") == {"chat": "dialogue"}
    assert answering("voice", "image") == {"chat": "voice", "speak": "voice", "draw": "image"}, (
        "its publisher's fallback"
    )
