"""What can never be answered is refused at the door, before anything is loaded for it."""

from pathlib import Path
from typing import Any

import pytest

from kensho.app import GenerateOptions, Kensho
from kensho.base.errors import UsageError
from kensho.settings import Settings
from kensho.testing.clock import VirtualClock

WRONG: list[dict[str, Any]] = [
    *({"max_tokens": value} for value in (0, -1, 32769, 2.5, "7", True, None)),
    *({"temperature": value} for value in (-1.0, 9.0, float("nan"), "1", None, True)),
    *({"seed": value} for value in (-1, 1 << 64, 1.5, "1", None)),
    *({"deadline_s": value} for value in (0.0, -1, float("nan"), float("inf"), "5", True)),
    *({"priority": value} for value in ("urgent", "HIGH", None, 1, [])),
    *({"engine": value} for value in ("quantum", "", 1, [])),
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="cannot be"):
        GenerateOptions(**options)


def test_the_ends_of_the_ranges_are_taken() -> None:
    for options in ({"max_tokens": 1}, {"max_tokens": 32768}, {"temperature": 5}, {"seed": (1 << 64) - 1}):
        GenerateOptions(**options)  # type: ignore[arg-type]
    GenerateOptions(deadline_s=86_400, engine="standby", priority="low")


@pytest.mark.parametrize(
    "prompt",
    [None, 123, b"abc", [], (), {}, ["text"], [{"role": "user"}], [{"role": "user", "content": None}], [{"role": 1}]],
    ids=str,
)
def test_a_prompt_that_is_none_is_refused_before_it_is_begun(prompt: Any, tmp_path: Path) -> None:
    with Kensho(Settings(store=tmp_path), clock=VirtualClock(), has_log=False) as app:
        with pytest.raises(UsageError, match="cannot be answered"):
            app.generate("voice", prompt)
        with pytest.raises(UsageError, match="cannot be used"):
            app.generate(prompt, "text")
