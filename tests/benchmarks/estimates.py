"""What runs took beside what the table of rates, ``pipeline/planning/rates.yaml``, says of their steps.

    python -m tests.benchmarks.estimates "NAME" [--fit] +sweep=NAME store.root=STORE gpu=h100 ...

adds a run, by what its store says of it, to ``estimates.json`` and prints the table; ``--fit`` says that the rates were
taken from this very run.  The store's own corrections are not in it: what is compared is the table.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config.command_line import parse
from pipeline.config.composition import composition
from pipeline.config.sweep import expand, shared_config
from pipeline.planning.devices import compute_device
from pipeline.planning.estimate import Estimator
from pipeline.planning.facts import resolve
from pipeline.planning.make_plan import make_plan
from pipeline.planning.plan import Plan
from pipeline.planning.rates import Rates, Work, measured_rates
from pipeline.steps.step import StepRef
from pipeline.store.store import Store
from pipeline.store.timing import Timing

KEPT = Path(__file__).parent / "estimates.json"
COLUMNS = ("start", "texts", "choices", "quantize", "gate")
MISSING = "–"


def collect(plan: Plan, devices: Mapping[str, str | None], timings: Mapping[StepRef, Timing]) -> list[dict[str, Any]]:
    """Of the steps on the models' device the work and the seconds of each, those alike together."""
    estimator = Estimator(plan, devices, {})
    found: dict[str, dict[str, Any]] = {}
    for ref, timing in timings.items():
        step = plan.steps[ref]
        for work, seconds in estimator.parts(step, timing):
            if work.device:
                row = {"work": _brief(work), "num_gpus": step.resources.num_gpus}
                same = found.setdefault(json.dumps(row, sort_keys=True), {**row, "seconds": []})
                same["seconds"].append(round(seconds, 2))
    return list(found.values())


def _brief(work: Work) -> dict[str, Any]:
    """What is not as in any work."""
    plain = asdict(Work(""))
    said = {name: value for name, value in asdict(work).items() if value != plain[name]}
    return {**said, "amounts": {name: amount for name, amount in work.amounts.items() if amount}}


def table(content: Mapping[str, Any], rates: Rates | None = None) -> str:
    """A row a run: hours of its devices as measured and as the table says, and their ratio by kind of work."""
    heads = ("run", "the rates are", "hours", "by the table", "measured / by the table", *COLUMNS, "no rate for")
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'--:|' * (3 + len(COLUMNS))}---|"]
    lines += [f"| {' | '.join(_cells(run, rates or measured_rates()))} |" for run in content["runs"]]
    return "\n".join(lines)


def _cells(run: Mapping[str, Any], rates: Rates) -> list[str]:
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    unknown: dict[str, int] = defaultdict(int)
    for row in run["steps"]:
        work, weight = Work(**row["work"]), row["num_gpus"] or 1
        rate = rates.nearest(work)
        predicted_s = rate.seconds(work) if rate is not None and rate.is_of_device(work.device) else None
        if predicted_s is None:
            unknown[work.stage] += len(row["seconds"])
            continue
        pairs[_column(work)] += [(weight * seconds, weight * predicted_s) for seconds in row["seconds"]]
    every = [pair for found in pairs.values() for pair in found]
    measured_s, predicted_s = (sum(side) for side in zip(*every, strict=True))
    return [
        run["name"],
        "of this run" if run["is_fit"] else "of others",
        f"{measured_s / 3600:.4f}",
        f"{predicted_s / 3600:.4f}",
        f"{measured_s / predicted_s:.2f}",
        *(_ratio(pairs.get(column, ())) for column in COLUMNS),
        ", ".join(f"{number} × {stage}" for stage, number in unknown.items()) or MISSING,
    ]


def _column(work: Work) -> str:
    return work.kind if work.stage == "evaluate" and work.kind else work.stage


def _ratio(pairs: Iterable[tuple[float, float]]) -> str:
    pairs = list(pairs)
    return f"{sum(one for one, _ in pairs) / sum(other for _, other in pairs):.2f}" if pairs else MISSING


def add(name: str, is_fit: bool, steps: Sequence[Mapping[str, Any]]) -> None:
    """Keep a run, in the place of one of the same name."""
    content = json.loads(KEPT.read_text()) if KEPT.exists() else {"runs": []}
    runs = {run["name"]: run for run in content["runs"]}
    runs[name] = {"name": name, "is_fit": is_fit, "steps": list(steps)}
    KEPT.write_text(_lines({"runs": list(runs.values())}))


def _lines(content: Mapping[str, Any]) -> str:
    """JSON with a line for each kind of step, so that a change can be read."""
    runs = []
    for run in content["runs"]:
        steps = ",\n  ".join(json.dumps(step) for step in run["steps"])
        head = f'"name": {json.dumps(run["name"])}, "is_fit": {json.dumps(run["is_fit"])}'
        runs.append(f'{{{head}, "steps": [\n  {steps}\n]}}')
    return f'{{"runs": [\n{", ".join(runs)}\n]}}\n'


def main() -> None:
    """Plan as the command line does, and look what of the plan is in its store."""
    name, *arguments = sys.argv[1:]
    is_fit = "--fit" in arguments
    command = parse([argument for argument in arguments if argument != "--fit"])
    with composition(command) as composed:
        config = shared_config(composed, command.overrides)
        trials = expand(command.overrides, config)
        plan = make_plan(config.sweep.name, trials, resolve(trials, None))
    store = Store(config.store.root)
    store.missing(plan.steps.values())
    devices = {trial.name: compute_device(trial.config) for trial in trials}
    add(name, is_fit, collect(plan, devices, store.timings(plan.steps)))
    print(table(json.loads(KEPT.read_text())))


if __name__ == "__main__":
    main()
