"""The study's advice from its own tables, and that no advice is given where the evidence gives none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.measured import Measured
from stages.report.serving.recommendation import Curve, Option, cheapest, find_flips, recommend, unbeaten
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
    """70B on four A6000: the printed speed-ups are 1.91 and 1.92, and their digits do not tell them apart."""
    found = advice("70B", "A6000").asynchronous
    assert found.best is None
    assert found.text == "not enough evidence: w4a16_int or w8a8_int"


def test_the_fastest_format_changes_with_the_rate_as_in_the_study_s_second_figure():
    """8B on one A6000, docstring generation: 4 bits at low rates, INT8 at rates that 4 bits cannot reach."""
    [flip] = [flip for flip in advice("8B", "A6000").flips if flip.workload == "docstring_generation"]
    assert (flip.below, flip.above) == ("w4a16_int", "w8a8_int")
    assert 0.7 < flip.low_rate < 1
    assert 5.3 < flip.high_rate < 5.7


@pytest.mark.parametrize(("model", "gpu"), SETUPS)
def test_sixteen_bits_are_beaten_only_where_a_format_loses_nothing(model, gpu):
    """The printed recoveries above 100 %: 8B in INT8, and 405B in FP8, which on H100 leaves nothing else to choose."""
    found = advice(model, gpu).unbeaten
    assert ("bf16" not in found) == ((model, gpu) in {("8B", "A6000"), ("405B", "H100")})
    assert ("w4a16_int" not in found) == ((model, gpu) == ("405B", "H100"))


def test_a_mix_decides():
    """On the A6000 4 bits write long answers to short prompts as fast as INT8 and read long prompts slower."""
    options = [option("8B", "A6000", recipe) for recipe in recipes("8B", "A6000")]
    assert recommend(options, {"summarization": 1, "rag": 3}).asynchronous.best == "w8a8_int"
    assert recommend(options, {"code_completion": 1}).asynchronous.best is None


def measured(value, share=0.0):
    return Measured(value, value * (1 - share), value * (1 + share))


def curve(points, capacity):
    return Curve([(rate, measured(latency, 0.01)) for rate, latency in points], measured(capacity))


def test_a_flip_is_bracketed_by_the_nearest_rates_that_show_it():
    curves = {
        "w4a16": curve([(1, 10), (10, 14), (20, 30)], 22),
        "w8a8": curve([(1, 12), (10, 13.9), (20, 16)], 40),
    }
    [flip] = find_flips("chat", curves)
    assert (flip.below, flip.above, flip.low_rate, flip.high_rate) == ("w4a16", "w8a8", 1, 20)


def test_overlapping_curves_never_flip():
    curves = {"a": curve([(1, 10), (9, 12)], 10), "b": curve([(1, 10.1), (9, 11.9)], 10)}
    assert find_flips("chat", curves) == []


def test_a_rate_that_a_format_may_not_reach_proves_nothing():
    """Only one format's interval reaches beyond 12 requests/s, and only its upper end does."""
    unsure = Curve([(1, measured(20, 0.01))], Measured(10, 4, 17))
    assert find_flips("chat", {"a": curve([(1, 10), (9, 12)], 11), "unsure": unsure}) == []


def test_nothing_measured_is_said_so():
    found = recommend([Option("bf16", {}, {}, 1.0, 1.0)], {"chat": 1.0})
    assert found.synchronous.text == found.asynchronous.text == "not measured"
    assert found.flips == found.unbeaten == ()


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.floats(0.1, 10), st.floats(0, 0.5)), min_size=1))
def test_the_best_is_below_all_others_or_there_is_none(costs):
    intervals = {name: measured(value, share) for name, (value, share) in costs.items()}
    verdict = cheapest(intervals)
    if verdict.best is not None:
        assert all(
            intervals[verdict.best].high < other.low for name, other in intervals.items() if name != verdict.best
        )
    else:
        leader, rival, *_ = verdict.candidates
        assert intervals[leader].high >= intervals[rival].low


@given(st.lists(st.tuples(*[st.floats(0.5, 2)] * 3), min_size=1, max_size=5))
def test_something_is_always_unbeaten(points):
    options = [
        Option(str(index), {"w": measured(latency)}, {"w": measured(rate)}, 1.0, 1.0, measured(recovery))
        for index, (latency, rate, recovery) in enumerate(points)
    ]
    found = unbeaten(options, {"w": 1.0})
    assert found
    assert (
        min(options, key=lambda o: (o.latency_s["w"].value, -o.queries_per_s["w"].value, -o.recovery.value)).recipe
        in found
    )


def test_a_format_that_was_not_measured_is_named_and_leaves_no_winner_by_default():
    whole = {"chat": measured(1.0, 0.01), "rag": measured(2.0, 0.01)}
    options = [Option("bf16", whole, whole, 1.0, 1.0), Option("w4a16", {"chat": measured(0.4, 0.01)}, {}, 1.0, 1.0)]
    found = recommend(options, {"chat": 1.0, "rag": 1.0})
    assert found.synchronous.best is None
    assert found.synchronous.text == "not enough evidence: bf16 (not measured: w4a16)"
    assert recommend(options, {"chat": 1.0}).synchronous.text == "w4a16"


def test_the_ratio_to_what_is_hardly_known_has_no_narrow_interval():
    ratio = Measured.exactly(1.0).over(Measured(1.0, 0.43, 1.57))
    assert ratio.low == pytest.approx(1 / 1.57)
    assert ratio.high == pytest.approx(1 / 0.43)
