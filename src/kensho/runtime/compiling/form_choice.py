"""Choose how activations are quantised on this machine: correct first, then precise, then fast.

CPUs differ: some add u8 x s8 up wrongly, some multiply s8 x s8 fifty times slower than u8 x s8, others as fast and
without the correction that unsigned activations need. So nothing is decided from a list of CPUs; every form is asked:

1. Are its integer sums exact, and is its product not hopelessly slow (`forms_to_try`)? Costs a few milliseconds.
2. Does its graph answer like the exact one, and how long does a token take (`Candidate`)? 20 ms of decode steps.
3. Of the correct ones the finest is taken, and of equally fine ones the fastest (`choose`).

The engine and the stopwatch are passed in.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from kensho.base.clock import Seconds
from kensho.base.errors import CompileFailed
from kensho.base.structs import Struct
from kensho.runtime.cache.header import FormSpeed, SelfTestVector
from kensho.runtime.compiling.self_test import Steps
from kensho.runtime.graph.graph_int8 import Form
from kensho.runtime.graph.integer_kernel import Product, multiply_mapped, multiply_packed, sums_are_exact
from kensho.runtime.graph.quantize import LIMIT

HOPELESS = 4.0
"""A product this many times slower than the fastest is not tried in a whole graph, where one token of it could take a
second. Measured on Zen 5: s8 takes 50 times as long as u8, u7 as long."""
WORTH = 0.9
"""A later form must need less than this part of an earlier one's time: below that it is noise."""
_MEASURE_S: Seconds = 0.02
_MIN_STEPS, _MAX_STEPS = 3, 1000
_INNER, _OUTPUTS = 512, 1024


class Speed(Protocol):
    """The stopwatch. Times in microseconds, at least 1."""

    def product_us(self, form: Form) -> int:
        """One row times a matrix, by the mapped tier's kernel."""
        ...

    def decode_us(self, form: Form, session: Steps) -> int:
        """One token. Leaves the session empty."""
        ...


class Candidate(Struct):
    """A form whose graph was run and answers right."""

    form: Form
    graph: bytes
    vector: SelfTestVector
    decode_us: int


def find_form(
    forms: Sequence[Form], try_form: Callable[[Form], Candidate | str], speed: Speed
) -> tuple[Candidate, tuple[FormSpeed, ...]]:
    """The form to use, and what was measured. `try_form` says why when a form is not correct.

    Raises CompileFailed when none is: stay on the raw tier.
    """
    failures = []
    products: dict[Form, int] = {}
    for form in forms:
        if all(sums_are_exact(form, multiply) for multiply in (multiply_mapped, multiply_packed)):
            products[form] = speed.product_us(form)
        else:
            failures.append(f"{form.name}: the CPU's sums overflow")
    left = forms_to_try(products)
    for levels in sorted({form.levels for form in left}, reverse=True):
        found = []
        for form in left:
            if form.levels == levels:
                result = try_form(form)
                if isinstance(result, Candidate):
                    found.append(result)
                else:
                    failures.append(f"{form.name}: {result}")
        if found:
            speeds = tuple(FormSpeed(candidate.form.name, candidate.decode_us) for candidate in found)
            return choose(found), speeds
    raise CompileFailed(
        f"no int8 graph answers like the exact one on this CPU ({'; '.join(failures)})",
        advice="the model still runs uncompiled",
        stage="finalizing",
    )


def forms_to_try(products_us: Mapping[Form, int]) -> list[Form]:
    """Those whose product is not hopelessly slower than the fastest one's, in their order. Pure."""
    fastest_us = min(products_us.values(), default=1)
    return [form for form, product_us in products_us.items() if product_us <= HOPELESS * fastest_us]


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """Of equally fine forms the fastest; an earlier one unless a later one is clearly faster. Pure."""
    best = candidates[0]
    for candidate in candidates[1:]:
        if candidate.decode_us < WORTH * best.decode_us:
            best = candidate
    return best


class Stopwatch(Protocol):
    """What is needed of a clock, which may be one of processor time."""

    def monotonic_s(self) -> Seconds: ...


class MeasuredSpeed:
    """The real one: the fastest of the steps that fit into 20 ms, at least three. What disturbs only makes slower."""

    def __init__(self, clock: Stopwatch) -> None:
        self._clock = clock

    def product_us(self, form: Form) -> int:
        activations = np.full((1, _INNER), form.zero, form.dtype)
        weights = np.full((_INNER, _OUTPUTS), LIMIT, np.int8)
        product = Product(weights, form.dtype, is_packed=False)
        return self._fastest_us(lambda: product(activations))

    def decode_us(self, form: Form, session: Steps) -> int:
        del form

        def step() -> None:
            session.append([0])
            session.rewind(0)

        return self._fastest_us(step)

    def _fastest_us(self, step: Callable[[], object]) -> int:
        step()
        began_s = self._clock.monotonic_s()
        times: list[Seconds] = []
        before_s = began_s
        while len(times) < _MIN_STEPS or (before_s - began_s < _MEASURE_S and len(times) < _MAX_STEPS):
            step()
            now_s = self._clock.monotonic_s()
            times.append(now_s - before_s)
            before_s = now_s
        return max(1, round(min(times) * 1e6))
