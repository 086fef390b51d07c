"""Numbers of finished runs: the rule of Table 9."""

from experiments.run.scores import AttackedScores, top1_at_paper_budgets
from tests.experiments.finished_run import at_paper_budgets, under_attack


def scores(records, kind="untargeted"):
    return [AttackedScores.from_dict({"kind": kind, "step": 9, **record}) for record in records]


def test_the_lower_of_the_papers_two_attacks_counts():
    found = scores(at_paper_budgets(45.0, 44.0))
    assert top1_at_paper_budgets(found, "untargeted") == 44.0
    assert top1_at_paper_budgets(found[::-1], "untargeted") == 44.0
    assert top1_at_paper_budgets(found, "targeted") is None


def test_attacks_with_other_budgets_do_not_count():
    others = [under_attack(9.0, step_size=8.0, steps=10), under_attack(1.0, epsilon=64.0)]
    found = scores([*at_paper_budgets(45.0, 44.0), *others])
    assert top1_at_paper_budgets(found, "untargeted") == 44.0
    assert top1_at_paper_budgets(scores(others), "untargeted") is None


def test_one_of_the_two_attacks_is_not_enough():
    assert top1_at_paper_budgets(scores([under_attack(45.0)]), "untargeted") is None


def test_keys_of_other_versions_are_left_out():
    (record,) = scores([{**under_attack(45.0), "wings": 2}])
    assert record == scores([under_attack(45.0)])[0]
