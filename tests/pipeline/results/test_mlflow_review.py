"""What a reviewer meets in tracking: descriptions, metrics and tags of the verdicts, a view of the runs, and tables."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config.execution import TrackingConfig
from pipeline.planning.plan import Plan
from pipeline.results.mlflow_frame import for_frame
from pipeline.results.mlflow_mirror import Mirror
from pipeline.results.mlflow_notes import MAX_NOTE, experiment_note, shortened
from pipeline.results.mlflow_numbers import shown
from pipeline.results.mlflow_review import NOTE, parent_review, trial_review
from pipeline.results.mlflow_view import VIEW_TAG, address, run_address, run_name, view_of
from pipeline.store.store import Store
from stages.compare.artifact import FLIPS_SCHEMA, write_flips
from stages.report.artifact import SUMMARY_SCHEMA, Row, SuiteMean, Summary, TrialVerdict, read_document, write_summary
from stages.report.asked import points_gained
from tests.pipeline.planning.test_plan import planned

TRIALS = ("smollm2_135m/bf16", "smollm2_135m/w8a8_int", "smollm2_135m/w4a16_int")
NUMBERS = {
    "num_cells": 2, "num_equivalent": 1, "num_inconclusive": 0, "num_degraded": 1, "num_confirmed_degraded": 1,
    "num_improved": 0, "num_confirmed_improved": 0, "worst_recovery": 0.75, "worst_task": "tabular",
    "worst_points": -10.0, "worst_unit": "points",
}  # fmt: skip
SAID = "Ship w8a8_int: equivalent on 2 of 2 tasks."


def verdict(name: str, decision: str | None = None, *reasons: str, **numbers: Any) -> TrialVerdict:
    model, recipe = name.split("/")
    return TrialVerdict(
        trial=name,
        model=model,
        recipe=recipe,
        is_base=decision is None,
        decision=decision,
        reasons=list(reasons),
        **numbers,
    )


DOCUMENT = Summary(
    title="smoke",
    rows=[
        {
            "trial": name,
            "task": task,
            "status": "measured",
            "n": 20,
            "score": 0.3,
            "base_score": 0.4,
            "recovery": 0.75,
            "difference": -0.1,
            "difference_low": -0.2,
            "difference_high": -0.01,
            "margin": 0.02,
            "wide_margin": 0.05,
            "is_verdict_normalized": False,
            "higher_is_better": True,
            "reason": None,
            "num_needed": None,
            "note": "answers cut at the limit of tokens: 19 of 20 (95 %)" if task == "tabular" else None,
            "verdict": "degraded" if name == TRIALS[2] else "equivalent",
            "is_confirmed": task == "tabular" if name == TRIALS[2] else None,
        }
        for name in TRIALS[1:]
        for task in ("mathador", "tabular")
    ],
    suites=[
        SuiteMean(
            trial=TRIALS[1],
            suite="both",
            mean=0.3,
            base_mean=0.4,
            recovery=0.75,
            difference=-0.1,
            difference_low=-0.2,
            difference_high=-0.01,
            margin=0.01,
            verdict="degraded",
        )
    ],
    trials=[
        verdict(TRIALS[0]),
        verdict(TRIALS[1], "ship", **NUMBERS),
        verdict(
            TRIALS[2], "do not ship", "tabular: lost | <b>", **NUMBERS | {"worst_recovery": 0.5, "num_degraded": 3}
        ),
    ],
    sentences={"smollm2_135m": SAID},
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(tmp_path_factory.mktemp("plan"), "+sweep=smoke", "sweep.axes.recipe=[bf16,w8a8_int,w4a16_int]")


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return written(tmp_path / "smoke-0123456789ab", DOCUMENT)


def written(place: Path, document: Summary) -> Path:
    place.mkdir()
    write_summary(place, replace(document, rows=[]))
    (place / "summary.json").write_text(
        json.dumps(json.loads((place / "summary.json").read_text()) | {"rows": document.rows})
    )
    (place / "report.html").write_text('<a href="flips/r1.html">r1</a>')
    return place


def test_a_plan_s_run_shows_the_table_with_links_to_its_trials_and_counts_the_verdicts(report: Path) -> None:
    review = parent_review(read_document(report), "7", "abc", {TRIALS[1]: "def"})
    links, said, *_ = (note := review.tags[NOTE]).split("\n\n")
    assert links == f"[All trials]({address('7')}) · [report]({run_address('7', 'abc', 'report/report.html')})"
    assert said == SAID
    assert "| format | ship it? | both, points |" in note
    ship = f"| [w8a8_int · smollm2_135m]({run_address('7', 'def')}) | ship | -10.00 degraded | 1 / 0 / 1 / 0 |"
    assert f"\n{ship} tabular -10.00 points |  |\n" in note
    refused = "| w4a16_int · smollm2_135m | do not ship | – | 1 + 2? / 0 / 1 / 0 | tabular -10.00 points |"
    assert f"\n{refused} tabular: lost \\| \\<b\\> |" in note
    counts = {name: review.metrics[f"sweep/{name}"] for name in ("ship", "do_not_ship", "not_decided")}
    assert counts == {"ship": 1, "do_not_ship": 1, "not_decided": 0}
    assert review.metrics["sweep/worst_recovery"] == 0.5
    assert (review.metrics["sweep/degraded_confirmed"], review.metrics["sweep/cells"]) == (2, 4)


def test_no_chart_of_trials_has_the_whole_sweep_as_a_bar() -> None:
    of_sweep = parent_review(DOCUMENT, "7", "abc", {}).metrics.keys()
    of_trial = trial_review(DOCUMENT, TRIALS[1], "7", "abc", "def")
    assert of_trial and of_sweep and not of_sweep & of_trial.metrics.keys()


def test_a_trial_s_run_says_what_was_decided_and_why_and_lays_its_tasks_side_by_side(report: Path) -> None:
    base, eight, four = (trial_review(read_document(report), name, "7", "abc", "def") for name in TRIALS)
    assert base and eight and four
    assert (eight.tags["decision"], "why" in eight.tags) == ("ship", False)
    assert (four.metrics["verdict/worst_points"], "verdict/worst_points" in base.metrics) == (-10, False)
    assert (four.tags["decision"], four.tags["why"]) == ("do not ship", "tabular: lost | <b>")
    assert four.tags["verdict.tabular"] == "degraded, confirmed"
    assert four.tags["verdict.mathador"] == "degraded, not confirmed"
    assert eight.metrics["recovery/tabular"] == eight.metrics["suite/both/recovery"] == 0.75
    assert four.metrics["verdict/worst_recovery"] == 0.5
    assert trial_review(replace(DOCUMENT, trials=[]), TRIALS[1], "7", "abc", "def") is None
    assert (four.tags["worst_task"], "worst_task" in base.tags) == ("tabular", False)
    assert base.tags["decision"] == "base" and base.metrics == {"verdict/rank": 1}
    assert (eight.metrics["verdict/rank"], four.metrics["verdict/rank"]) == (2, 3)
    assert next(iter(four.metrics)) == "verdict/worst_recovery"


def test_a_trial_s_description_begins_with_the_decision_the_way_back_and_why() -> None:
    _, _, four = (trial_review(DOCUMENT, name, "7", "abc", "def") for name in TRIALS)
    assert four
    first, why, *_, cut, _ = four.tags[NOTE].split("\n\n")
    assert first.startswith(f"**Do not ship** · [All trials]({address('7')}) · [verdicts]({run_address('7', 'abc')})")
    assert f"[what it answers otherwise]({run_address('7', 'def', 'flips.json')})" in first
    assert why == "- tabular: lost \\| \\<b\\>"
    assert cut == "To bear in mind:\n- tabular: answers cut at the limit of tokens: 19 of 20 (95 %)"


def test_what_is_not_decided_says_to_which_side_it_leans() -> None:
    open_one = verdict(
        TRIALS[1], "not decided", "v1, mean: may have lost 2 points; more is needed", leaning="leans to no"
    )
    document = replace(DOCUMENT, trials=[DOCUMENT.trials[0], open_one])
    review = trial_review(document, TRIALS[1], "7", "abc", "def")
    assert review and (review.tags["decision"], review.tags["leaning"]) == ("not decided", "leans to no")
    assert review.tags[NOTE].startswith("**Not decided, leans to no** · ")
    table = parent_review(document, "7", "abc", {}).tags[NOTE]
    assert "| not decided, leans to no |" in table and "| v1, mean: may have lost 2 points; … |" in table


def test_a_verdict_stands_beside_its_number_its_margin_and_its_limit_in_points() -> None:
    _, eight, _ = (trial_review(DOCUMENT, name, "7", "abc", "def") for name in TRIALS)
    assert eight
    lines = [line for line in eight.tags[NOTE].splitlines() if line.startswith("|")]
    assert lines[0] == "| asked of | n | base | score | difference | margin | limit | verdict |"
    assert lines[2:] == [
        "| **both**, mean |  | 40.00 | 30.00 | -10.00 [-20.00, -1.00] | 1 | 1 | degraded |",
        "| mathador | 20 | 40.00 | 30.00 | -10.00 [-20.00, -1.00] | 2 | 5 | equivalent |",
        "| tabular | 20 | 40.00 | 30.00 | -10.00 [-20.00, -1.00] | 2 | 5 | equivalent |",
    ]


@pytest.mark.parametrize(
    ("known", "shown", "metric"),
    [
        (
            {"is_verdict_normalized": True, "normalized_difference": -5.6, "margin": 2.0, "wide_margin": 5.0},
            "-5.60 normalized | 2 | 5",
            -5.6,
        ),
        (
            {"higher_is_better": False, "paired_base_score": 2.0, "margin": 0.1, "wide_margin": None},
            "+5.00 [+0.50, +10.00] % of the base's score | 5 | –",
            5.0,
        ),
        (
            {"normalized_difference": -20.0, "normalized_difference_low": -40, "normalized_difference_high": -2.0},
            "-20.00 [-40.00, -2.00] normalized | 4 | 10",
            -20.0,
        ),
        (
            {"verdict": "inconclusive", "is_confirmed": None, "num_needed": 4361},
            "-10.00 [-20.00, -1.00] | 2 | 5 | inconclusive (own margin needs 4,361)",
            -10,
        ),
    ],
)
def test_a_difference_is_in_the_unit_that_its_verdict_is_of(known: Any, shown: str, metric: float) -> None:
    document = replace(DOCUMENT, rows=[DOCUMENT.rows[0] | known])
    review = trial_review(document, TRIALS[1], "7", "abc", "def")
    assert review and shown in review.tags[NOTE]
    assert review.metrics["mathador/points"] == pytest.approx(metric)
    row: Row = dict.fromkeys(SUMMARY_SCHEMA.names) | document.rows[0]
    assert points_gained(row) == pytest.approx(metric)  # as the reasons say it


def test_differences_of_suites_are_in_points_whatever_the_scale_of_their_means() -> None:
    plain = DOCUMENT.suites[0]
    normalized = replace(plain, suite="hard", normalized=True, mean=30, base_mean=40, difference=-10.0)
    review = trial_review(replace(DOCUMENT, suites=[plain, normalized]), TRIALS[1], "7", "abc", "def")
    assert review and review.metrics["both/mean_points"] == review.metrics["hard/mean_points"] == -10


@pytest.mark.parametrize(
    ("trial", "shown"),
    [
        ("mistral_nemo_12b/w4a16_int", "w4a16_int · mistral_nemo_12b"),
        ("mistral_nemo_12b/w4a16_rtn/seed=1", "w4a16_rtn/seed=1 · mistral_nemo_12b"),
    ],
)
def test_what_differs_comes_first_in_a_run_s_name(trial: str, shown: str) -> None:
    assert run_name(trial) == shown


def test_a_link_to_a_file_does_not_empty_the_frame_that_a_report_is_shown_in() -> None:
    html = '<a href="#tasks">t</a><a class="x" href="flips/a.html">a</a><a href="https://example.org">e</a>'
    shown = for_frame(html)
    assert shown.count('target="_blank"') == 1
    assert '<a target="_blank"' in shown and 'class="x" href="flips/a.html"' in shown
    assert '<a href="#tasks">' in shown and '<a href="https://example.org">' in shown


def test_what_does_not_fit_a_description_is_counted() -> None:
    table = ["| a |", "|---|", *(f"| {'x' * 100} {number} |" for number in range(200))]
    note = shortened(["said", "links"], table, MAX_NOTE)
    assert len(note) <= MAX_NOTE and note.startswith("said\n\nlinks\n\n| a |\n|---|\n")
    left_out = int(note.rsplit("\n\n", 1)[1].split()[0])
    assert left_out == 202 - sum(line.startswith("|") for line in note.splitlines()) > 100
    assert shortened(["said"], table[:3], MAX_NOTE) == "\n\n".join(["said", "\n".join(table[:3])])


def test_an_experiment_s_description_begins_with_one_line_that_leads_to_its_runs() -> None:
    """MLflow opens an experiment on another page, and shows of its description one line."""
    headline = "1 of 2 formats may be shipped, 1 not to be shipped"
    first, blank, said = experiment_note(replace(DOCUMENT, headline=headline), "7", "abc").split("\n")
    assert first.startswith(f"{headline}. [All trials]({address('7')}) · [verdicts]({run_address('7', 'abc')}) · ")
    assert (blank, said) == ("", SAID)
    assert "workflowType=machine_learning" in address("7") and "workflowType=machine_learning" in run_address("7", "a")
    many = {f"model {n}": "x" * 700 for n in range(50)}
    document = replace(DOCUMENT, headline=headline, sentences=many)
    note, of_parent = experiment_note(document, "7", "abc"), parent_review(document, "7", "abc", {}).tags[NOTE]
    num_said = sum(line.startswith("**model") for line in note.splitlines())
    assert len(note) < MAX_NOTE and 3 < num_said < 50
    assert note.endswith(f"\n\n{50 - num_said} models more are in the report.")
    assert f"\n\n{50 - num_said} models more are in the report.\n\n" in of_parent  # both count alike
    seven = {f"model {n}": "x" for n in range(7)}
    assert experiment_note(replace(document, sentences=seven), "7", "abc").endswith(
        "\n\n1 model more is in the report."
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.8749999999999999, "0.875"),
        (0.032407407407407406, "0.0324074"),
        (-3.1622776601683795e-05, "-3.16228e-05"),
        (134515008.0, "134515008.0"),
        (1234567.89, "1234568.0"),
        (14.957142857142857, "14.9571"),
        (0.0, "0.0"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_as_many_digits_as_mean_something(value: float, expected: str) -> None:
    assert str(shown(value)) == expected


def test_documents_that_are_right_are_told_apart_from_one_more_of_fourteen_thousand() -> None:
    assert len({shown(n / 14_042) for n in range(14_043)}) == 14_043


def test_a_view_names_columns_and_charts_and_fits_a_tag() -> None:
    state = json.loads(view_of(["v1"], ["arc", "gsm8k"]))
    first = ["tags.`decision`", "tags.`why`", "tags.`leaning`", "tags.`worst_task`"]
    pinned = ["attributes.`Run Name`", "runDateAndNestInfo"]
    assert state["selectedColumns"][:4] == first and state["columnOrder"][:6] == [*pinned, *first]
    # MLflow heeds widths of columns that are in the order; with its assistant open a window of 1,300 has 600 for them.
    assert state["columnWidths"].keys() == set(state["columnOrder"])
    assert sum(state["columnWidths"][name] for name in (*pinned, *first[:1])) < 400
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`verdict/rank`", True)
    assert {"metrics.`v1/mean_points`", "metrics.`recovery/gsm8k`"} <= set(state["selectedColumns"])
    headings = {name: len(name.split("`")[1]) for name in state["selectedColumns"] if name.startswith("metrics")}
    assert all(state["columnWidths"][name] > 7 * letters for name, letters in headings.items())
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    long = [f"leaderboard_v{n}" for n in (1, 2)]
    titles = [chart["metricKey"][:15] for chart in json.loads(view_of(long, ["arc", "gsm8k"]))["compareRunCharts"]]
    assert len(set(titles)) == len(titles)  # as MLflow cuts them
    assert len(view_of([f"suite {n}" for n in range(50)], [f"task {n}" for n in range(1000)])) < 20_000


@pytest.fixture
def store(plan: Plan, tmp_path: Path) -> Store:
    """Every step of the plan made; of each comparison three documents answered otherwise."""
    store = Store(tmp_path / "results" / "store")
    row = {"leaf": "t", "change": "lost", "base_answers": ["<b>4</b>"], "trial_answers": ["5"], "question": "2 + 2?"}
    for step in plan.steps.values():
        with store.draft(step) as draft:
            if step.ref.stage == "compare":
                write_flips(draft.path, pa.Table.from_pylist([{**row, "doc_id": n} for n in range(3)], FLIPS_SCHEMA))
            draft.publish({"score": 0.5}, {"started": 1.0, "ended": 3.0})
    return store


@pytest.mark.dear
def test_a_run_s_scores_stand_above_its_other_numbers_also_if_it_was_shown_at_work(
    plan: Plan, report: Path, tmp_path: Path, mlflow_at: Callable[[Path], Path]
) -> None:
    """MLflow's pages show metrics in the order in which they came."""
    import mlflow

    trial = next(each for each in plan.trials.values() if each.trial.name == TRIALS[2])
    store = Store(tmp_path / "results" / "store")
    mirror = Mirror(plan, store, TrackingConfig())
    client = mlflow.MlflowClient(f"sqlite:///{mlflow_at(tmp_path / 'results' / 'mlflow.db')}")

    def numbers() -> dict[str, float]:
        experiment = client.get_experiment_by_name(plan.name)
        (run,) = client.search_runs([experiment.experiment_id], f"tags.trial = '{TRIALS[2]}'")
        return dict(run.data.metrics)

    for stages in (("fetch_model", "quantize", "gate"), ("compare",)):
        for ref in dict.fromkeys(trial.steps.values()):
            if ref.stage in stages:
                with store.draft(plan.steps[ref]) as draft:
                    if ref.stage == "compare":
                        write_flips(draft.path, pa.Table.from_pylist([], FLIPS_SCHEMA))
                    draft.publish({"score": 0.1 + 0.2}, {"started": 1.0, "ended": 3.0})
        mirror.write()
        assert {name.partition("/")[0] for name in numbers()} <= {"mathador", "tabular"}
    mirror.write(report, "KILLED")
    killed = list(numbers())
    assert killed[:2] == ["mathador/score", "tabular/score"]
    assert 2 <= killed.index("verdict/worst_recovery") < killed.index("checkpoint/score")
    assert numbers()["tabular/score"] == 0.3  # not 0.30000000000000004


@pytest.mark.dear
def test_the_mirror_writes_it_once_and_leaves_what_people_write(
    plan: Plan,
    store: Store,
    report: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mlflow_at: Callable[[Path], Path],
) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{mlflow_at(tmp_path / 'results' / 'mlflow.db')}")
    mirror = Mirror(plan, store, TrackingConfig())
    where = mirror.write(report, "FINISHED")
    experiment = client.get_experiment_by_name(plan.name)

    def runs() -> dict[str, Any]:
        found = client.search_runs([experiment.experiment_id])
        return {run.data.tags.get("trial", run.info.run_name): run for run in found}

    assert where == address(experiment.experiment_id)
    experiment = client.get_experiment_by_name(plan.name)
    assert SAID in experiment.tags[NOTE] and VIEW_TAG in experiment.tags
    first = runs()
    assert first[TRIALS[1]].data.tags["decision"] == "ship"
    assert first[plan.name].data.metrics["sweep/ship"] == 1
    assert first[TRIALS[1]].info.run_name == "w8a8_int · smollm2_135m"
    page = Path(client.download_artifacts(first[plan.name].info.run_id, "report/report.html")).read_text()
    assert 'target="_blank"' in page and 'href="flips/r1.html"' in page
    table = json.loads(Path(client.download_artifacts(first[TRIALS[1]].info.run_id, "flips.json")).read_text())
    # Before anybody chooses, MLflow's page of runs has a row for each value of the first column, and shows the second.
    assert table["columns"][:2] == ["document", "change"]
    assert [row[0] for row in table["data"]] == [f"{task} t {n}" for task in ("mathador", "tabular") for n in range(3)]
    assert dict(zip(table["columns"], table["data"][0], strict=True))["base_answer"] == "<b>4</b>"
    assert "flips.json" in first[TRIALS[1]].data.tags["mlflow.loggedArtifacts"]

    with monkeypatch.context() as patch:  # nothing is written twice
        for name in ("log_batch", "set_tag", "log_artifact", "log_artifacts", "set_experiment_tag", "delete_tag"):
            patch.setattr(mlflow.MlflowClient, name, lambda *args, **kwargs: pytest.fail("written again"))
        mirror.write(report, "FINISHED")

    client.update_run(first[TRIALS[1]].info.run_id, name=TRIALS[1])  # as versions before called it
    client.update_run(first[TRIALS[2]].info.run_id, name="the small one")
    client.set_tag(first[plan.name].info.run_id, NOTE, "I have seen it.")
    client.set_experiment_tag(experiment.experiment_id, NOTE, "Ours.")
    other = replace(
        DOCUMENT, trials=[DOCUMENT.trials[0], verdict(TRIALS[1], "not decided", "few", **NUMBERS)], sentences={}
    )
    mirror.write(written(tmp_path / "smoke-ba9876543210", other), "FINISHED")
    after = runs()
    assert after[plan.name].data.tags[NOTE] == "I have seen it."
    assert client.get_experiment(experiment.experiment_id).tags[NOTE] == "Ours."
    assert after[TRIALS[1]].info.run_name == "w8a8_int · smollm2_135m"
    assert after[TRIALS[2]].info.run_name == "the small one"
    assert (after[TRIALS[1]].data.tags["decision"], after[TRIALS[1]].data.tags["why"]) == ("not decided", "few")
    assert after[TRIALS[1]].data.tags[NOTE].startswith("**Not decided** · ")
    mirror.write(report, "FINISHED")
    assert "why" not in runs()[TRIALS[1]].data.tags
