"""A limit asks a random sample of a task's documents: the same one everywhere, for all trials, and in any shards."""

import itertools

import pytest

from stages.evaluate.order import asked_order, documents_of


def test_without_a_seed_it_is_the_task_s_own_order() -> None:
    assert documents_of(1000, 3, 6, None) == [3, 4, 5]


def test_the_sample_is_the_same_on_every_machine() -> None:
    assert documents_of(1000, 0, 8, 0) == [16, 325, 437, 486, 771, 906, 969, 976]
    assert documents_of(1000, 0, 8, 1) == [11, 193, 313, 445, 782, 803, 951, 957]


@pytest.mark.parametrize("bounds", [[0, 40], [0, 10, 40], [0, 7, 15, 39, 40]])
def test_shards_make_up_the_sample_however_it_is_cut(bounds: list[int]) -> None:
    parts = [documents_of(200, *pair, 5) for pair in itertools.pairwise(bounds)]
    assert all(part == sorted(part) for part in parts)
    assert sorted(doc_id for part in parts for doc_id in part) == documents_of(200, 0, 40, 5)


def test_it_is_spread_over_the_whole_task_and_a_larger_one_holds_it() -> None:
    sample = documents_of(1000, 0, 200, 0)
    assert all(30 <= sum(start <= doc_id < start + 200 for doc_id in sample) <= 50 for start in range(0, 1000, 200))
    assert set(sample) < set(documents_of(1000, 0, 300, 0)), "a raised limit keeps what there was"
    assert documents_of(1000, 0, 1000, 0) == list(range(1000))


def test_every_rerun_asks_in_an_order_of_its_own() -> None:
    assert asked_order(6, 0) == [0, 1, 2, 3, 4, 5]
    orders = [asked_order(50, rerun) for rerun in range(4)]
    assert all(sorted(order) == orders[0] for order in orders)
    assert all(one != other for one, other in itertools.combinations(orders, 2))
