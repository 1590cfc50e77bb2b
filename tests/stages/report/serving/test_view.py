"""The serving half of a report, fed with the study's own tables: what it prints is what the study printed."""

import json
import random
import re
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from stages.compare.config import CompareConfig
from stages.compare.stage import compare
from stages.report.config import ReportConfig, ServingConfig, SloConfig, TrialRow
from stages.report.stage import report
from tests.published import GPUS, TABLES, WORKLOADS, recipes, row
from tests.stages.report.test_report import Tables

MODEL, GPU = "8B", "A6000"
RECIPES = recipes(MODEL, GPU)
TRIALS = [
    TrialRow(name=f"{MODEL}/{recipe}", model=MODEL, recipe=recipe, is_base=recipe == "bf16") for recipe in RECIPES
]
SERVING = ServingConfig(gpus=[GPUS[GPU]], gpu_of={trial.name: GPU for trial in TRIALS})
NOTHING = {"median": None, "p90": None, "p99": None, "n": 0}
CURVES = {
    "bf16": [(1, 30), (4, 60)],
    "w8a8_int": [(1, 20), (4, 30)],
    "w4a16_int": [(1, 12), (4, 50)],
}  # ms at requests/s


def of_start(value, n=30):
    ends = {"p90_low": 0.99 * value, "p90_high": 1.01 * value} if n >= 29 else {}
    return {"median": value, "p90": value, "p99": None, "n": n, **ends}


def point(recipe, workload, mode, *, latency=None, rate=None, itl=None, reasons=(), n=30):
    prompt_tokens, output_tokens = TABLES["use_cases"][workload]
    return {
        "workload": workload,
        "mode": mode.split("-")[0],
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "num_gpus": 1,
        "replicas": 1,
        "rate_share": None,
        "asked_requests_per_s": None,
        "requests_per_s": {"mean": rate},
        "latency_s": NOTHING if latency is None else of_start(latency),
        "ttft_ms": of_start(prompt_tokens / 10) if latency else NOTHING,
        "itl_ms": NOTHING if itl is None else of_start(itl, n),
        "direct_requests_per_s": None,
        "validity": {
            "is_valid": not reasons,
            "reasons": list(reasons),
            "num_requests": 10,
            "num_failed": 0,
            "warm_up": {"num_discarded": 1, "method": "the first fifth"},
            "client_ceiling": {"requests_per_s": 500.0, "tokens_per_s": None},
            "repeats": [],
            "spread": 0.01,
        },
        "device": {"product": "NVIDIA RTX A6000", "driver": "550", "before": None, "after": None},
        "kernels": {
            "linear": {"CompressedTensorsWNA16": "MarlinLinearKernel"} if recipe == "w4a16_int" else None,
            "attention": "FLASH_ATTN",
            "flash_attention_version": 2,
            "cuda_graphs": True,
            "cuda_graph_mode": None,
            "compile_s": 20.0,
            "kv_cache_tokens": 200_000,
        },
        "work": {
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "weight_gib": 15.0,
            "step_gib": 14.0,
            "token_kib": 128.0,
            "token_gflop": 15.0,
            "arithmetic": "bf16",
        },
        "concurrency": 256,
    }


def at_start(document, start, shift):
    """The point at another start, where everything takes longer by a share."""
    if isinstance(document, list):
        return next((each for each in document if each["start"] == start), document[-1] | {"start": start})

    def shifted(found):
        kept = ("median", "p90", "p90_low", "p90_high")
        return {name: value * (1 + shift) if name in kept and value else value for name, value in found.items()}

    rate = document["requests_per_s"]["mean"]
    own = {name: shifted(document[name]) for name in ("latency_s", "ttft_ms", "itl_ms")}
    return document | own | {"start": start, "requests_per_s": {"mean": rate and rate / (1 + shift)}}


@pytest.fixture
def points():
    """Every cell of tables 5 and 6 for 8B on one A6000, and a curve as in figure 2."""
    found = {}
    for recipe in RECIPES:
        sync, under_load = row("sync", MODEL, GPU, recipe), row("async", MODEL, GPU, recipe)
        for index, workload in enumerate(WORKLOADS):
            latency = sync["latency_s"][index]
            found[recipe, workload, "synchronous"] = point(
                recipe, workload, "synchronous", latency=latency, rate=1 / latency
            )
            found[recipe, workload, "throughput"] = point(recipe, workload, "throughput", rate=under_load["qps"][index])
        for rate, itl in CURVES[recipe]:
            found[recipe, "docstring_generation", f"rate-{rate}"] = point(
                recipe, "docstring_generation", f"rate-{rate}", latency=3.0, rate=float(rate), itl=itl
            )
    return found


@pytest.fixture
def write(tmp_path):
    def write(points, serving=SERVING, tasks=(), inputs=None, num_starts=3):
        inputs, made = dict(inputs or {}), {}
        for (recipe, workload, mode), document in points.items():
            orders = random.Random(f"{recipe}{workload}{mode}")
            for start, shift in enumerate(orders.sample([0.0, -0.001, 0.001][:num_starts], num_starts), 1):
                suffix = f"/{start}" if start > 1 else ""
                made[f"{recipe}/{workload}/{mode}{suffix}"] = at_start(document, start, shift)
        for name, document in made.items():
            path = tmp_path / "store" / name.replace("/", "-")
            path.mkdir(parents=True, exist_ok=True)
            (path / "point.json").write_text(json.dumps(document))
            inputs[f"profile/{MODEL}/{name}"] = path
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        report(ReportConfig(title="served", trials=TRIALS, tasks=list(tasks), serving=serving), inputs, out)
        html = (out / "report.html").read_text()
        return SimpleNamespace(
            html=html,
            markdown=(out / "report.md").read_text(),
            tables={name: cells(table) for name, table in Tables(html).tables.items()},
            rows=pq.read_table(out / "serving.parquet").to_pylist(),
            pictures={path.name: path.read_text() for path in out.glob("*.svg")},
        )

    return write


def cells(table):
    """Rows by their first cell."""
    return {line[0].strip(): [cell.strip() for cell in line] for line in table}


def title(text):
    return f"{MODEL} on NVIDIA RTX A6000: {text}"


KEY = "w8a8_int", "rag", "throughput"
SYNC = title("one query at a time, seconds (queries per dollar)")
ASYNC = title("at saturation, queries a second (queries per dollar)")


def test_the_tables_are_the_study_s(write, points):
    written = write(points)
    assert written.tables[SYNC]["w4a16_int"][2].split()[0] == "2.39"
    assert written.tables[SYNC]["w8a8_int"][2].split()[0] == "1.54"
    assert written.tables[ASYNC]["w8a8_int"][2].split()[0] == "1.38"
    assert written.tables[ASYNC]["w4a16_int"][2].split()[0] == "1.07"  # printed 1.08, 1.071 from the printed cells
    assert written.tables[SYNC]["bf16"][3] == "24.5 (184)"  # printed 183: their latency had more digits
    assert written.tables[ASYNC]["bf16"][7].startswith("11.8 (53,100)")


def test_the_sentence_joins_what_was_measured_of_answers_and_of_serving(write, points, write_evaluation, tmp_path):
    inputs = {}
    base = write_evaluation("arc", [1.0, 0.0] * 2000)
    for recipe, scores in {"w8a8_int": [1.0, 0.0] * 2000, "w4a16_int": [1.0, 0.0, 0.0, 0.0] * 1000}.items():
        place = tmp_path / f"compared-{recipe}"
        place.mkdir()
        pair = {"trial/arc": write_evaluation("arc", scores), "base/arc": base}
        compare(CompareConfig(task="arc", leaves=["arc"]), pair, place)
        inputs[f"compare/{MODEL}/{recipe}/arc"] = place
    written = write(points, tasks=["arc"], inputs=inputs)
    sentence = re.search(r'<p class="advice">(.*?)</p>', written.html)[1]
    assert re.fullmatch(
        r"Ship w8a8_int: equivalent on 1 of 1 tasks; 1\.38 \[1\.\d\d, 1\.\d\d\] times the queries per dollar of bf16 "
        r"at saturation, 1\.54 \[1\.\d\d, 1\.\d\d\] one at a time \(1 × NVIDIA RTX A6000 at 0\.8 \$/h\)\.",
        sentence,
    )
    prices = {name: line[-1].split()[0] for name, line in written.tables["Verdicts"].items()}
    label = {name.split()[0]: price for name, price in prices.items()}
    assert (label["w8a8_int"], label["w4a16_int"], label["bf16"]) == ("1.38", "1.07", "base")


def test_a_point_that_is_not_valid_is_shown_and_counts_nowhere(write, points):
    sound = {
        row["workload"]: row
        for row in write(points).rows
        if (row["recipe"], row["mode"]) == ("w4a16_int", "throughput")
    }
    points["w4a16_int", "rag", "throughput"] = point(
        "w4a16_int", "rag", "throughput", rate=400.0, reasons=["HTTP is the limit"]
    )
    written = write(points)
    line = written.tables[ASYNC]["w4a16_int"]
    assert "400 †" in line
    assert line[2].split()[0] == "1.09" and "6 of 7 workloads" in line[2]
    rows = {row["workload"]: row for row in written.rows if (row["recipe"], row["mode"]) == ("w4a16_int", "throughput")}
    assert rows["rag"]["queries_per_usd"] is None and rows["rag"]["is_valid"] is False
    assert rows["rag"]["requests_per_s"] == pytest.approx(400.0, rel=0.001)
    assert rows["rag"]["reasons"] == [f"start {start}: HTTP is the limit" for start in (1, 2, 3)]
    assert rows["summarization"] == sound["summarization"]
    assert "HTTP is the limit" in written.html and "HTTP is the limit" in written.markdown


def test_a_point_that_is_missing_is_a_dash(write, points):
    del points["w8a8_int", "code_fixing", "synchronous"]
    line = write(points).tables[SYNC]["w8a8_int"]
    assert line[5] == "–"
    assert "6 of 7 workloads" in line[2]


def test_the_advice_is_the_study_s(write, points):
    advice = write(points).tables[title("which format to serve")]["every workload alike"]
    assert advice[1] == "w4a16_int"
    assert advice[2] == "w8a8_int"
    assert advice[3].split("; ")[0] == "docstring_generation: w4a16_int below 1.00 requests/s, w8a8_int above 4.00"
    assert "not enough is measured" in advice[4]  # no task was evaluated


def test_a_mix_is_the_user_s(write, points):
    serving = ServingConfig(
        gpus=SERVING.gpus,
        gpu_of=SERVING.gpu_of,
        mixes={"writing": {"code_completion": 1.0}, "all": dict.fromkeys(WORKLOADS, 1)},
    )
    advice = write(points, serving).tables[title("which format to serve")]
    assert advice["writing"][2] == "not enough evidence: w8a8_int or w4a16_int"
    assert advice["all"][2] == "w8a8_int"


def test_a_new_price_changes_costs_and_nothing_measured(write, points):
    from dataclasses import replace

    dearer = replace(
        GPUS[GPU], prices=[replace(price, usd_per_hour=2 * price.usd_per_hour) for price in GPUS[GPU].prices]
    )
    before, after = write(points), write(points, ServingConfig(gpus=[dearer], gpu_of=SERVING.gpu_of))
    for old, new in zip(before.rows, after.rows, strict=True):
        if old["queries_per_usd"] is not None:
            assert new["queries_per_usd"] == pytest.approx(old["queries_per_usd"] / 2)
        assert new["latency_s_median"] == old["latency_s_median"] and new["requests_per_s"] == old["requests_per_s"]


def test_what_was_measured_once_is_shown_as_that_without_interval_or_verdict(write, points):
    written = write(points, num_starts=1)
    assert written.tables[SYNC]["w4a16_int"][2].split(maxsplit=1) == ["2.39", "measured once"]
    advice = written.tables[title("which format to serve")]["every workload alike"]
    assert advice[1:4] == [
        "measured once, no verdict; the lowest is w4a16_int",
        "measured once, no verdict; the lowest is w8a8_int",
        "docstring_generation: measured once, no verdict",
    ]
    ends = [value for row in written.rows for name, value in row.items() if re.search(r"(_s|_ms)_(low|high)$", name)]
    assert set(ends) == {None}
    assert {row["num_starts"] for row in written.rows} == {1}


def test_three_starts_give_every_number_an_interval_and_ratios_verdicts(write, points):
    written = write(points)
    assert re.fullmatch(r"2\.39\s+\[2\.3\d, 2\.\d\d\]\s*", written.tables[SYNC]["w4a16_int"][2])
    rows = [row for row in written.rows if row["mode"] == "throughput"]
    assert all(row["requests_per_s_low"] < row["requests_per_s"] < row["requests_per_s_high"] for row in rows)
    assert {row["num_starts"] for row in rows} == {3}
    lines = [line for line in written.markdown.splitlines() if line.startswith("| rag | throughput")]
    assert [line.split(" | ")[1] for line in lines[:3]] == [f"throughput, start {start}" for start in (1, 2, 3)]


def test_a_start_that_does_not_count_leaves_the_others(write, points):
    broken = point("w8a8_int", "rag", "throughput", rate=900.0, reasons=["the GPU was slowed"])
    sound = points["w8a8_int", "rag", "throughput"]
    points["w8a8_int", "rag", "throughput"] = [sound | {"start": 1}, broken | {"start": 2}, sound | {"start": 3}]
    written = write(points)
    (row,) = [row for row in written.rows if (row["recipe"], row["workload"], row["mode"]) == KEY]
    assert (row["is_valid"], row["num_starts"], row["reasons"]) == (True, 2, ["start 2: the GPU was slowed"])
    assert row["requests_per_s"] == pytest.approx(sound["requests_per_s"]["mean"])
    assert "†" not in "".join(written.tables[ASYNC]["w8a8_int"])


def goodput(write, points, num_starts=3):
    serving = ServingConfig(gpus=SERVING.gpus, gpu_of=SERVING.gpu_of, slo=SloConfig(itl_ms=45))
    written = write(points, serving, num_starts=num_starts)
    table = written.tables[title("most queries a second within 45 ms between tokens at p90")]
    assert table["bf16"][1] == "–"
    return [table[recipe][1 + WORKLOADS.index("docstring_generation")] for recipe in RECIPES]


def test_rates_within_an_objective(write, points):
    assert goodput(write, points) == ["1.00", "4.00", "1.00"]
    assert goodput(write, points, num_starts=1) == [f"{rate} (measured once)" for rate in ("1.00", "4.00", "1.00")]


@pytest.mark.parametrize(("itl", "passes"), [(44.3, True), (44.95, False)])
def test_a_rate_is_within_an_objective_only_if_the_end_of_p90_is(write, points, itl, passes):
    """Three starts a thousandth apart know p90 to a quarter of a per cent, one of 30 requests here to one per cent."""
    where = "w8a8_int", "docstring_generation", "rate-4"
    points[where] = point(*where, latency=3.0, rate=4.0, itl=itl)
    assert (goodput(write, points)[1] == "4.00") == passes
    assert goodput(write, points, num_starts=1)[1] == ("4.00" if passes else "1.00") + " (measured once)"


def test_a_rate_with_too_few_requests_for_an_end_of_p90_says_so(write, points):
    for recipe in RECIPES:
        for rate, itl in CURVES[recipe]:
            where = recipe, "docstring_generation", f"rate-{rate}"
            points[where] = point(*where, latency=3.0, rate=float(rate), itl=itl, n=28)
    assert goodput(write, points) == ["– (p90 needs 29 requests)"] * 3
    assert "12 (needs 29 requests)" in write(points, num_starts=1).markdown


def test_a_row_for_each_format(write, points):
    table = write(points).tables[title("a row for each format")]
    assert table["bf16"][3] == "102"  # ms to the first of 1,024 tokens
    assert table["bf16"][2] == "–"  # no workload of 64 tokens
    spent_s = sum(1 / qps for qps in row("async", MODEL, GPU, "bf16")["qps"]) / 7
    tokens = sum(tokens for _, tokens in TABLES["use_cases"].values()) / 7
    assert float(table["bf16"][4].replace(",", "")) == pytest.approx(tokens / spent_s, rel=0.01)


def test_pictures_are_files_that_stand_alone(write, points):
    written = write(points)
    assert set(written.pictures) == {
        f"8B-A6000-{name}.svg" for name in ("latency", "throughput", "itl-docstring_generation")
    }
    for name, text in written.pictures.items():
        root = ElementTree.fromstring(text)
        words = " ".join(root.itertext())
        assert all(recipe in words for recipe in RECIPES)
        assert text in written.html, f"{name} is on the page as well"
    assert "24.5 (184)" in written.pictures["8B-A6000-latency.svg"]
    assert not re.search(r"(src|href)=\"(?!#)|url\(|@import|<script[^>]", written.html)


def test_why_a_format_is_fast_is_beside_it(write, points):
    table = write(points).tables[title("why")]
    assert table["w4a16_int"][1] == "CompressedTensorsWNA16: MarlinLinearKernel"
    assert table["bf16"][2] == "FLASH_ATTN, FlashAttention 2"


def test_the_roofline_needs_the_device_s_ceilings(write, points, tmp_path):
    assert {row["roofline_share"] for row in write(points).rows} == {None}
    (tmp_path / "ceilings.json").write_text(json.dumps({"bandwidth_gb_s": 700.0, "bf16_tflop_s": 140.0}))
    inputs = {f"ceilings/{trial.name}": tmp_path for trial in TRIALS}
    shares = {
        (row["recipe"], row["workload"]): row["roofline_share"]
        for row in write(points, inputs=inputs).rows
        if row["mode"] == "synchronous"
    }
    assert 0.8 < shares["bf16", "code_completion"] <= 1  # 14 GiB a token at 700 GB/s are 21 ms; 24.5 s were printed


def test_without_profiles_nothing_is_said_of_serving(tmp_path):
    report(ReportConfig(title="not served", trials=TRIALS, tasks=[]), {}, tmp_path)
    assert "serving" not in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "serving.parquet").exists()
