"""Whatever of a store is damaged: every mode goes on without it, or names the file and the way out in one line."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import pipeline.__main__ as command_line
from pipeline import driver, modes
from pipeline.config.execution import GcConfig, StoreConfig, Verify
from pipeline.context import PlannedSweep
from pipeline.errors import UserError
from pipeline.results import load, record
from pipeline.store.store import Store
from tests.sweeping import make_sweep
from tests.synthetic import synthetic

pytestmark = pytest.mark.dear
ARGUMENTS = ["+sweep=small", "cluster=inline", "tracking=off", "tasks.a.limit=10", "tasks.b.limit=10"]
Call = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PlannedSweep:
    """A small sweep that has been run, by the command line, with its store."""
    own, found = make_sweep(tmp_path_factory.mktemp("made")), list[PlannedSweep]()
    real = command_line.make_plan

    def mode_named(name: str) -> Callable[[PlannedSweep], int]:
        return lambda sweep: found.append(sweep) or modes.run(sweep)  # type: ignore[func-returns-value]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(own)
        patch.setattr(command_line, "make_plan", lambda *arguments: synthetic(real(*arguments)))
        patch.setattr(command_line, "mode_named", mode_named)
        patch.setattr(driver, "bytes_to_write", lambda *arguments: 0)  # the weights of a plan are not written
        patch.setattr(sys, "argv", ["pipeline", "--config-dir=own", f"store.root={own / 'store'}", *ARGUMENTS])
        assert command_line.main() == 0
    return found[0]


@pytest.fixture
def store(made: PlannedSweep, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.store.local, tmp_path / "store"))


@pytest.fixture
def call(made: PlannedSweep, store: Path) -> Call:
    """What a mode prints of the sweep, in this process."""

    def called(mode: str, verify: Verify = Verify.quick, **failures: str) -> str:
        printed = io.StringIO()
        config = replace(
            made.config,
            store=StoreConfig(verify=verify),
            gc=GcConfig(delete=True),
            failures={**made.config.failures, **failures},
        )
        console = Console(file=printed, width=400)
        code = modes.MODES[mode](PlannedSweep(lambda: made.plan, config, Store(store), console, made.overrides))
        assert code == 0, printed.getvalue()
        return printed.getvalue()

    return called


def first(store: Path, stage: str) -> Path:
    return min((store / stage).glob("[!.]*"))


def table(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("llama31_8b/")]


def test_every_mode_goes_on_without_what_it_can_do_without(store: Path, call: Call, tmp_path: Path) -> None:
    """Manifests that are none, lines that are no events, memories that are wrong."""
    before = table(call("run"))
    bad = [first(store, stage) for stage in ("answer", "compare", "gate", "report")]
    for path, text in zip(bad, ('["x"]', "null", '{"fingerprint": 1}', '{"stage": "rep'), strict=True):
        (path / "manifest.json").write_text(text)
    ledger = store / "ledger" / f"answer-{bad[0].name[-12:]}.jsonl"
    events = ['["x"]', '{"event": "fai', '{"event": "failed"}', '{"event": "started", "run_id": []}']
    unknown = {"event": "failed", "failure_class": "gremlins", "message": "bitten", "run_id": "r", "time": 1.0}
    ledger.write_bytes("\n".join([*events, json.dumps(unknown)]).encode() + b"\n\xff\xfe\n")
    for file in (store / "cache").iterdir():
        remembered = json.loads(file.read_text())
        file.write_text(json.dumps({**remembered, "value": {key: list("xyz") for key in remembered["value"]}}))
    said = f"ledger/{ledger.name} says it failed as 'gremlins', which this version does not know: bitten"
    assert said in call("status", export=str(tmp_path / "failed.json"))
    for mode in ("plan", "why", "gc"):
        call(mode)
    assert all(path.exists() for path in bad), "no manifest proves that they are the store's"
    assert table(call("run")) == before
    assert "gremlins" not in call("status")
    told = call("gc")
    # The report is another one now, since what was made again took another time: nobody moved the old one aside.
    assert (
        len(re.findall(r"^left alone: .*/\.damaged-.* no manifest that proves .* remove it$", told, re.MULTILINE)) == 3
    )


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("small", '{"version": 2, "name": "sma'),
        ("small", "{}"),
        (
            "small",
            '{"version": 2, "name": "small", "plan_fingerprint": "", "trials": [], "steps": [["answer", "1"]]}',
        ),
        ("another", '["x"]'),
    ],
)
def test_a_damaged_record_is_named_by_every_mode_that_needs_it(
    store: Path, call: Call, tmp_path: Path, file: str, text: str
) -> None:
    (store / "sweeps" / f"{file}.json").write_text(text)
    before = sorted(store.glob("*/*/manifest.json"))
    line = rf"sweeps/{file}\.json is damaged: restore it, or remove it and run its sweep again$"
    for mode in ("gc", "run", "resubmit", "status") if file == "small" else ("gc",):
        export = {"export": str(tmp_path / "failed.json")} if mode == "status" else {}
        with pytest.raises(UserError, match=line):
            call(mode, **export)
    assert sorted(store.glob("*/*/manifest.json")) == before


def test_a_report_that_was_changed_is_not_shown(store: Path, call: Call) -> None:
    before = table(call("run"))
    for verify in Verify:
        path = first(store, "report") / "summary.parquet"
        summary = pq.read_table(path)
        raised = pa.array([0.999] * summary.num_rows)
        pq.write_table(summary.set_column(summary.column_names.index("score"), "score", raised), path)
        with pytest.raises(UserError, match=r"its report .* is damaged \(summary.parquet was changed\): run it"):
            load(store, "small").summary()
        printed = call("run", verify)
        assert table(printed) == before
        assert re.search(r"damaged report-\w+: summary.parquet was changed; moved aside", printed)
        assert 0.999 not in load(store, "small").summary()["score"].to_pylist()


def test_what_is_collected_while_a_sweep_begins_is_made_again(
    store: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the driver's look at the store and its record, which protects what it found."""
    save, taken = record.save, first(store, "answer")

    def collected_first(*arguments: object) -> None:
        shutil.rmtree(taken, ignore_errors=True)
        monkeypatch.setattr(record, "save", save)
        save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(record, "save", collected_first)
    call("run")
    assert taken.exists()
