import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.app.tiers import (
    COPIES,
    HOST_BYTES,
    IDLE_CLOSE_S,
    IDLE_MAPPED_S,
    KEPT_MODELS,
    PACK_TOKENS,
    RESERVE_BYTES,
    ModelSizes,
    ModelUse,
    TierFacts,
    check_room,
    choose_tier,
    models_to_close,
)
from kensho.base.errors import EngineError, NotEnoughMemory

GIB = 1 << 30
SIZES = st.builds(
    lambda layers, head, kv, hosts: ModelSizes(layers + head, kv, hosts, head),
    st.integers(0, 2 * GIB),
    st.integers(0, 2 * GIB),
    st.integers(0, GIB),
    st.integers(1, 2),
)
TIERS = st.sampled_from(["raw", "mapped", "mixed", "packed"])
FACTS = st.builds(
    TierFacts, TIERS, SIZES, st.integers(0, 16 * GIB), st.integers(0, 3 * PACK_TOKENS), st.floats(0, 2 * IDLE_CLOSE_S)
)
USES = st.lists(
    st.builds(ModelUse, st.integers(0, 99), st.floats(0, 2 * IDLE_CLOSE_S), st.booleans(), st.booleans()),
    max_size=6,
    unique_by=lambda use: use.key,
)


def facts(current: str = "mapped", **changed: object) -> TierFacts:
    values: dict[str, object] = {
        "current": current,
        "sizes": ModelSizes(280 << 20, 75 << 20, 2),
        "free_bytes": 8 * GIB,
        "recent_tokens": PACK_TOKENS,
        "idle_s": 0.0,
    }
    return TierFacts(**{**values, **changed})  # type: ignore[arg-type]


@given(FACTS, TIERS)
@settings(max_examples=50, deadline=None)
def test_a_tier_that_somebody_chose_is_kept(given_facts: TierFacts, tier: str) -> None:
    assert choose_tier(tier, given_facts) == tier  # type: ignore[arg-type]


@given(FACTS)
@settings(max_examples=200, deadline=None)
def test_packing_is_begun_only_where_memory_stays_and_a_stream_is_there(given_facts: TierFacts) -> None:
    chosen = choose_tier("auto", given_facts)
    if chosen in COPIES and given_facts.current != chosen:
        assert given_facts.free_bytes - given_facts.sizes.needed_bytes(chosen) >= 2 * RESERVE_BYTES
        assert given_facts.recent_tokens >= PACK_TOKENS
    if given_facts.free_bytes < RESERVE_BYTES:
        assert chosen not in COPIES


@given(FACTS)
@settings(max_examples=200, deadline=None)
def test_a_choice_does_not_swing_back_for_the_memory_that_it_took(given_facts: TierFacts) -> None:
    chosen = choose_tier("auto", given_facts)
    if chosen in COPIES and chosen != given_facts.current and given_facts.idle_s < IDLE_MAPPED_S:
        free = given_facts.free_bytes - given_facts.sizes.needed_bytes(chosen)
        after = TierFacts(chosen, given_facts.sizes, free, 0, given_facts.idle_s)
        assert choose_tier("auto", after) == chosen


def test_where_packed_does_not_fit_mixed_takes_its_place_and_packed_follows_when_it_does() -> None:
    sizes = ModelSizes(280 << 20, 75 << 20, 2, head_bytes=168 << 20)
    tight = 2 * RESERVE_BYTES + sizes.needed_bytes("mixed")
    assert choose_tier("auto", facts(sizes=sizes, free_bytes=tight)) == "mixed"
    assert choose_tier("auto", facts("mixed", sizes=sizes, free_bytes=tight)) == "mixed"
    assert choose_tier("auto", facts("mixed", sizes=sizes)) == "packed"
    assert choose_tier("auto", facts(sizes=sizes, free_bytes=tight - 1)) == "mapped"


def test_raw_is_only_for_as_long_as_it_takes_to_compile() -> None:
    assert choose_tier("auto", facts("raw", free_bytes=0)) == "mapped"


@pytest.mark.parametrize("changed", [{"free_bytes": RESERVE_BYTES - 1}, {"idle_s": IDLE_MAPPED_S}])
@pytest.mark.parametrize("tier", ["mixed", "packed"])
def test_a_copy_is_given_back_under_pressure_and_when_idle(tier: str, changed: dict[str, object]) -> None:
    assert choose_tier("auto", facts("packed")) == "packed"
    assert choose_tier("auto", facts(tier, **changed)) == "mapped"


@given(USES, st.integers(0, 2 * RESERVE_BYTES))
@settings(max_examples=200, deadline=None)
def test_who_is_in_use_or_pinned_stays_and_the_longest_unused_go_first(
    uses: list[ModelUse[int]], free_bytes: int
) -> None:
    closed = models_to_close(uses, free_bytes)
    loose = [use for use in uses if not use.is_kept]
    assert set(closed) <= {use.key for use in loose}
    assert all(use.key in closed for use in loose if use.idle_s >= IDLE_CLOSE_S)
    stay = [use for use in uses if use.key not in closed]
    assert len(stay) <= KEPT_MODELS or all(use.is_kept for use in stay)
    young = [use.key for use in loose if use.idle_s < IDLE_CLOSE_S]
    gone = [key for key in young if key in closed]
    assert gone == young[: len(gone)]
    if free_bytes < RESERVE_BYTES and loose and not any(use.can_shrink for use in uses):
        assert closed


@given(TIERS, SIZES, st.integers(0, 8 * GIB))
@settings(max_examples=100, deadline=None)
def test_what_does_not_fit_is_refused_with_numbers(tier: str, sizes: ModelSizes, free_bytes: int) -> None:
    copied = {"packed": sizes.graph_bytes, "mixed": sizes.graph_bytes - sizes.head_bytes}.get(tier, 0)
    needed = sizes.hosts * (HOST_BYTES + sizes.kv_bytes) + copied
    if needed + RESERVE_BYTES <= free_bytes:
        check_room("m", tier, sizes, free_bytes)  # type: ignore[arg-type]
    else:
        with pytest.raises(NotEnoughMemory, match=rf"'m' on the {tier} tier: need .* may be taken") as caught:
            check_room("m", tier, sizes, free_bytes)  # type: ignore[arg-type]
        assert isinstance(caught.value, EngineError)
        assert caught.value.facts["needed_bytes"] == needed
        assert caught.value.advice
