from kensho.resilience.budget import Budget


def test_a_budget_begins_with_its_burst_and_then_gives_its_share_of_all_calls() -> None:
    budget = Budget(share=0.25, burst=3)
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]
    spent = 0
    for _ in range(100):
        budget.earn()
        spent += budget.spend()
    assert spent == 25


def test_what_is_not_spent_is_kept_up_to_the_burst() -> None:
    budget = Budget(share=0.5, burst=2)
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_no_share_and_no_burst_is_no_repetition() -> None:
    budget = Budget(share=0.0, burst=0)
    budget.earn()
    assert not budget.spend()
