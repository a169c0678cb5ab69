import pytest

from kensho.base.errors import EngineCrashed, EngineError, EngineHung, PoisonRequest, WrongNumbers
from kensho.resilience.poison import KEPT, PoisonList

PROMPT = (5, 6, 7)
CRASH = EngineCrashed("gone", signal="SIGSEGV")


def test_a_prompt_that_ended_two_hosts_is_refused_and_others_are_not() -> None:
    poison = PoisonList()
    assert poison.blame(PROMPT, CRASH, 0.0) == 1
    poison.check(PROMPT, 1.0)
    assert poison.blame(PROMPT, EngineHung("silent"), 1.0) == 2
    with pytest.raises(PoisonRequest, match="3 tokens") as caught:
        poison.check(PROMPT, 2.0)
    assert caught.value.advice
    assert "5" not in str(caught.value)
    poison.check((5, 6), 2.0)


def test_an_answer_makes_it_innocent() -> None:
    poison = PoisonList()
    poison.blame(PROMPT, CRASH, 0.0)
    poison.clear(PROMPT)
    assert poison.blame(PROMPT, CRASH, 1.0) == 1


def test_an_hour_later_it_may_be_tried_again() -> None:
    poison = PoisonList()
    for _ in range(2):
        poison.blame(PROMPT, CRASH, 0.0)
    with pytest.raises(PoisonRequest):
        poison.check(PROMPT, 3599.0)
    poison.check(PROMPT, 3600.0)
    assert poison.blame(PROMPT, CRASH, 3600.0) == 1


@pytest.mark.parametrize(
    "error",
    [
        EngineCrashed("gone", signal="SIGKILL"),
        EngineCrashed("gone", signal="SIGTERM"),
        WrongNumbers("nan"),
        EngineError("CUDA failure 2: out of memory"),
    ],
)
def test_what_others_did_and_what_ended_no_host_is_not_blamed_on_it(error: EngineError) -> None:
    poison = PoisonList()
    assert [poison.blame(PROMPT, error, 0.0) for _ in range(3)] == [0, 0, 0]
    poison.check(PROMPT, 1.0)


def test_a_million_bad_prompts_take_no_more_memory_than_256() -> None:
    poison = PoisonList()
    for i in range(2_000):
        poison.blame((i,), CRASH, 0.0)
        poison.blame((i,), CRASH, 0.0)
    poison.check((1_999 - KEPT,), 0.0)
    with pytest.raises(PoisonRequest):
        poison.check((2_000 - KEPT,), 0.0)
