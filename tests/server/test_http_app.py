"""Health and models: what a watcher sees."""

import asyncio
from typing import Literal

import pytest
from scripted_http import Client, ScriptedApp

from kensho.app.activity import LoadedModel
from kensho.app.routing import Task
from kensho.app.status import ModelStatus, State, Status
from kensho.base.ids import Digest
from kensho.delivery.installed import Release

ModelState = Literal["ready", "degraded", "damaged"]


class StandingApp(ScriptedApp):
    """Has a status."""

    def __init__(self, state: State, *, level: str = "NORMAL") -> None:
        super().__init__()
        self.known_models: tuple[ModelStatus, ...] = (
            ModelStatus("demo", "1.0.0", None, "ready", 10, tier="mapped"),
            ModelStatus("absent", "", None, "degraded", 0, "it could not be had"),
        )
        self._state = state
        self._level = level
        self.known_tasks: list[Task] = []

    def status(self) -> Status:
        return Status(self._state, f"It is {self._state}.", self.known_models)

    def loaded(self) -> list[LoadedModel]:
        return [
            LoadedModel(
                model="demo", version="1.0.0", tier="mapped", is_upgrading=False, is_pinned=False, engines=(),
                level=self._level, waiting={}, running=0, slots=2,
            )
        ]  # fmt: skip

    def tasks(self) -> list[Task]:
        return self.known_tasks

    def releases(self) -> list[Release]:
        return [Release("demo", "1.0.0", 1, Digest("0" * 64), 1_700_000_000.5, ())]


def get(app: StandingApp, path: str) -> Client:
    return asyncio.run(Client(app).request("GET", path))


@pytest.mark.parametrize(
    ("state", "demo", "other", "status"),
    [
        ("ready", "ready", None, 200),
        ("working", "ready", None, 200),
        ("degraded", "degraded", None, 200),
        ("damaged", "damaged", None, 503),
        ("damaged", "damaged", "ready", 200),
        ("empty", None, None, 503),
        ("storage-missing", None, None, 503),
    ],
)
def test_health_is_200_where_some_model_can_answer(
    state: State, demo: ModelState | None, other: ModelState | None, status: int
) -> None:
    app = StandingApp(state)
    found = [("demo", demo), ("other", other)]
    app.known_models = tuple(ModelStatus(name, "1.0.0", None, word, 10) for name, word in found if word)
    client = get(app, "/health")
    assert client.json == {"status": state, "sentence": f"It is {state}.", "queues": {"demo": "NORMAL"}}
    assert client.status == status
    assert client.headers["cache-control"] == "no-store"


def test_a_saturated_queue_is_told_and_no_reason_for_a_restart() -> None:
    client = get(StandingApp("ready", level="SATURATED"), "/health")
    assert (client.status, client.json["status"], client.json["queues"]) == (200, "overloaded", {"demo": "SATURATED"})
    assert "demo" in client.json["sentence"]


def test_only_what_is_installed_is_listed() -> None:
    listed = get(StandingApp("degraded"), "/v1/models").json
    about = {"version": "1.0.0", "state": "ready", "tier": "mapped"}
    card = {"id": "demo", "object": "model", "created": 1_700_000_000, "owned_by": "kensho", "kensho": about}
    assert listed == {"object": "list", "data": [card]}
    assert get(StandingApp("ready"), "/v1/models/demo").json == card
    missing = get(StandingApp("ready"), "/v1/models/absent")
    assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")


def test_tasks_are_listed_after_the_models_as_what_they_are() -> None:
    app = StandingApp("ready")
    app.known_tasks = [Task("chat", ("voice", "demo"), "demo"), Task("draw", ("image",), "image")]
    about = {"task": ["voice", "demo"], "answering": "demo", "version": "1.0.0", "state": "ready", "tier": "mapped"}
    listed = get(app, "/v1/models").json["data"]
    assert [card["id"] for card in listed] == ["demo", "chat"], "image went a moment ago"
    assert listed[1] == {**listed[0], "id": "chat", "kensho": about}
    assert get(app, "/v1/models/chat").json == listed[1]


def test_a_task_with_the_name_of_a_model_is_what_is_asked_for() -> None:
    app = StandingApp("ready")
    app.known_tasks = [Task("demo", ("demo",), "demo")]
    (card,) = get(app, "/v1/models").json["data"]
    assert (card["id"], card["kensho"]["task"]) == ("demo", ["demo"])
