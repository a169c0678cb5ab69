"""Where the story plays: folders, the origin, the voice, and the check that every step must pass."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from kensho.app import Kensho
from kensho.base.clock import Clock
from kensho.base.errors import KenshoError
from kensho.base.events import Event
from kensho.base.structs import Struct, field, replace
from kensho.server.origin import Origin
from kensho.settings import Settings, StandbyChoice

E = TypeVar("E", bound=Event)

MODEL = "kensho-demo"
FIRST, SECOND = "1.0.0", "2.0.0"


class StepFailed(KenshoError):
    """A step of the story did not hold. This is a fault in Kensho or a very unusual machine."""

    code = "demo_step_failed"


def check(is_held: bool, what: str) -> None:
    """`what` says the claim; a claim that does not hold ends the demonstration with exit code 1."""
    if not is_held:
        raise StepFailed(
            f"this does not hold: {what}", advice="the log named at the end has every event; please report it"
        )


class Question(Struct):
    question: str
    answer: str


class Stage(Struct, frozen=False):
    """What the steps share. `say` tells a person what is seen; `facts` keeps what later steps and the report need."""

    folder: Path
    settings: Settings
    clock: Clock
    say: Callable[[str], None]
    show: Callable[[str], None]
    """A piece of a streamed answer."""
    on_event: Callable[[Event], None]
    origin: Origin | None = None
    events: list[Event] = field(factory=list)
    first_answer_s: float = 0.0
    """Compiling, loading and the first token, together."""
    port: int = 0

    @property
    def source(self) -> Path:
        return self.folder / "model-v1"

    @property
    def second_source(self) -> Path:
        return self.folder / "model-v2"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def log(self) -> Path:
        return self.settings.store / "logs" / "kensho.jsonl"

    def open_app(self, *, standby: StandbyChoice = "on_demand", allow_faults: bool = False) -> Kensho:
        """The application on the stage's store; its events go to the log, to the bar and to `events`."""
        settings = replace(self.settings, standby=standby, allow_faults=allow_faults)
        return Kensho(settings, clock=self.clock, listener=self._hear)

    def open_origin(self) -> str:
        """Serve the repository, on the same port as before; returns the URL."""
        self.origin = Origin(self.repository, port=self.port)
        self.port = self.origin.port
        return self.origin.url

    @property
    def origin_url(self) -> str:
        """Where the repository is served; the same before and after a stop."""
        return f"http://127.0.0.1:{self.port}"

    def close_origin(self) -> None:
        if self.origin is not None:
            self.origin.close()
            self.origin = None

    def heard(self, kind: type[E]) -> list[E]:
        """Events of one kind since the step began."""
        return [event for event in self.events if isinstance(event, kind)]

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)


def embedded_model() -> Path:
    """The folder of the model that ships with Kensho (package data)."""
    return Path(str(files("kensho.demo"))) / "model"


def questions(version: str) -> list[Question]:
    """The questions that a version of the embedded model answers word for word."""
    name = {FIRST: "questions.json", SECOND: "v2/questions.json"}[version]
    found = json.loads((embedded_model() / name).read_text(encoding="utf-8"))
    return [Question(item["question"], item["answer"]) for item in found]
