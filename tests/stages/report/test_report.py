"""What a reader of a report sees: every number as it is in the Parquet, dashes, reasons, and nothing from outside."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.compare.config import CompareConfig
from stages.compare.stage import compare
from stages.errors import DataError
from stages.report.config import CostRow, CostsConfig, FailureRow, GpuRow, ReportConfig, SuiteRow, TrialRow
from stages.report.numbers import decimals, interval, number, p_value, percent
from stages.report.stage import report
from stages.report.suites import suite_means

TASKS = ["gsm8k", "arc", "ppl"]
TRIALS = [
    TrialRow(name="m/bf16", model="m", recipe="bf16", is_base=True, size_gib=2.0, notes="Weights on a 4-bit grid."),
    TrialRow(name="m/w8a8", model="m", recipe="w8a8", size_gib=1.1, notes="Weights on a 4-bit grid."),
    TrialRow(name="m/w4a16", model="m", recipe="w4a16", size_gib=None, notes="Weights on a 4-bit grid."),
]
FAILURES = [
    FailureRow(
        step="answer/m-w4a16-gsm8k",
        trial="m/w4a16",
        task="gsm8k",
        status="failed",
        failure_class="engine",
        message="the engine <died> | see the log",
    ),
    FailureRow(step="compare/m-w4a16-gsm8k", trial="m/w4a16", task="gsm8k", status="skipped", failure_class="upstream"),
]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, write_evaluation):
    """Comparisons of three trials on three tasks, but for gsm8k of m/w4a16, and the gate of m/w8a8."""
    bits = {"bf16": "1111111100000111", "w8a8": "1111110100000111", "w4a16": "1000010100000001"}
    found = {}
    for task in TASKS:
        lower_is_better = {"acc,none": {"aggregation": {"name": "mean"}, "higher_is_better": task != "ppl"}}
        shards = {
            recipe: write_evaluation(
                task, [float(bit) for bit in text] * 8, facts=lower_is_better, num_fewshot=len(task)
            )
            for recipe, text in bits.items()
        }
        for recipe, shard in shards.items():
            if (recipe, task) == ("w4a16", "gsm8k"):
                continue
            out = tmp_path_factory.mktemp("store", numbered=True) / f"m-{recipe}-{task}-0123456789ab"
            out.mkdir()
            pair = {"trial": shard} if recipe == "bf16" else {"trial": shard, "base": shards["bf16"]}
            shard_inputs = {f"{role}/{task}/0000": path for role, path in pair.items()}
            compare(CompareConfig(task=task, leaves=[task]), shard_inputs, out)
            found[f"compare/m/{recipe}/{task}"] = out
    gate = tmp_path_factory.mktemp("store") / "m-w8a8-abcdef012345"
    gate.mkdir()
    checks = [
        {"name": "model_loads", "passed": True, "value": None, "expected": None, "detail": ""},
        {"name": "size_ratio", "passed": True, "value": 0.5512, "expected": 0.55, "detail": ""},
        {"name": "mean_kl", "passed": True, "value": 0.0123456, "expected": None, "detail": ""},
        {"name": "top1_agreement", "passed": None, "value": None, "expected": None, "detail": "no text"},
    ]
    (gate / "gate.json").write_text(json.dumps(checks))
    return found | {"gate/m/w8a8": gate}


@pytest.fixture(scope="session")
def write(tmp_path_factory):
    def write(inputs, **changes):
        out = tmp_path_factory.mktemp("report")
        config = {
            "title": "a <sweep>",
            "trials": TRIALS,
            "tasks": TASKS,
            "suites": [SuiteRow(name="both", tasks=["gsm8k", "arc"]), SuiteRow(name="one", tasks=["arc"])],
            "failures": FAILURES,
        }
        metrics = report(ReportConfig(**config | changes), inputs, out)
        return SimpleNamespace(
            metrics=metrics,
            rows=pq.read_table(out / "summary.parquet").to_pylist(),
            summary=json.loads((out / "summary.json").read_text()),
            html=(out / "report.html").read_text(),
            markdown=(out / "report.md").read_text(),
            files={path.name: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()},
        )

    return write


@pytest.fixture(scope="session")
def written(write, inputs):
    return write(inputs)


class Tables(HTMLParser):
    """Every table of a page as rows of cell texts, by the heading or summary above it; its parts side by side."""

    def __init__(self, html):
        super().__init__()
        self.parts, self.heading, self._path, self._in_heading = {}, "", [], False
        self.feed(html)
        self.tables = {heading: self._whole(parts) for heading, parts in self.parts.items()}

    def _whole(self, parts):
        whole = [list(row) for row in parts[0]]
        for part in parts[1:]:
            if part[0][0] != whole[0][0]:  # another table, not a part
                whole += part
                continue
            keys = next(i for i, (one, other) in enumerate(zip(whole[0], part[0], strict=False)) if one != other)
            for row, more in zip(whole, part, strict=True):
                assert row[:keys] == more[:keys]
                row += more[keys:]
        return whole

    def handle_starttag(self, tag, attrs):
        self._in_heading = tag in ("h2", "h3", "summary")
        if self._in_heading:
            self.heading = ""
        if tag == "table":
            self.parts.setdefault(self.heading, []).append([])
        if tag == "tr":
            self.parts[self.heading][-1].append([])
        if tag in ("td", "th"):
            self.parts[self.heading][-1][-1].append("")
        if tag == "small":
            self.handle_data(" ")
        if tag != "wbr":
            self._path.append(tag)

    def handle_endtag(self, tag):
        self._in_heading = False
        while self._path and self._path.pop() != tag:
            pass

    def handle_data(self, data):
        if self._in_heading:
            self.heading += data
        elif {"td", "th"} & set(self._path):
            self.parts[self.heading][-1][-1][-1] += data


def as_numbers(text):
    return [float(found) for found in re.findall(r"[-+]?\d+(?:\.\d+)?", text.replace("−", "-").replace(",", " "))]


def test_the_summary_has_a_row_for_every_trial_and_task(written):
    assert [(row["trial"], row["task"]) for row in written.rows] == [(t.name, task) for t in TRIALS for task in TASKS]
    assert written.summary["rows"] == written.rows
    assert written.metrics == {"num_cells": 9, "num_scored": 8, "num_failures": 2}


def test_the_summary_repeats_the_comparisons_to_the_last_digit(written, inputs):
    for row in written.rows:
        path = inputs.get(f"compare/{row['trial']}/{row['task']}")
        if path is not None:
            table = pq.read_table(path / "comparison.parquet").to_pylist()
            whole = next(line for line in table if line["leaf"] is None)
            assert {name: row[name] for name in row if name in whole} == {n: whole[n] for n in whole if n in row}
            assert row["status"] == "measured"


def test_every_number_of_the_page_is_the_parquets_rounded(written):
    lines = Tables(written.html).tables["Every number of m"][1:]
    rows = {(row["task"], row["recipe"]): row for row in written.rows}
    assert len(lines) == len(rows)
    for line in lines:
        row = rows[line[0], line[1]]
        shown = dict(
            zip(["n", "num_missing", "num_truncated", "num_cut", "num_stopped", "score"], line[3:9], strict=True)
        )
        shown |= {"base_score": line[10], "difference": line[13]}
        for name, text in shown.items():
            assert text == "–" if row[name] is None else as_numbers(text) == [pytest.approx(row[name], abs=6e-3)]
        assert (
            line[11] == "–"
            if row["recovery"] is None
            else as_numbers(line[11])[0] == pytest.approx(100 * row["recovery"], abs=0.6)
        )
        for name, text, scale in (("score", line[9], 1), ("recovery", line[12], 100), ("difference", line[14], 1)):
            ends = [end if end is None else scale * end for end in (row[f"{name}_low"], row[f"{name}_high"])]
            assert (
                text == "–"
                if None in ends
                else as_numbers(text.replace(", ", " ")) == pytest.approx(ends, abs=6e-3 * scale)
            )


def test_the_table_of_a_suite_shows_scores_means_and_recovery(written):
    header, base, eight, four = Tables(written.html).tables["both"]
    assert [text.split()[0] for text in header] == ["format", "gsm8k", "arc", "mean", "recovery"]
    rows = {(row["recipe"], row["task"]): row for row in written.rows}
    assert as_numbers(base[3]) == [pytest.approx(0.6875, abs=1e-4)]
    assert base[1].split()[1] == base[4].strip() == "base"
    expected = rows["w8a8", "gsm8k"]["score"] / rows["bf16", "gsm8k"]["score"]
    score, points, recovery, *ends = as_numbers(eight[1])
    assert points == pytest.approx(100 * rows["w8a8", "gsm8k"]["difference"], abs=0.005)
    assert score == pytest.approx(rows["w8a8", "gsm8k"]["score"], abs=0.01)
    assert recovery == pytest.approx(100 * rows["w8a8", "gsm8k"]["recovery"], abs=0.6)
    assert ends == pytest.approx([rows["w8a8", "gsm8k"][f"score_{end}"] for end in ("low", "high")], abs=0.01)
    assert as_numbers(eight[3])[1] == pytest.approx(100 * (as_numbers(eight[3])[0] - 0.6875), abs=0.01)
    recovery, low, high = as_numbers(eight[4])
    assert recovery == pytest.approx(100 * expected, abs=0.01)
    assert low < recovery < high
    assert four[1].split() == ["–", "failed"]
    assert [text.strip() for text in four[3:]] == ["–", "–"]
    assert "▼" in four[2]


def test_suite_means_are_null_where_a_member_is_missing(written):
    means = {(row["trial"], row["suite"]): row for row in written.summary["suites"]}
    assert means["m/w4a16", "both"]["mean"] is means["m/w4a16", "both"]["recovery"] is None
    assert means["m/w4a16", "one"]["recovery"] == pytest.approx(means["m/w4a16", "one"]["mean"] / 0.6875)


def test_a_normalized_suite_shows_both_scales_and_averages_the_normalized_one(write, write_evaluation, tmp_path):
    baselines = {"gsm8k": 0.0, "arc": 0.25, "ppl": 0.5}
    found = {}
    for trial in TRIALS[:2]:
        for task, baseline in baselines.items():
            scores = {"m/bf16": [1.0] * 90 + [0.0] * 30, "m/w8a8": [1.0] * 80 + [0.0] * 40}
            pair = {"trial": trial.name} | ({} if trial.is_base else {"base": "m/bf16"})
            shards = {f"{role}/{task}/0": write_evaluation(task, scores[name]) for role, name in pair.items()}
            out = tmp_path / f"{trial.recipe}-{task}"
            out.mkdir()
            compare(CompareConfig(task=task, leaves=[task], random_baseline=baseline), shards, out)
            found[f"compare/{trial.name}/{task}"] = out
    suites = [SuiteRow(name="v2", tasks=TASKS, normalized=True), SuiteRow(name="v1", tasks=TASKS)]
    page = write(found, trials=TRIALS[:2], suites=suites, failures=[])
    means = {(row["trial"], row["suite"]): row for row in page.summary["suites"]}
    normalized = {0.75: (75 + 200 / 3 + 50) / 3, 2 / 3: (200 / 3 + 500 / 9 + 100 / 3) / 3}
    assert means["m/w8a8", "v1"]["mean"] == pytest.approx(2 / 3)
    assert means["m/w8a8", "v2"]["mean"] == pytest.approx(normalized[2 / 3])
    assert means["m/w8a8", "v2"]["recovery"] == pytest.approx(normalized[2 / 3] / normalized[0.75])
    for suite in ("v1", "v2"):
        mean = means["m/w8a8", suite]
        assert mean["recovery_low"] < mean["recovery"] < mean["recovery_high"] < 1
    one = means["m/w8a8", "v1"]  # three tasks with the same documents: the interval of one, by the root of 3
    (row,) = [row for row in page.rows if (row["trial"], row["task"]) == ("m/w8a8", "arc")]
    widths = [(found["recovery_high"] - found["recovery_low"]) for found in (one, row)]
    assert widths[0] == pytest.approx(widths[1] / 3**0.5, rel=0.25)
    table = Tables(page.html).tables["v2, normalized"]
    assert as_numbers(table[2][2])[0] == pytest.approx(500 / 9, abs=0.5)  # arc: (2/3 - 1/4) / (3/4)
    detail = next(line for line in Tables(page.html).tables["Every number of m"] if line[:2] == ["arc", "w8a8"])
    assert as_numbers(detail[8])[0] == pytest.approx(2 / 3, abs=0.01)
    assert as_numbers(detail[28])[0] == pytest.approx(500 / 9, abs=0.5)


@pytest.mark.parametrize("suite", ["leaderboard_v1", "leaderboard_v2"])
def test_suite_means_and_recoveries_are_those_the_study_published(suite):
    """Tables 2 and 3 of arXiv 2411.02355: averages and recoveries follow from the columns, to their rounding."""
    published = json.loads((Path(__file__).parents[2] / "data" / "published_suites.json").read_text())
    bases = {row["model"]: row[suite] for row in published if row["recipe"] == "bf16"}
    for row in published:
        scores, base_scores = row[suite]["scores"], bases[row["model"]]["scores"]
        trial = TrialRow(name="t", model=row["model"], recipe=row["recipe"])
        cells = [
            {
                "trial": "t",
                "task": str(task),
                **dict.fromkeys(["normalized", "paired_normalized"], score),
                **dict.fromkeys(["base_normalized", "paired_base_normalized"], base_score),
            }
            for task, (score, base_score) in enumerate(zip(scores, base_scores, strict=True))
        ]
        members = SuiteRow(name=suite, tasks=[cell["task"] for cell in cells], normalized=True)
        ((mean, _),) = suite_means([trial], [members], cells, {}, {})
        assert mean.mean == pytest.approx(row[suite]["average"], abs=0.07)
        assert 100 * mean.recovery == pytest.approx(row[suite]["recovery_pct"], abs=0.1)


def test_a_suite_s_recovery_is_of_the_documents_that_both_were_scored_on():
    """The trial answers as its base does, but is missing 40 of the 50 that both get wrong."""
    trial, suite = TrialRow(name="t", model="m", recipe="r"), SuiteRow(name="s", tasks=["a"])
    scores = {"score": 50 / 60, "base_score": 0.5, "paired_score": 50 / 60, "paired_base_score": 50 / 60}
    ((mean, _),) = suite_means([trial], [suite], [{"trial": "t", "task": "a", **scores}], {}, {})
    assert (mean.mean, mean.base_mean, mean.recovery) == (50 / 60, 0.5, 1.0)


def test_the_table_of_verdicts_says_of_each_trial_whether_to_ship_it_and_why(written):
    header, *lines = Tables(written.html).tables["Verdicts"]
    names = [text.split()[0] for text in header]
    table = [dict(zip(names, line, strict=True)) for line in lines]
    assert [line["format"].split()[0] for line in table] == ["w8a8", "w4a16", "bf16"]
    shipped = [line["ship"] for line in table]
    assert shipped == ["✘ do not ship", "✘ do not ship 2 of 3 tasks", "base"]
    decided = {verdict["trial"]: verdict for verdict in written.summary["trials"]}
    for line, name in zip(table[:2], ("m/w8a8", "m/w4a16"), strict=True):
        assert line["why"].startswith(decided[name]["reasons"][0])
    four = table[1]
    assert [four[mark] for mark in "▼▲=?"] == ["1", "1", "0", "0"]  # confirmed in the whole grid
    assert four["worst"].split() == ["arc", "−43.75", "points"]


def test_every_format_s_reasons_are_listed(written):
    listed = unescape(written.html.partition("<summary>Why, of each format")[2].partition("</dl>")[0])
    for verdict in written.summary["trials"]:
        assert (f"<dt>{verdict['trial']}<" in listed) == bool(verdict["reasons"]) == (not verdict["is_base"])
        assert all(reason in listed for reason in verdict["reasons"])


def test_what_is_folded_on_a_screen_is_open_on_paper(written):
    assert "<details>" in written.html
    (style,) = re.findall(r"@media print \{(.*?)\n\}", written.html, re.DOTALL)
    assert "details::details-content { content-visibility: visible; display: block;" in style
    (script,) = re.findall(r"<script>(.*?)</script>", written.html, re.DOTALL)
    assert 'addEventListener("beforeprint"' in script and "each.open = true" in script


def test_the_page_begins_with_the_sentence_that_the_summary_has(written):
    (sentence,) = written.summary["sentences"].values()
    assert sentence.startswith("Ship none of these formats: w8a8 (0.55 of the size of bf16; degraded on gsm8k and arc)")
    assert written.html.index(sentence.replace("'", "&#39;")) < written.html.index("<table")
    headline = "0 of 2 formats may be shipped, 2 not to be shipped"
    assert written.summary["headline"] == headline
    assert written.html.index(headline) < written.html.index(sentence)
    assert written.markdown.splitlines()[2:5] == [f"**{headline}.**", "", sentence]
    suites = "both: gsm8k, arc. one: arc. What a format does to anything else was not looked at."
    assert suites in written.markdown and suites in written.html
    assert written.files["verdicts.md"].decode().startswith(f"**{headline}.**\n\n{sentence}\n")
    (head, _, eight, *_) = (line for line in written.files["verdicts.md"].decode().splitlines() if line.startswith("|"))
    assert [cell.split("<br>")[0].strip() for cell in head.split("|")[1:-1]] == [
        *("format", "ship it?", "▼ / ▲ / = / ?", "worst task", "why"),
    ]
    cells = [cell.strip() for cell in eight.split("|")[1:-1]]
    assert cells[0].startswith("[w8a8](<flips/") and cells[1] == "✘ do not ship" and cells[-1]
    assert cells[2].count(" / ") == 3


def test_a_lower_score_is_better_where_the_metric_says_so(written):
    verdicts = {row["task"]: row["verdict"] for row in written.rows if row["recipe"] == "w4a16"}
    assert verdicts == {"gsm8k": None, "arc": "degraded", "ppl": "improved"}
    titles = re.findall(r"<title>(\w+), (\w+): ([+−]?[\d.]+) \[.*?\] (\w+)", written.html)
    assert {(task, verdict) for task, recipe, _, verdict in titles if recipe == "w4a16"} == {
        ("arc", "degraded"),
        ("ppl", "improved"),
    }
    gains = {task: gain for task, recipe, gain, _ in titles if recipe == "w4a16"}
    assert gains["arc"].startswith("−") and gains["ppl"].startswith("+")  # right is better in all of the chart


def test_what_the_grid_does_not_confirm_is_counted_apart_and_marked(write, write_evaluation, tmp_path):
    found = {}
    scores = {"base": [1.0] * 100, "worse": [1.0] * 92 + [0.0] * 8}
    for name in scores:
        place = tmp_path / name
        place.mkdir()
        pair = {"trial/arc": write_evaluation("arc", scores[name])}
        pair |= {} if name == "base" else {"base/arc": write_evaluation("arc", scores["base"])}
        compare(CompareConfig(task="arc", leaves=["arc"]), pair, place)
        found[f"compare/m/{name}/arc"] = place
    trials = [TrialRow(name=f"m/{name}", model="m", recipe=name, is_base=name == "base") for name in ("base", "worse")]
    lacking = [FailureRow(step=f"s{each}", trial="m/worse", task=f"t{each}", status="failed") for each in range(20)]
    tasks = ["arc", *(failure.task for failure in lacking)]
    page = write(found, trials=trials, tasks=tasks, suites=[], failures=lacking)
    line = Tables(page.html).tables["Verdicts"][1]
    assert line[3:5] == ["0 + 1?", "0"]
    detail = Tables(page.html).tables["Every number of m"]
    assert next(each for each in detail if each[:2] == ["arc", "worse"])[-1].endswith(", not confirmed")


def test_failures_and_what_they_skipped_are_listed_with_their_reason(written):
    table = Tables(written.html).tables["Failed, skipped and missing"]
    assert table[1] == ["answer/m-w4a16-gsm8k", "m/w4a16", "gsm8k", "failed", "engine", FAILURES[0].message]
    assert table[2][3] == "skipped"
    assert "the engine \\<died\\> \\| see the log" in written.markdown
    assert [row["status"] for row in written.rows if row["score"] is None] == ["failed"]


def test_missing_is_a_dash_and_never_a_zero(written):
    four = next(line for line in Tables(written.html).tables["Every number of m"] if line[:2] == ["gsm8k", "w4a16"])
    assert set(four[2:]) == {"–"}
    markdown = next(line for line in written.markdown.splitlines() if line.startswith("| gsm8k | w4a16 |"))
    assert set(markdown.replace("|", " ").split()[2:]) == {"–"}


def test_the_page_says_how_the_numbers_were_obtained(written):
    tables = Tables(written.html).tables
    settings = {line[0]: line[1] for line in tables["Settings of all evaluations"]}
    assert settings["engine"] == "vllm" and settings["engine_version"] == "0.32.0"
    assert settings["gen_kwargs"] == '{"temperature": 0.0}' and settings["harness"] == "lm_eval-0.4.13"
    header, gsm8k, *_ = tables["Tasks"]
    assert dict(zip(header, gsm8k, strict=True))["num_fewshot"] == "5"  # the only setting that differs
    assert dict(zip(header, gsm8k, strict=True))["documents"] == "128"
    for page in (written.html, written.markdown):
        assert "Weights on a 4-bit grid." in page and "m-w8a8-arc-0123456789ab" in page
        assert "score interval" in page and "2.5 % are called degraded" in page
    assert tables["Checkpoint gates"][1] == ["m/w8a8", "passed", "0.5512 / 0.55", "0.01235", "–"]


def test_the_page_needs_nothing_from_outside_and_escapes_what_it_shows(written):
    assert not re.search(r"(src|href)=\"(?!#|flips/)|url\(|@import|<script[^>]", written.html)
    assert "a &lt;sweep&gt;" in written.html and "<sweep>" not in written.html


def test_the_same_inputs_give_the_same_bytes(write, inputs, written):
    assert write(dict(reversed(inputs.items()))).files == written.files


def test_a_sweep_of_which_nothing_succeeded_still_has_a_report(write):
    empty = write({}, failures=[], suites=[])
    assert {row["status"] for row in empty.rows} == {"missing"}
    assert empty.metrics["num_scored"] == 0
    assert {line[3].strip() for line in Tables(empty.html).tables["Every number of m"][1:]} == {"–"}


def test_a_task_without_a_metric_of_its_own_is_shown_without_a_score(write, write_evaluation, tmp_path):
    shards = {leaf: write_evaluation(leaf, {f"acc,{leaf}": [1.0]}) for leaf in ("a", "b")}
    trial_inputs = {f"trial/{leaf}/0": shard for leaf, shard in shards.items()}
    compare(CompareConfig(task="arc", leaves=["a", "b"]), trial_inputs, tmp_path)
    page = write({"compare/m/bf16/arc": tmp_path}, trials=TRIALS[:1], tasks=["arc"], suites=[], failures=[])
    assert [(row["status"], row["score"], row["metric"]) for row in page.rows] == [("incomplete", None, None)]
    assert "report different metrics" in page.html


def test_what_it_took_stands_beside_what_was_expected(write, inputs):
    costs = CostsConfig(
        stages=[
            CostRow(
                stage="answer",
                num_steps=57,
                seconds=3725.0,
                gpu_hours=1.035,
                num_expected=50,
                expected_s=3000.0,
                expected_took_s=3600.0,
            ),
            CostRow(stage="compare", num_steps=2, seconds=0.25),
        ],
        gpus=[GpuRow(host="node", gpu="3", num_steps=57, run_s=5000.0, held=0.745, computing=0.5)],
    )
    page = write(inputs, costs=costs)
    _, evaluate, compare, whole, _, gpu = Tables(page.html).tables["What it took"]
    assert evaluate == ["answer", "57", "1:02:05", "1.035", "0:50:00 50 steps", "1:00:00", "1.20"]
    assert compare == ["compare", "2", "0.2 s", "–", "–", "–", "–"]
    assert whole == ["all", "59", "1:02:05", "–", "0:50:00 50 steps", "1:00:00", "1.20"]
    assert gpu == ["node, 3", "–", "57", "1:23:20", "74 %", "50 %"]
    assert "| node, 3 | – | 57 | 1:23:20 | 74 % | 50 % |" in page.markdown
    assert "What it took" not in write(inputs).html


def test_a_damaged_comparison_is_named(write, inputs, tmp_path):
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(DataError, match=r"comparison.json cannot be read.*delete it and run again"):
        write(inputs | {"compare/m/bf16/arc": tmp_path})


def test_two_trials_of_one_name_are_refused():
    with pytest.raises(ValueError, match="same name"):
        ReportConfig(title="t", trials=[TRIALS[0], TRIALS[0]], tasks=[])


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e3))
def test_rounding_keeps_an_interval_recognisable(low, width):
    places = decimals([(low, low + width)])
    shown = as_numbers(interval(low, low + width, places))
    assert shown[1] - shown[0] == pytest.approx(width, rel=0.11)


def test_numbers_are_written_as_people_write_them():
    assert number(-0.00004, 3, signed=True) == "0.000"
    assert (number(-0.25, 1), number(0.25, 2, signed=True), number(None, 2)) == ("−0.2", "+0.25", "–")
    assert (percent(0.99312, 1), percent(None, 1)) == ("99.3 %", "–")
    assert interval(0.5, None, 2) == "[0.50, –]"
    assert [p_value(p) for p in (None, 1.0, 0.0201, 0.00004)] == ["–", "1.00", "0.020", "< 0.0001"]


def test_simulated_trials_are_named_and_kernels_beside_them(write, write_evaluation, tmp_path):
    """A table of kernels alone, or of dense models, needs no word."""
    arithmetics = {
        "bf16": {"method": "dense"},
        "w8a8": {"method": "simulated", "weights": "dequantized to float32"},
        "w4a16": {"method": "native", "kernels": ["MacheteLinearKernel"]},
    }
    found = {}
    for recipe, arithmetic in arithmetics.items():
        out = tmp_path / f"m-{recipe}-arc-0123456789ab"
        out.mkdir()
        shard = write_evaluation("arc", [1.0, 0.0] * 8, arithmetic=arithmetic)
        compare(CompareConfig(task="arc", leaves=["arc"]), {"trial/arc/0000": shard}, out)
        found[f"compare/m/{recipe}/arc"] = out
    for text in (written := write(found)).markdown, written.html:
        assert "m/w8a8: simulated" in text
        assert "m/w4a16: computed by kernels of the format, beside simulated trials" in text
    assert "kernels of the format" not in write({name: found[name] for name in found if "w4a16" not in name}).markdown
    assert "simulated" not in write({name: found[name] for name in found if "w8a8" not in name}).markdown


def test_what_was_said_of_a_server_is_said_beside_its_numbers(write, write_evaluation, tmp_path):
    found = {}
    for recipe, flags in {"bf16": {}, "w8a8": {"quantization": "fp8", "max-num-seqs": 8}}.items():
        out = tmp_path / f"m-{recipe}-arc-0123456789ab"
        out.mkdir()
        server = {"method": "served", "model": f"own-{recipe}", "flags": flags}
        shard = write_evaluation("arc", [1.0, 0.0] * 8, arithmetic=server)
        compare(CompareConfig(task="arc", leaves=["arc"]), {"trial/arc/0000": shard}, out)
        found[f"compare/m/{recipe}/arc"] = out
    text = write(found).markdown
    assert "m/bf16: answered by a server, own-bf16 (nothing was said of its flags); what that computes with" in text
    assert "m/w8a8: answered by a server, own-w8a8 (max-num-seqs=8, quantization=fp8)" in text


def test_what_a_run_of_lm_eval_says_of_itself_is_said_beside_its_numbers(write, write_evaluation, tmp_path):
    out = tmp_path / "m-bf16-arc-0123456789ab"
    out.mkdir()
    run = {"method": "imported", "model": "hf", "model_args": {"dtype": "bfloat16", "pretrained": "org/m"}}
    shard = write_evaluation("arc", [1.0, 0.0] * 8, arithmetic=run)
    compare(CompareConfig(task="arc", leaves=["arc"]), {"trial/arc/0000": shard}, out)
    text = write({"compare/m/bf16/arc": out}).markdown
    assert "m/bf16: answers of an earlier run of lm-eval, hf (dtype=bfloat16, pretrained=org/m); how many" in text


def test_a_trial_of_two_arithmetics_has_no_mean_over_them(write, write_evaluation, tmp_path):
    """Its tasks were answered on machines of two kinds; each alone keeps its score."""
    kernel = {"method": "native", "kernels": ["MarlinNvFp4LinearKernel"], "format": "W4A4", "effective": "W4A16"}
    simulated = {"method": "simulated", "weights": "dequantized to float32"}
    inputs = {}
    for task, arithmetic in (("arc", simulated), ("gsm8k", kernel), ("ifeval", simulated)):
        out = tmp_path / f"m-w8a8-{task}-0123456789ab"
        out.mkdir()
        shard = write_evaluation(task, [1.0, 0.0] * 8, arithmetic=arithmetic)
        compare(CompareConfig(task=task, leaves=[task]), {"trial/" + task + "/0000": shard}, out)
        inputs[f"compare/m/w8a8/{task}"] = out
    suites = [SuiteRow(name="both", tasks=["arc", "gsm8k"]), SuiteRow(name="alike", tasks=["arc", "ifeval"])]
    page = write(inputs, tasks=["arc", "gsm8k", "ifeval"], suites=suites)
    means = {row["suite"]: row["mean"] for row in page.summary["suites"] if row["trial"] == "m/w8a8"}
    assert means == {"both": None, "alike": 0.5}
    assert "m/w8a8: two arithmetics (simulated dequantized to float32 for arc, ifeval; native Marl" in page.markdown
    shown = {row["task"]: row["computed"] for row in page.rows if row["trial"] == "m/w8a8"}
    assert shown == {"arc": "simulated", "gsm8k": "MarlinNvFp4 as W4A16", "ifeval": "simulated"}


def test_many_trials_are_shown_in_the_order_of_what_is_decided_and_the_most_when_asked_for(write, inputs):
    names = [f"m/r{number:02}" for number in range(30)]
    extra = [TrialRow(name=name, model="m", recipe=name[2:], base="m/bf16") for name in names]
    failures = [
        FailureRow(step=f"answer/{name}-arc", trial=name, task="arc", status="failed", message="the engine died")
        for name in names
    ]
    page = write(inputs, trials=[*extra, *TRIALS], failures=[*FAILURES, *failures])
    tables = Tables(page.html).tables
    assert "0 of 32 formats may be shipped, 30 not decided, 2 not to be shipped." in page.html
    (rest,) = (heading for heading in tables if heading.startswith("13 more: "))
    assert rest == "13 more: 10 not decided, 2 not to be shipped, 1 base"
    first, last = tables["Verdicts"][1:], tables[rest][1:]
    assert {line[1].split(" 0 of")[0] for line in first} == {"? not decided"} and len(first) == 20
    assert [line[1].split()[0] for line in last] == ["?"] * 10 + ["✘"] * 2 + ["base"]
    assert first[0][2].startswith("arc has no result: answer failed (the engine died)")
    listed = [line for line in page.markdown.splitlines() if line.startswith("|") and "? not decided" in line]
    assert len(listed) == 30  # Markdown folds nothing


def test_a_suite_of_many_tasks_is_shown_in_parts_that_fit_a_window(write):
    tasks = [f"leaderboard_task_number_{number}" for number in range(40)]
    lacking = [FailureRow(step=f"s/{task}", trial="m/w8a8", task=task, status="failed") for task in tasks]
    page = write({}, trials=TRIALS, tasks=tasks, suites=[], failures=lacking)
    parts = Tables(page.html).parts["Tasks"]
    assert len(parts) > 2 and all(part[0][0] == "format" for part in parts)
    assert sum(len(part[0]) - 1 for part in parts) == 40
    assert max(sum(len(cell) for cell in part[0]) for part in parts) < 500
    assert len({row[0] for part in parts for row in part[1:]}) == 3
