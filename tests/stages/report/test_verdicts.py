"""What a sweep's report decides: which cells the grid confirms, what a suite's mean is worth, what may be shipped."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages.compare.artifact import Numbers
from stages.compare.asked import Ask
from stages.compare.config import CompareConfig
from stages.compare.rows import rows
from stages.compare.stage import compare
from stages.compare.whole import RAW, compared
from stages.report.artifact import read_document
from stages.report.config import FailureRow, ReportConfig, SuiteRow, TrialRow
from stages.report.stage import report
from stages.report.verdicts import confirmed
from tests.benchmarks.statistics import evidence_of

DATA = Path(__file__).parents[2] / "data"
BASE = TrialRow(name="m/bf16", model="m", recipe="bf16", is_base=True)


def answers(n, lost=0, won=0, right=0.6):
    """Of trial and base; ``lost`` documents are right in the base alone."""
    base = np.zeros(n)
    base[: round(right * n)] = 1
    trial = base.copy()
    trial[:lost], trial[n - won :] = 0, 1
    return trial.tolist(), base.tolist()


@pytest.fixture(scope="module")
def compare_once(tmp_path_factory, write_evaluation):
    """Where a comparison of trial and base on a task was written, by the cell itself: its answers, and settings."""
    known = {}

    def compare_once(task, cell, is_shared, settings):
        place = task, id(cell), is_shared, repr(settings)
        if place not in known:
            asked = cell if isinstance(cell, dict) else {"answers": cell}
            written = asked.get("written", {})
            sides = [write_evaluation(task, side, is_shared=is_shared, **written) for side in asked["answers"]]
            out = tmp_path_factory.mktemp("compare")
            pair = {f"trial/{task}": sides[0], f"base/{task}": sides[1]}
            compare(CompareConfig(task=task, leaves=[task], **settings), pair, out)
            known[place] = cell, out
        return known[place][1]

    return compare_once


@pytest.fixture(scope="module")
def judge(tmp_path_factory, compare_once):
    """A report on one base and trials, {trial: {task: (answers of trial and base, or settings of both)}}."""

    def judge(trials, *, suites=(), failures=(), is_shared=False, tasks=(), data=None, **settings):
        inputs = {
            f"compare/m/{trial}/{task}": compare_once(task, cell, is_shared, settings)
            for trial, cells in trials.items()
            for task, cell in cells.items()
        }
        names = list(dict.fromkeys([*(task for cells in trials.values() for task in cells), *tasks]))
        config = ReportConfig(
            title="t",
            trials=[BASE, *(TrialRow(name=f"m/{trial}", model="m", recipe=trial) for trial in trials)],
            tasks=names,
            suites=list(suites),
            failures=list(failures),
            data=data or {},
        )
        out = tmp_path_factory.mktemp("report")
        report(config, inputs, out)
        document = json.loads((out / "summary.json").read_text())
        return SimpleNamespace(
            trials={each.recipe: each for each in read_document(out).trials},
            suites={(each["trial"].removeprefix("m/"), each["suite"]): each for each in document["suites"]},
            cells={(each["recipe"], each["task"]): each for each in document["rows"]},
            page=(out / "report.md").read_text(),
        )

    return judge


def suite(*tasks, name="v1", **settings):
    return SuiteRow(name=name, tasks=list(tasks), **settings)


GOOD = answers(4000, 40, 40)


def test_of_real_pairs_the_broken_checkpoint_is_confirmed_and_no_rerun_is():
    config, found, kinds = CompareConfig(task="t", leaves=["t"]), {}, {}
    with (DATA / "pairs.csv").open() as stream:
        for number, each in enumerate(csv.DictReader(stream)):
            n, right, lost, won = (int(each[name]) for name in ("n", "base_right", "lost", "won"))
            base = np.repeat([1.0, 1.0, 0.0, 0.0], [right - lost, lost, won, n - right - won])
            trial = np.repeat([1.0, 0.0, 1.0, 0.0], [right - lost, lost, won, n - right - won])
            ask = Ask(raw=compared([evidence_of(trial, base, is_right_or_wrong=True)], True, [RAW]))
            (row,) = rows([ask], config, lower_is_better=False)
            place = {"trial": each["pair"], "task": f"{each['task']}{number}", "is_base": False, "status": "measured"}
            kinds.setdefault(each["kind"], []).append(asdict(Numbers()) | row | place | {"note": each["note"]})
    for kind, cells in kinds.items():
        found[kind] = confirmed(cells, [])

    def num(kind, verdict, **also):
        also = {"verdict": verdict} | also
        return sum(all(row[name] == value for name, value in also.items()) for row in found[kind])

    assert num("gptq", "degraded", is_confirmed=True) == 9 and num("gptq", "improved", is_confirmed=True) == 5
    assert num("gptq", "degraded", note="broken", reason="beyond margin", is_confirmed=True) == 4
    assert (num("rerun", "degraded"), num("rerun", "degraded", is_confirmed=True)) == (2, 0)
    assert num("rerun", "improved", is_confirmed=True) == 0
    assert {row["is_confirmed"] for row in found["rerun"] if row["verdict"] in ("equivalent", "inconclusive")} == {None}


def test_a_cell_that_is_degraded_by_itself_is_not_confirmed_among_many_and_failed_ones_count(judge):
    lost = answers(2000, 22, 9)  # p = .0196
    alone = judge({"int4": {"arc": lost}}, margin_points=0.5)
    assert (alone.cells["int4", "arc"]["verdict"], alone.cells["int4", "arc"]["is_confirmed"]) == ("degraded", True)
    assert alone.cells["int4", "arc"]["adjusted_p"] == pytest.approx(alone.cells["int4", "arc"]["verdict_p"])
    many = judge({"int4": {"arc": lost, "a": GOOD, "b": GOOD}}, margin_points=0.5)
    assert (many.cells["int4", "arc"]["verdict"], many.cells["int4", "arc"]["is_confirmed"]) == ("degraded", False)
    failures = [
        FailureRow(step=f"compare/{task}", trial="m/int4", task=task, status=status, failure_class=None)
        for task, status in (("a", "failed"), ("b", "skipped"))
    ]
    failed = judge({"int4": {"arc": lost}}, failures=failures, tasks=["a", "b", "never planned"], margin_points=0.5)
    assert failed.cells["int4", "arc"]["adjusted_p"] == many.cells["int4", "arc"]["adjusted_p"]
    assert failed.trials["int4"].num_cells == 3
    assert (failed.trials["int4"].num_degraded, failed.trials["int4"].num_confirmed_degraded) == (1, 0)
    assert failed.trials["int4"].reasons[0] == "a and b have no result: compare failed (no reason is known)"


def test_a_trial_is_shipped_whose_suite_is_not_inferior_and_whose_tasks_are_not_worse_than_the_wide_margin(judge):
    found = judge({"fp8": {"arc": GOOD, "gsm8k": GOOD}}, suites=[suite("arc", "gsm8k")])
    mean, trial = found.suites["fp8", "v1"], found.trials["fp8"]
    assert (mean["verdict"], mean["margin"]) == ("equivalent", 0.01)
    assert mean["difference_low"] < mean["difference"] == 0 < mean["difference_high"]
    assert (trial.decision, trial.leaning) == ("ship", None)
    assert trial.reasons == [
        "v1: the mean lost at most 0.32 points, the limit is 1 point; each of 2 tasks lost at most 0.45 points, the "
        "limit is 5 points (arc is nearest to it)"
    ]
    assert trial.p == trial.adjusted_p < 0.025
    assert (trial.num_equivalent, trial.worst_recovery, trial.worst_points) == (2, 1.0, 0.0)
    assert "**m/fp8, ✔ ship.** v1: the mean lost at most" in found.page, "also a single reason is listed"
    base = found.trials["bf16"]
    assert (base.decision, base.is_base, base.num_degraded) == (None, True, None)


def test_one_task_that_cannot_say_it_is_named_with_the_documents_that_would(judge):
    trial = judge({"fp8": {"arc": GOOD, "gpqa": answers(200, 15, 15)}}).trials["fp8"]
    assert trial.decision == "not decided"
    (reason,) = trial.reasons
    assert reason.startswith("gpqa: may have lost 5.59 points, the limit of a task is 5 points; about ")
    assert reason.endswith("about 631 documents would show that it lost less")  # .15 * (1.96 + 1.28)**2 / .05**2
    capped = judge({"fp8": {"gpqa": answers(200, 20, 14)}}).trials["fp8"].reasons
    assert "; it has 1,000 documents, about 4," in capped[0]  # as its scores say
    assert capped[0].endswith(" would show that it lost less: repeats, another margin or another gate may decide it")


def test_no_number_of_documents_is_named_that_would_not_show_it(judge):
    """Of few flips an interval says more than documents vary; a loss of the limit itself is no matter of documents."""
    none, over, near = answers(20, 0, 0), answers(200, 22, 10), answers(200, 20, 11)
    trial = judge({"fp8": {"arc": none}, "int8": {"arc": over}, "int4": {"arc": near}}).trials
    assert trial["fp8"].reasons[0].endswith("; about 73 documents would show that it lost less")  # 3.84 * (1 / .05 - 1)
    assert (
        trial["int8"]
        .reasons[0]
        .endswith("; a loss of 6.00 points was measured: more documents would rather confirm it")
    )
    assert "; it has 1,000 documents, far too few: repeats, " in trial["int4"].reasons[0]
    leanings = [trial[name].leaning for name in ("fp8", "int8", "int4")]
    assert leanings == ["more documents may show it", "leans to no", "cannot be decided with these tasks"]
    assert trial["int8"].decided == "not decided, leans to no"


def test_where_all_documents_are_used_already_no_more_of_them_are_advised(judge):
    """A thousand are all that the task has, as its scores say."""
    near = answers(1000, 70, 48)
    alone = judge({"fp8": {"arc": answers(1000, 120, 86)}}).trials["fp8"]
    assert (alone.decision, alone.leaning) == ("not decided", "cannot be decided with these tasks")
    assert "; all 1,000 documents are used already, about " in alone.reasons[0]
    assert alone.reasons[0].endswith(": repeats, another margin or another gate may decide it")
    mean = judge({"fp8": {"arc": near, "gsm8k": near}}, suites=[suite("arc", "gsm8k", gate=[], margin_points=3)])
    assert mean.trials["fp8"].leaning == "cannot be decided with these tasks"
    assert (
        mean.trials["fp8"]
        .reasons[0]
        .endswith("; all documents of its tasks are used already: repeats, another margin or more tasks may decide it")
    )
    lost = judge({"fp8": {"arc": answers(1000, 320, 268)}}).trials["fp8"]
    assert (lost.decision, lost.leaning) == ("not decided", "leans to no")
    assert lost.reasons[0].endswith("; a loss of 5.20 points was measured: all documents are used already")
    few = answers(100, 3, 3)
    some = judge({"fp8": {"arc": few, "gsm8k": few}}, suites=[suite("arc", "gsm8k", gate=[], margin_points=3)])
    assert some.trials["fp8"].leaning == "more documents may show it"
    assert some.trials["fp8"].reasons[0].endswith(" times the documents would show that it lost less")


def test_what_was_not_run_leans_to_no_side_unless_a_loss_beyond_a_limit_was_measured(judge):
    lacking = failed("fp8", "answer", "the engine died")[1:]
    found = judge({"fp8": {"arc": answers(200, 15, 15)}}, failures=lacking, tasks=["gsm8k"]).trials["fp8"]
    assert (found.decision, found.leaning, found.decided) == ("not decided", None, "not decided")
    bad = judge({"fp8": {"arc": answers(200, 22, 10)}}, failures=lacking, tasks=["gsm8k"]).trials["fp8"]
    assert (bad.decision, bad.leaning) == ("not decided", "leans to no")


def test_where_too_few_documents_changed_it_is_said_how_many_were_asked(judge):
    base = np.linspace(0.2, 0.8, 50)
    trial = base - 0.01 * (np.arange(50) < 3)
    facts = {"acc,none": {"aggregation": {"name": "mean"}, "higher_is_better": True, "kind": "graded"}}
    cell = {"answers": [trial.tolist(), base.tolist()], "written": {"facts": facts}}
    found = judge({"fp8": {"quiz": cell}}).trials["fp8"]
    assert (found.decision, found.leaning) == ("not decided", "more documents may show it")
    assert found.reasons == [
        "quiz: nothing can be said of it (fewer than 10 documents changed); 50 of 1,000 documents were asked, more may "
        "show it"
    ]


def test_a_loss_that_is_confirmed_and_allowed_does_not_read_as_a_reason_against_shipping(judge):
    found = judge(
        {"fp8": {"arc": answers(4000, 60, 25), "gsm8k": GOOD}}, suites=[suite("arc", "gsm8k", margin_points=2)]
    )
    trial = found.trials["fp8"]
    assert (trial.decision, trial.num_confirmed_degraded) == ("ship", 0)
    lossy = judge(
        {"fp8": {"arc": answers(4000, 100, 30), "gsm8k": GOOD}}, suites=[suite("arc", "gsm8k", margin_points=2)]
    )
    shown, allowed = lossy.trials["fp8"].reasons
    assert lossy.trials["fp8"].decision == "ship" and "(arc is nearest to it)" in shown
    assert allowed == (
        "arc: a loss of 1.21 points to 2.34 points is confirmed, within the limit of a task, 5 points: allowed, no "
        "reason against it"
    )


def test_all_is_said_in_points_from_guessing_so_that_limits_are_alike(judge):
    """Of four choices guessing has a quarter: what the plain score lost weighs a third more."""
    found = judge({"fp8": {"arc": answers(4000, 300, 20)}}, random_baseline=0.25)
    trial = found.trials["fp8"]
    assert trial.worst_points == pytest.approx(100 * -0.07 / 0.75)
    assert trial.reasons[0].startswith("arc: lost at least 8.") and trial.reasons[0].endswith(
        "the limit of a task is 5 points"
    )
    (line,) = [line for line in found.page.splitlines() if line.startswith("| [fp8]")]
    assert "arc −9.33 points" in line
    suites = [suite("arc", normalized=True)]
    table = judge({"fp8": {"arc": answers(4000, 300, 20)}}, suites=suites, random_baseline=0.25).page
    (cell,) = [line for line in table.splitlines() if line.startswith("| fp8 ") and " GiB" in line]
    assert "−9.33 ▼ 80.0 % [" in cell


def test_a_score_that_is_floored_at_guessing_says_so_at_the_number(judge):
    found = judge(
        {"fp8": {"arc": answers(400, 80, 0, 0.3)}}, suites=[suite("arc", normalized=True)], random_baseline=0.25
    )
    (cell,) = [line for line in found.page.splitlines() if line.startswith("| fp8 ") and " GiB" in line]
    assert found.cells["fp8", "arc"]["normalized"] == 0
    assert found.cells["fp8", "arc"]["normalized_unfloored"] == pytest.approx(100 * (0.1 - 0.25) / 0.75)
    assert " unfloored −20" in cell and " floored |" in cell


def test_many_answers_that_were_cut_stand_in_the_reason(judge):
    def found(num_cut, n=200, changed=15):
        cell = {"answers": answers(n, changed, changed), "written": {"cut": range(num_cut)}}
        return judge({"fp8": {"gpqa": cell}}).trials["fp8"]

    words = "; answers cut at the limit of tokens: 150 of 200 (75 %), base 150 of 200 (75 %)"
    assert found(150).decision == "not decided" and found(150).reasons[0].endswith(words)
    assert len(found(150).reasons) == 1 and "cut" not in found(10).reasons[0], "a few are a note"
    shipped = found(2000, 4000, 40)
    assert shipped.decision == "ship"
    assert shipped.reasons[1] == f"gpqa: {words[2:]}".replace("150 of 200 (75 %)", "2000 of 4000 (50 %)")


def test_the_worst_task_is_the_one_that_lost_most_also_where_it_has_no_recovery(judge):
    nothing_left = answers(200, 6, 0, right=0.03)
    trial = judge({"fp8": {"arc": answers(200, 3, 2), "gsm8k": nothing_left}}).trials["fp8"]
    assert (trial.worst_task, trial.worst_recovery) == ("gsm8k", None)


def test_the_gate_s_tasks_are_the_conf_s(judge):
    cells = {"fp8": {"arc": GOOD, "gsm8k": GOOD, "gpqa": answers(200, 15, 15)}}
    asked = {
        (None, None): "not decided",
        (2.0, ("arc", "gsm8k")): "ship",
        (2.0, ()): "ship",
        (2.0, ("gpqa",)): "not decided",
        (0.5, ("arc", "gsm8k")): "not decided",
    }
    for (points, gate), decision in asked.items():
        of = suite("arc", "gsm8k", "gpqa", margin_points=points, gate=None if gate is None else list(gate))
        trial = judge(cells, suites=[of]).trials["fp8"]
        assert trial.decision == decision and trial.reasons, (points, gate)
    assert trial.reasons[0].startswith("v1, mean: may have lost 1.")
    assert ", the limit of the mean is 0.5 points; all documents of its tasks are used" in trial.reasons[0]


def test_a_trial_that_is_shown_to_be_bad_is_not_shipped(judge):
    found = judge(
        {
            "broken": {"arc": answers(1000, 200, 5), "gsm8k": GOOD},  # beyond the wide margin
            "worse": {"arc": answers(4000, 180, 20), "gsm8k": GOOD},  # beyond its margin alone: 4 points
            "low": {"arc": answers(4000, 110, 30), "gsm8k": answers(4000, 110, 30)},  # the mean: 2 points
            "less": {"arc": answers(4000, 100, 30), "gsm8k": GOOD},  # degraded, confirmed, and not beyond
        },
        suites=[suite("arc", "gsm8k")],
    )
    assert [found.trials[name].decision for name in ("broken", "worse", "low")] == ["do not ship"] * 3
    assert found.trials["broken"].reasons == [
        "v1, mean: lost at least 8.46 points, the limit of the mean is 1 point",
        "arc: lost at least 17.07 points, the limit of a task is 5 points",
    ]
    assert found.trials["worse"].reasons[-1].startswith("arc: lost at least 3.3")
    assert found.trials["worse"].reasons[-1].endswith("confirmed; its own margin is 2 points")
    assert found.trials["low"].reasons[0].startswith("v1, mean: lost at least 1.59 points")
    assert found.trials["less"].decision == "not decided"
    assert found.trials["less"].reasons[-1].startswith("arc: a loss of 1.")


def test_among_many_trials_one_that_passes_by_itself_may_not(judge):
    good = {"arc": answers(900, 30, 30)}
    alone = judge({"fp8": good}).trials["fp8"]
    assert alone.decision == "ship"
    many = judge({name: {"arc": answers(900, 53, 30)} for name in "abcdefghi"}).trials["a"]
    assert many.decision == "not decided" and many.p < 0.025 < many.adjusted_p
    assert many.reasons[0].startswith(
        "passes alone; not after correcting for 9 trials (Holm): nearest to its limit is arc, which lost at most 4.61 "
        "points, the limit is 5 points, and whose p of 0.010 counts as 0.094 among the trials, more than 0.025"
    )
    assert many.decided == "not decided, passes alone"


def test_missing_documents_count_as_lost(judge):
    trial, base = answers(4000, 40, 40)
    trial[100:200] = [float("nan")] * 100
    found = judge({"fp8": {"arc": (trial, base), "gsm8k": GOOD}}, suites=[suite("arc", "gsm8k")])
    assert found.cells["fp8", "arc"]["reason"] == "missing"
    assert (found.suites["fp8", "v1"]["verdict"], found.suites["fp8", "v1"]["reason"]) == ("inconclusive", "missing")
    assert found.trials["fp8"].decision == "not decided"
    assert "may have lost more; the limit of the mean is 1 point" in found.trials["fp8"].reasons[0]
    wide = judge({"fp8": {"arc": (trial, base)}})
    assert wide.trials["fp8"].decision == "ship", "2.5 points that are missing are less than the wide margin"
    (shown,) = wide.trials["fp8"].reasons
    assert shown == "arc lost at most 3.18 points, the limit is 5 points"


def test_tasks_of_the_same_documents_are_no_two_pieces_of_evidence(judge):
    cells = {"fp8": {"mmlu": GOOD, "mmlu_cot": GOOD}}
    widths = {}
    for is_shared in (False, True):
        found = judge(cells, suites=[suite("mmlu", "mmlu_cot")], is_shared=is_shared)
        mean, cell = found.suites["fp8", "v1"], found.cells["fp8", "mmlu"]
        ends = [(each["difference_high"] - each["difference_low"]) for each in (mean, cell)]
        of_recovery = [(each["recovery_high"] - each["recovery_low"]) for each in (mean, cell)]
        widths[is_shared] = ends[0] / ends[1], of_recovery[0] / of_recovery[1]
    assert widths[False] == pytest.approx((0.5**0.5, 0.5**0.5), rel=0.02)
    assert widths[True] == pytest.approx((1.0, 1.0), rel=0.02)


def test_tasks_of_one_data_set_whose_documents_look_otherwise_are_taken_as_one_and_that_is_said(judge):
    cells, of = {"fp8": {"arc": GOOD, "arc_llama": GOOD}}, [suite("arc", "arc_llama")]
    apart = judge(cells, suites=of, data={"arc": ["ai2_arc"], "arc_llama": ["other"]})
    found = judge(cells, suites=of, data={"arc": ["ai2_arc"], "arc_llama": ["ai2_arc"]})
    note = "v1: arc and arc_llama are taken as wholly correlated"
    assert note in found.page and note not in apart.page
    wider, narrower = (
        each.suites["fp8", "v1"]["difference_high"] - each.suites["fp8", "v1"]["difference_low"]
        for each in (found, apart)
    )
    assert wider == pytest.approx(2**0.5 * narrower, rel=0.01)
    assert "Expected false among these 0" in found.page and "The gate is v1: arc, arc_llama." in found.page


def test_a_suite_where_lower_is_better_is_judged_the_other_way_round(judge):
    rng = np.random.default_rng(1)
    base = rng.gamma(4, 3, 2000)
    facts = {"ppl,none": {"aggregation": {"name": "mean"}, "higher_is_better": False, "kind": "graded"}}

    def cell(factor):
        trial = base * (factor + 0.01 * rng.standard_normal(2000))
        return {"answers": [{"ppl,none": trial.tolist()}, {"ppl,none": base.tolist()}], "written": {"facts": facts}}

    found = judge({"fp8": {"wikitext": cell(1.002)}, "int4": {"wikitext": cell(1.03)}}, suites=[suite("wikitext")])
    assert [found.suites[name, "v1"]["verdict"] for name in ("fp8", "int4")] == ["equivalent", "degraded"]
    assert found.suites["int4", "v1"]["reason"] == "beyond margin"
    assert found.suites["int4", "v1"]["margin"] == pytest.approx(0.01 * base.mean())
    assert found.trials["fp8"].decision == "ship"
    assert found.trials["int4"].decision == "do not ship"
    assert found.trials["int4"].reasons[0].startswith("v1, mean: lost at least 2.89 % of")
    assert " % of the base's mean, the limit of the mean is 1 % of the base's mean" in found.trials["int4"].reasons[0]
    assert found.trials["int4"].worst_unit == "% of the base's score"
    assert 0.96 < found.suites["int4", "v1"]["recovery_low"] < found.suites["int4", "v1"]["recovery_high"] < 0.98


def test_a_suite_without_a_member_decides_nothing_and_says_which(judge):
    failures = [FailureRow(step="compare/gsm8k", trial="m/fp8", task="gsm8k", status="failed", failure_class=None)]
    found = judge({"fp8": {"arc": GOOD}}, suites=[suite("arc", "gsm8k")], failures=failures, tasks=["gsm8k"])
    assert (found.suites["fp8", "v1"]["mean"], found.suites["fp8", "v1"]["verdict"]) == (None, None)
    assert found.trials["fp8"].decision == "not decided"
    assert found.trials["fp8"].reasons == [
        "gsm8k has no result: compare failed (no reason is known)",
    ]


def failed(trial, stage, message, status="failed"):
    return [
        FailureRow(step=f"{stage}/{trial}-{task}", trial=f"m/{trial}", task=task, status=status, message=message)
        for task in ("arc", "gsm8k")
    ]


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        (failed("fp8", "answer", "the engine died"), "answer failed (the engine died)"),
        (
            [
                FailureRow(step="gate/m-fp8", trial="m/fp8", status="failed", message="mean_kl is 4.2"),
                *failed("fp8", "compare", "needs gate/m-fp8", "skipped"),
            ],
            "gate failed (mean_kl is 4.2)",
        ),
        (
            [*failed("bf16", "answer", "out of\nmemory"), *failed("fp8", "compare", "", "skipped")],
            "answer of the base failed (out of memory)",
        ),
        (
            [
                FailureRow(step="fetch_model/m", status="failed", message="no such model"),
                *failed("bf16", "answer", "", "skipped"),
                *failed("fp8", "answer", "", "skipped"),
            ],
            "fetch_model failed (no such model)",
        ),
        (failed("fp8", "answer", "not run yet", "missing"), "not run yet"),
        (failed("fp8", "compare", "", "skipped"), "skipped, because of what failed elsewhere"),
    ],
)
def test_a_trial_without_any_result_says_once_what_stopped_it(judge, failures, said):
    tasks = ["arc", "gsm8k"]
    found = judge({"fp8": {}}, suites=[suite(*tasks)], failures=failures, tasks=tasks)
    assert (found.trials["fp8"].decision, found.trials["fp8"].reasons) == (
        "not decided",
        [f"all tasks have no result: {said}"],
    )
    assert f"Nothing may be shipped yet: fp8 (all tasks have no result: {said})." in " ".join(found.page.split())
    assert "0 of 1 format may be shipped, 1 not decided." in found.page


def test_what_is_shown_against_a_trial_comes_before_what_it_lacks(judge):
    broken = {"arc": answers(1000, 200, 5)}
    trial = judge({"int4": broken}, failures=failed("int4", "answer", "the engine died")[1:], tasks=["gsm8k"])
    reasons = trial.trials["int4"].reasons
    assert trial.trials["int4"].decision == "do not ship"
    assert reasons[0].startswith("arc: lost at least") and reasons[-1].startswith("gsm8k has no result: ")


def test_a_normalized_task_of_unlike_leaves_is_confirmed_by_the_p_of_its_own_scale(judge, write_evaluation, tmp_path):
    """One leaf loses as many documents as the other wins; from guessing they weigh 4 to 1."""
    sides = [{"a": answers(1000, 60, 0, 0.9), "b": answers(1000, 0, 60, 0.5)}]
    found = {}
    shards = {
        f"{role}/{leaf}": write_evaluation(leaf, sides[0][leaf][side])
        for side, role in enumerate(("trial", "base"))
        for leaf in "ab"
    }
    compare(CompareConfig(task="t", leaves=["a", "b"], leaf_baselines={"a": 0.75, "b": 0.0}), shards, tmp_path)
    document = json.loads((tmp_path / "comparison.json").read_text())["headline"]
    found = confirmed([document | {"trial": "m/int4", "task": "t", "is_base": False, "status": "measured"}], [])[0]
    assert (document["difference"], document["difference_p"]) == (0.0, 1.0)
    assert (document["verdict"], found["is_confirmed"]) == ("degraded", True)
    assert document["verdict_p"] == found["adjusted_p"] < 0.001
