from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.resilience.router import Choice, EngineFacts, Facts, Look, NoRoute, Step, Unusable, Usable, route

UP = Usable("1.0", (EngineFacts("primary", True), EngineFacts("standby", True)))
OPEN = Usable("1.0", (EngineFacts("primary", False, "is OPEN (crash)"), EngineFacts("standby", True)))


def routed(wanted: str, tasks: Any = None, engine: str | None = None, **facts: Facts) -> Step:
    return route(wanted, facts, tasks=tasks or {}, engine=engine)


def test_nothing_is_chosen_before_it_was_looked_at() -> None:
    assert routed("voice") == Look("voice")


def test_what_was_asked_for_answers_if_it_can() -> None:
    assert routed("voice", voice=UP) == Choice("voice", "1.0", "primary", "asked for", is_fallback=False)


def test_a_fallback_is_looked_at_and_the_reason_names_what_is_wrong() -> None:
    broken = Unusable("damaged", fallback="dialogue")
    assert routed("voice", voice=broken) == Look("dialogue")
    assert routed("voice", voice=broken, dialogue=Usable("2.0")) == Choice(
        "dialogue", "2.0", "primary", "fallback of 'voice'; voice: damaged", is_fallback=True
    )


def test_a_task_is_a_list_of_models_each_with_its_fallback() -> None:
    tasks = {"chat": ("big", "small")}
    assert routed("chat", tasks) == Look("big")
    assert routed("chat", tasks, big=UP) == Choice("big", "1.0", "primary", "first of task 'chat'", is_fallback=False)
    assert routed("chat", tasks, big=Unusable("needs 8 GiB", fallback="middle")) == Look("middle")
    step = routed("chat", tasks, big=Unusable("needs 8 GiB", "middle"), middle=Unusable("not installed"), small=UP)
    assert isinstance(step, Choice)
    assert (step.model, step.reason) == ("small", "next of its task; big: needs 8 GiB; middle: not installed")


def test_when_nobody_can_every_problem_is_named_the_first_one_first() -> None:
    step = routed("voice", voice=Unusable("damaged", "dialogue"), dialogue=Unusable("not installed"))
    assert step == NoRoute((("voice", "damaged"), ("dialogue", "not installed")))


def test_models_that_are_each_others_fallback_end() -> None:
    step = routed("a", a=Unusable("damaged", "b"), b=Unusable("damaged", "a"))
    assert step == NoRoute((("a", "damaged"), ("b", "damaged")))


def test_the_engine_that_takes_requests_is_named_and_why_not_the_first() -> None:
    step = routed("voice", voice=OPEN)
    assert isinstance(step, Choice)
    assert (step.engine, step.reason) == ("standby", "asked for; engine standby, since primary is OPEN (crash)")


def test_an_engine_that_was_asked_for_is_kept_even_if_it_takes_nothing() -> None:
    step = routed("voice", engine="primary", voice=OPEN)
    assert isinstance(step, Choice)
    assert (step.engine, step.reason) == ("primary", "asked for; engine primary asked for")


def test_when_no_engine_takes_requests_the_first_is_left_to_say_so() -> None:
    step = routed("voice", voice=Usable("1.0", (EngineFacts("primary", False, "is OPEN"),)))
    assert isinstance(step, Choice)
    assert step.engine == "primary"


def test_a_model_whose_engines_are_all_out_is_replaced_by_its_fallback() -> None:
    engines = (EngineFacts("primary", False, "is FORCED_OPEN"), EngineFacts("standby", False, "is HARD_OPEN"))
    out = Usable("1.0", engines, fallback="small")
    assert routed("big", big=out) == Look("small")
    step = routed("big", big=out, small=UP)
    assert step == Choice(
        "small", "1.0", "primary", "fallback of 'big'; big: primary is FORCED_OPEN, standby is HARD_OPEN", True
    )


def test_one_that_is_being_brought_back_is_waited_for() -> None:
    engines = (EngineFacts("primary", False, "is RESTARTING", is_coming=True), EngineFacts("standby", False, "is OPEN"))
    step = routed("big", big=Usable("1.0", engines, fallback="small"), small=UP)
    assert isinstance(step, Choice)
    assert step.model == "big"


def test_where_nobody_else_can_answer_the_one_that_was_asked_for_is_left_to_say_so() -> None:
    out = Usable("1.0", (EngineFacts("primary", False, "is OPEN"),), fallback="small")
    step = routed("big", big=out, small=Unusable("not installed"))
    assert step == Choice("big", "1.0", "primary", "asked for; small: not installed", is_fallback=False)
    step = routed("chat", {"chat": ("big", "small")}, big=Unusable("damaged"), small=out)
    assert step == Choice("small", "1.0", "primary", "no other model can answer; big: damaged", is_fallback=True)


NAMES = st.sampled_from(["a", "b", "c", "d"])


@settings(max_examples=80, deadline=None)
@given(
    truth=st.dictionaries(
        NAMES,
        st.one_of(
            st.just(UP),
            st.builds(Unusable, st.just("broken"), st.none() | NAMES),
            st.builds(Usable, st.just("1.0"), st.just((EngineFacts("primary", False, "is OPEN"),)), st.none() | NAMES),
        ),
        min_size=4,
    ),
    task=st.lists(NAMES, min_size=1, max_size=3),
)
def test_looking_ends_and_the_choice_is_usable_if_any_model_on_the_way_is(
    truth: dict[str, Facts], task: list[str]
) -> None:
    facts: dict[str, Facts] = {}
    for _ in range(len(truth) + 1):
        step = route("t", facts, tasks={"t": task}, engine=None)
        if not isinstance(step, Look):
            break
        assert step.model not in facts
        facts[step.model] = truth[step.model]
    assert not isinstance(step, Look)
    if isinstance(step, Choice):
        assert truth[step.model] == UP or not any(facts[name] == UP for name in facts)
        assert isinstance(truth[step.model], Usable)
        assert step.is_fallback == (step.model != task[0])
    else:
        assert all(isinstance(truth[name], Unusable) for name in task)
