"""The study's advice from its own tables, and that no advice is given where the evidence gives none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.measured import Measured, Replicated
from stages.report.serving.front import unbeaten
from stages.report.serving.options import Curve, Option
from stages.report.serving.recommendation import cheapest, find_flips, recommend
from tests.published import SETUPS, WORKLOADS, option, recipes

EVEN = dict.fromkeys(WORKLOADS, 1.0)


def advice(model, gpu):
    return recommend([option(model, gpu, recipe) for recipe in recipes(model, gpu)], EVEN)


@pytest.mark.parametrize(("model", "gpu"), SETUPS)
def test_one_query_at_a_time_is_cheapest_in_four_bits(model, gpu):
    assert advice(model, gpu).synchronous.best == "w4a16_int"


@pytest.mark.parametrize(
    ("model", "gpu", "expected"),
    [
        ("8B", "A6000", "w8a8_int"),
        ("70B", "A100", "w8a8_int"),
        ("70B", "H100", "w8a8_fp"),
        ("405B", "A100", "w8a8_int"),
        ("405B", "H100", "w8a8_fp"),
    ],
)
def test_under_load_eight_bits_win_on_high_end_gpus(model, gpu, expected):
    assert advice(model, gpu).asynchronous.best == expected


def test_on_mid_tier_gpus_four_bits_remain_good_under_load():
    """70B on four A6000: the printed speed-ups are 1.91 and 1.92."""
    assert "w4a16_int" in advice("70B", "A6000").asynchronous.candidates


def test_the_fastest_format_changes_with_the_rate_as_in_the_study_s_second_figure():
    """8B on one A6000, docstring generation: 4 bits at low rates, INT8 at rates that 4 bits cannot reach."""
    [flip] = [flip for flip in advice("8B", "A6000").flips if flip.workload == "docstring_generation"]
    assert (flip.below, flip.above) == ("w4a16_int", "w8a8_int")
    assert 0.7 < flip.low_rate < 1
    assert 5.3 < flip.high_rate < 5.7


@pytest.mark.parametrize(("model", "gpu"), SETUPS)
def test_eight_bits_that_lose_less_than_the_margin_beat_sixteen(model, gpu):
    """Every printed recovery of 8 bits is above 99 %; of 405B eight bits beat four as well."""
    found = advice(model, gpu).unbeaten.names
    assert "bf16" not in found
    assert ("w4a16_int" not in found) == (model == "405B")


def test_a_mix_decides():
    """On the A6000 4 bits write long answers to short prompts as fast as INT8 and read long prompts slower."""
    options = [option("8B", "A6000", recipe) for recipe in recipes("8B", "A6000")]
    assert recommend(options, {"summarization": 1, "rag": 3}).asynchronous.best == "w8a8_int"
    assert recommend(options, {"code_completion": 1}).asynchronous.best is None


def starts(server, value, share=0.001, number=3):
    """So many starts, the furthest ``share`` from the value."""
    shifts = [0.0] if number == 1 else [share * (2 * i / (number - 1) - 1) for i in range(number)]
    return Replicated.of(server, {i: value * (1 + shift) for i, shift in enumerate(shifts, 1)})


def curve(server, points, capacity, number=3):
    return Curve(
        [(rate, starts(server, ms, number=number)) for rate, ms in points], starts(server, capacity, 0.001, number)
    )


def test_a_flip_is_bracketed_by_the_nearest_rates_that_show_it():
    curves = {
        "w4a16": curve("a", [(1, 10), (10, 14), (20, 30)], 22),
        "w8a8": curve("b", [(1, 12), (10, 14.01), (20, 16)], 40),
    }
    [flip] = find_flips("chat", curves)
    assert (flip.below, flip.above, flip.low_rate, flip.high_rate) == ("w4a16", "w8a8", 1, 20)


def test_curves_that_no_test_tells_apart_never_flip():
    curves = {"a": curve("a", [(1, 10), (9, 12)], 10), "b": curve("b", [(1, 10.01), (9, 11.99)], 10)}
    assert find_flips("chat", curves) == []


def test_curves_that_were_measured_once_flip_nowhere_and_are_named():
    points = {"a": [(1, 10), (9, 20)], "b": [(1, 15), (9, 16)]}
    once = {name: curve(name, own, 10, number=1) for name, own in points.items()}
    assert find_flips("chat", once) == []
    assert len(find_flips("chat", {name: curve(name, own, 10) for name, own in points.items()})) == 1
    options = [Option(name, {}, {}, 1.0, 1.0, curves={"chat": own}) for name, own in once.items()]
    assert recommend(options, {"chat": 1.0}).untested == ("chat",)


def test_a_rate_that_a_format_may_not_reach_proves_nothing():
    """Only one format's interval reaches beyond 12 requests/s, and only its upper end does."""
    unsure = Curve([(1, starts("b", 20))], starts("b", 10, 0.2))
    assert find_flips("chat", {"a": curve("a", [(1, 10), (9, 12)], 11), "unsure": unsure}) == []


def test_a_latency_that_is_only_bounded_is_no_lowest():
    """At 15 requests/s one format is known to be no faster than at 10, the other was measured."""
    curves = {"a": curve("a", [(1, 10), (10, 12)], 30), "b": curve("b", [(1, 11), (20, 14)], 30)}
    assert find_flips("chat", curves) == []


def test_nothing_measured_is_said_so():
    found = recommend([Option("bf16", {}, {}, 1.0, 1.0)], {"chat": 1.0})
    assert found.synchronous.text == found.asynchronous.text == "not measured"
    assert found.flips == found.unbeaten.names == ()
    assert found.unbeaten.text == "not enough is measured (recovery, latency and cost are needed)"


def test_the_cheapest_differs_from_each_rival_by_a_test_over_starts():
    """Intervals of 1.00 and 1.02 that overlap, and a difference that three starts of each still show."""
    costs = {"a": starts("a", 1.0, 0.005), "b": starts("b", 1.02, 0.005)}
    assert costs["a"].measured.high > costs["b"].measured.low
    assert cheapest(costs).best == "a"
    assert cheapest(costs | {"b": starts("b", 1.005, 0.005)}).text == "not enough evidence: a or b"


def test_more_rivals_ask_for_more_evidence():
    """p is .034 for one rival; for each of three alike Holm asks for .017 first."""
    leader, rival = starts("a", 1.0, 0.005), 1.0099
    assert leader.p_apart(starts("b", rival, 0.005)) == pytest.approx(0.07, abs=0.05)
    rivals = {name: starts(name, rival + 0.003, 0.005) for name in "bcd"}
    assert cheapest({"a": leader, "b": rivals["b"]}).best == "a"
    assert cheapest({"a": leader, **rivals}).best is None


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_single_start_gives_no_verdict(number):
    costs = {"a": starts("a", 1.0, 0.001, number), "b": starts("b", 3.0, 0.001, number)}
    found = cheapest(costs)
    assert (found.best == "a") == (number > 1)
    assert number > 1 or found.text == "measured once, no verdict; the lowest is a"


def test_a_rival_that_was_measured_once_is_not_ruled_out():
    found = cheapest({"a": starts("a", 1.0), "b": starts("b", 2.0), "c": starts("c", 3.0, number=1)})
    assert found.text == "not enough evidence: a or c (measured once: c)"


COSTS = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.floats(0.1, 10), st.floats(0.001, 0.5)), min_size=1)


@given(COSTS)
def test_the_best_is_the_lowest_or_there_is_none(costs):
    known = {name: starts(name, value, share) for name, (value, share) in costs.items()}
    verdict = cheapest(known)
    assert known[verdict.candidates[0]].value == min(cost.value for cost in known.values())
    assert verdict.best in (None, verdict.candidates[0])
    assert (verdict.best is None) == (len(verdict.candidates) > 1)


def choice(name, latency, rate, recovery, number=3):
    ends = Measured(recovery, recovery - 0.002, recovery + 0.002)
    return Option(
        name, {"w": starts(name, latency, 0.001, number)}, {"w": starts(name, rate, 0.001, number)}, 1.0, 1.0, ends
    )


@given(st.lists(st.tuples(*[st.floats(0.5, 2)] * 3), min_size=1, max_size=5))
def test_something_is_always_unbeaten(points):
    options = [choice(str(index), *point) for index, point in enumerate(points)]
    assert unbeaten(options, {"w": 1.0}).names


@pytest.mark.parametrize(
    ("other", "is_beaten"),
    [
        ((0.9, 1.0, 1.0), True),  # as good in two, better in one
        ((0.9, 0.99, 1.0), True),  # worse in one by less than its margin
        ((0.9, 0.95, 1.0), False),  # worse in one by more
        ((0.9, 1.1, 0.98), False),  # loses too many answers
        ((0.9, 1.1, 0.995), True),
        ((1.0, 1.0, 1.0), False),  # as good, and better in none
        ((0.9995, 1.0005, 1.0), False),  # better in none beyond chance
    ],
)
def test_a_format_is_beaten_by_one_that_is_not_worse_in_all_and_better_in_one(other, is_beaten):
    found = unbeaten([choice("a", 1.0, 1.0, 1.0), choice("b", *other)], {"w": 1.0})
    assert ("a" not in found.names) == is_beaten
    assert "b" in found.names


def test_two_that_beat_each_other_within_the_margins_both_stay():
    """One is a per cent cheaper, the other a per cent faster; a third is worse in both."""
    options = [choice("a", 1.0, 1.01, 1.0), choice("b", 0.99, 1.0, 1.0), choice("c", 1.01, 0.995, 1.0)]
    assert unbeaten(options, {"w": 1.0}).names == ("a", "b")


def test_three_that_beat_each_other_in_a_ring_all_stay():
    """Each is better than the next in one by more than its margin, and by less in the others no worse."""
    places = {"a": (0.0, 1.5, 0.75), "b": (3.0, 0.0, 0.0), "c": (1.5, 3.0, 0.2)}
    options = [
        choice(name, 1 + latency / 100, 1 / (1 + cost / 100), 1 - loss / 100)
        for name, (latency, cost, loss) in places.items()
    ]
    assert unbeaten(options, {"w": 1.0}).names


def test_what_was_measured_once_neither_beats_nor_is_beaten():
    found = unbeaten([choice("a", 1.0, 1.0, 1.0), choice("b", 0.5, 2.0, 1.0, number=1)], {"w": 1.0})
    assert found.text == "a; measured once, no verdict: b"


def test_a_format_that_was_not_measured_is_named_and_leaves_no_winner_by_default():
    whole = {"chat": starts("a", 1.0), "rag": starts("a", 2.0)}
    options = [Option("bf16", whole, whole, 1.0, 1.0), Option("w4a16", {"chat": starts("b", 0.4)}, {}, 1.0, 1.0)]
    found = recommend(options, {"chat": 1.0, "rag": 1.0})
    assert found.synchronous.best is None
    assert found.synchronous.text == "not enough evidence: bf16 (not measured: w4a16)"
    assert recommend(options, {"chat": 1.0}).synchronous.text == "w4a16"
