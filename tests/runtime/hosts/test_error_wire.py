import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base import errors
from kensho.runtime.hosts.error_wire import _classes, describe_error, restore_error
from kensho.runtime.text.tokenizer.refuse import NotCovered


@pytest.mark.parametrize(
    "error",
    [
        errors.UnknownArchitecture("no such mathematics", advice="choose another model", architecture="X"),
        errors.NotEnoughSpace("full", needed_bytes=3, free_bytes=1),
        errors.WrongNumbers("nan"),
        errors.EngineError("plain"),
    ],
)
def test_an_error_of_ours_arrives_as_what_it_was(error: errors.KenshoError) -> None:
    arrived = restore_error(json.loads(json.dumps(describe_error(error))))
    assert type(arrived) is type(error)
    assert (str(arrived), arrived.facts) == (str(error), error.facts)


def test_a_special_error_of_a_module_arrives_as_its_family() -> None:
    arrived = restore_error(describe_error(NotCovered("odd")))
    assert type(arrived) is errors.ModelError
    assert NotCovered not in set(_classes(errors.KenshoError))


def test_a_foreign_error_becomes_an_engine_error_without_a_traceback() -> None:
    arrived = restore_error(describe_error(MemoryError("arena")))
    assert type(arrived) is errors.EngineError
    assert str(arrived) == "MemoryError: arena"


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text() | st.sampled_from(["code", "message", "facts"]), st.none() | st.text() | st.lists(st.none())
    )
)
def test_whatever_is_sent_becomes_an_error_of_ours(data: dict[str, object]) -> None:
    assert isinstance(restore_error(data), errors.KenshoError)
