from typing import Any

import pytest

from kensho.base.errors import EngineCrashed, EngineError, EngineHung, PoisonRequest, WrongNumbers
from kensho.base.inference import Sampling
from kensho.base.structs import replace
from kensho.resilience.poison import KEPT, PoisonList

PROMPT, GREEDY = (5, 6, 7), Sampling(max_tokens=9)
CRASH = EngineCrashed("gone", signal="SIGSEGV")


def test_a_prompt_that_ended_two_hosts_is_refused_and_others_are_not() -> None:
    poison = PoisonList()
    assert poison.blame(PROMPT, GREEDY, CRASH, 0.0) == 1
    poison.check(PROMPT, GREEDY, 1.0)
    assert poison.blame(PROMPT, GREEDY, EngineHung("silent"), 1.0) == 2
    with pytest.raises(PoisonRequest, match="3 tokens") as caught:
        poison.check(PROMPT, GREEDY, 2.0)
    assert caught.value.advice
    assert "5" not in str(caught.value)
    poison.check((5, 6), GREEDY, 2.0)


def test_an_answer_makes_it_innocent() -> None:
    poison = PoisonList()
    poison.blame(PROMPT, GREEDY, CRASH, 0.0)
    poison.clear(PROMPT, GREEDY)
    assert poison.blame(PROMPT, GREEDY, CRASH, 1.0) == 1


def test_an_hour_later_it_may_be_tried_again() -> None:
    poison = PoisonList()
    for _ in range(2):
        poison.blame(PROMPT, GREEDY, CRASH, 0.0)
    with pytest.raises(PoisonRequest):
        poison.check(PROMPT, GREEDY, 3599.0)
    poison.check(PROMPT, GREEDY, 3600.0)
    assert poison.blame(PROMPT, GREEDY, CRASH, 3600.0) == 1


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
    assert [poison.blame(PROMPT, GREEDY, error, 0.0) for _ in range(3)] == [0, 0, 0]
    poison.check(PROMPT, GREEDY, 1.0)


def test_a_million_bad_prompts_take_no_more_memory_than_256() -> None:
    poison = PoisonList()
    for i in range(2_000):
        poison.blame((i,), GREEDY, CRASH, 0.0)
        poison.blame((i,), GREEDY, CRASH, 0.0)
    poison.check((1_999 - KEPT,), GREEDY, 0.0)
    with pytest.raises(PoisonRequest):
        poison.check((2_000 - KEPT,), GREEDY, 0.0)


@pytest.mark.parametrize("other", [{"temperature": 0.5}, {"max_tokens": 10}, {"stop_ids": (1,)}], ids=str)
def test_the_same_prompt_with_other_parameters_is_another_request(other: dict[str, Any]) -> None:
    poison = PoisonList()
    for _ in range(2):
        poison.blame(PROMPT, replace(GREEDY, **other), CRASH, 0.0)
    poison.check(PROMPT, GREEDY, 0.0)
    with pytest.raises(PoisonRequest):
        poison.check(PROMPT, replace(GREEDY, **other), 0.0)


def test_ids_do_not_pass_for_stop_ids_and_a_new_seed_makes_no_other_request() -> None:
    poison = PoisonList()
    for _ in range(2):
        poison.blame((5, 6), replace(GREEDY, stop_ids=(7,)), CRASH, 0.0)
        poison.blame((1, 2), GREEDY, CRASH, 0.0)
    poison.check(PROMPT, GREEDY, 0.0)
    with pytest.raises(PoisonRequest):
        poison.check((1, 2), replace(GREEDY, seed=77), 0.0)


def test_a_person_gives_all_requests_another_chance() -> None:
    poison = PoisonList()
    for _ in range(2):
        poison.blame(PROMPT, GREEDY, CRASH, 0.0)
    with pytest.raises(PoisonRequest, match="kensho circuit ENGINE auto"):
        poison.check(PROMPT, GREEDY, 0.0)
    poison.forget()
    poison.check(PROMPT, GREEDY, 0.0)
    assert poison.blame(PROMPT, GREEDY, CRASH, 0.0) == 1


def test_an_id_that_no_engine_takes_is_not_this_lists_business() -> None:
    poison = PoisonList()
    poison.blame(PROMPT, GREEDY, CRASH, 0.0)
    poison.check((2**70, -1), GREEDY, 0.0)
    poison.clear((2**70, -1), GREEDY)
