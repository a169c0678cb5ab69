"""What can be asked for can be sent, and what was sent is understood: no odd parameter ends a host."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import ConfigError
from kensho.base.inference import Sampling
from kensho.runtime.hosts.frames import Decoder, Generate, encode

EDGES = st.sampled_from([0, -1, 1, 64, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1])
NUMBERS = EDGES | st.integers()
TEMPERATURES = st.sampled_from([0.0, -0.0, 5.0, 5.0000001, float("nan"), float("inf"), -float("inf")]) | st.floats()


@settings(max_examples=200, deadline=None)
@given(NUMBERS, TEMPERATURES, NUMBERS, st.lists(NUMBERS, max_size=3) | st.integers(0, 70).map(lambda n: [7] * n))
def test_sampling_that_can_be_made_crosses_to_the_host_unchanged(
    max_tokens: int, temperature: float, seed: int, stops: list[int]
) -> None:
    try:
        sampling = Sampling(max_tokens, temperature, seed, tuple(stops))
    except ConfigError:
        return
    request = Generate(1, (1, 2), (3,), sampling)
    assert Decoder().feed(encode(request)) == [request]
