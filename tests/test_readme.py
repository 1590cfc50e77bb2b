"""What the READMEs say is so: measured tables are those of the files, places exist, and examples can be planned."""

import json
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import main
from tests.benchmarks import estimates, grid, grids, profile, simulated, statistics, study
from tests.benchmarks.evaluation import RECIPES
from tests.stages.checkpoints.written import LLAMA, write_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BENCHMARKS = Path(profile.__file__).parent
MEASURED = (BENCHMARKS / "README.md").read_text()
HUB = Path(os.environ.get("QUANTSWEEP_DATA", "/nowhere"))
PAGES = [ROOT / "README.md", *(ROOT / ".github").glob("*.md")] + [
    path for room in ("conf", "pipeline", "stages", "tests") for path in (ROOT / room).rglob("README.md")
]


def test_the_table_of_serving_costs_is_that_of_the_measured_points():
    assert profile.table(BENCHMARKS / "profile_h100.parquet") in MEASURED


def test_the_table_of_the_engine_s_own_cost_is_that_of_the_measured_runs():
    assert grid.table(BENCHMARKS / "grid.json", BENCHMARKS / "grid_large.json") in MEASURED


def test_the_table_of_simulated_formats_is_what_was_measured():
    """At least 60 % of the dense speed in float32, which is the default's."""
    content = json.loads((BENCHMARKS / "simulated.json").read_text())
    assert simulated.table(content) in MEASURED
    assert content["cpu"] in MEASURED


def test_the_table_of_intervals_is_what_was_simulated_and_keeps_what_is_promised():
    found = statistics.read()
    assert statistics.table(found) in MEASURED
    assert statistics.wrong([each for each in found if each.kind in ("binary", "margin")]) == []
    assert statistics.wrong(found, slack=1) == [], "what is drawn document by document, to the simulation's own error"


def test_the_table_of_whole_sweeps_is_what_was_simulated_and_keeps_what_is_promised():
    found = statistics.read_grids()
    assert grids.table(found) in MEASURED
    assert grids.wrong(found) == []


def test_the_table_of_servers_is_what_was_simulated_and_keeps_what_is_promised():
    found = statistics.read_serving()
    assert grids.table(found) in MEASURED
    assert grids.wrong(found, slack=1) == [], "to the simulation's own error"


def test_the_tables_of_the_study_s_claims_are_what_was_judged():
    content = json.loads((BENCHMARKS / "study.json").read_text())
    assert study.trials_table(content) in MEASURED
    assert study.cells_table(content) in MEASURED


def test_the_row_of_the_six_tasks_is_what_was_measured():
    found = json.loads((BENCHMARKS / "evaluation.json").read_text())
    theirs = ", ".join(f"{seconds:.0f}" for seconds in found["theirs_s"].values())
    ours = found["ours_s"] / len(RECIPES)
    (row,) = [line for line in MEASURED.splitlines() if line.startswith("| six tasks")]
    assert f"{found['num_documents']:,} documents" in row
    assert row.endswith(f"| {theirs} s | {ours:.0f} s | {found['ratio']:.1f} |")
    assert found["other_scores"] == {}, "the page says that all scores were equal"


def test_the_table_of_estimates_is_that_of_the_measured_runs_and_of_the_rates():
    content = json.loads((BENCHMARKS / "estimates.json").read_text())
    assert estimates.table(content) in (ROOT / "pipeline" / "README.md").read_text()


def test_the_rates_of_estimates_are_those_that_fit_the_measured_runs():
    content = json.loads((BENCHMARKS / "estimates.json").read_text())
    rows = yaml.safe_load((ROOT / "pipeline" / "planning" / "rates.yaml").read_text())["rates"]
    fitted = [
        json.loads(line.removeprefix("  - "))
        for device in ("H100", "H200", "CPU")
        for line in estimates.fitted(content, device)
    ]
    assert [row for row in fitted if row not in rows] == []
    assert len(fitted) >= 21


def test_the_front_page_quotes_the_measured_tables():
    alone, saturated = re.findall(r"(\d\.\d\d) times as many", README)
    assert f"| queries per dollar, one at a time | {alone} |" in MEASURED
    assert f"| queries per second at saturation | {saturated} |" in MEASURED
    table = re.findall(r"^(?:trial|smollm2_135m)/?.*", README, re.MULTILINE)
    assert len(table) == 5
    assert set(table) < set(MEASURED.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_place_that_a_page_names_is_there(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`([a-z._][\w./]*(?:\.py|\.yaml|/))`", text)
    assert [name for name in named if not any((near / name).exists() for near in (ROOT, page.parent))] == []


def test_the_newest_release_of_the_changelog_is_this_one():
    newest = re.search(r"^## (\S+)", (ROOT / ".github" / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.dear
@pytest.mark.skipif(not (HUB / "allenai" / "ai2_arc").is_dir(), reason="QUANTSWEEP_DATA names no mirror of data sets")
@pytest.mark.parametrize(
    ("page", "arguments"),
    [("README.md", ["+sweep=mine"]), ("conf/README.md", ["+sweep=mine", "gpu=l40s"])],
    ids=["front page", "conf"],
)
def test_the_examples_make_a_plan(page: str, arguments: list[str], tmp_path: Path, monkeypatch, capfd):
    write_examples((ROOT / page).read_text(), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["quantsweep", "--config-dir=DIR", *arguments, f"data.mirror={HUB}", "mode=plan"])
    code = main()
    printed = capfd.readouterr()
    assert (code, printed.err) == (0, "")
    assert "3 trials" in printed.out
    for trial in ("mine/bf16", "mine/w8a8_fp", "mine/w4a16_g64"):
        assert re.search(rf"^{trial} ", printed.out, re.MULTILINE)


def write_examples(text: str, out: Path) -> None:
    """The files that a page shows after ``# DIR/...yaml``, and a model where its example says that one is."""
    for path, content in re.findall(r"^# (DIR/\S+\.yaml).*?\n(.*?)(?=^# DIR/|^```)", text, re.DOTALL | re.MULTILINE):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(content.replace("/models/mine", str(out / "model")))
    write_model(out / "model", LLAMA | {"max_position_embeddings": 4096})
