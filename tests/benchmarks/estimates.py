"""What runs took beside what the table of rates, ``pipeline/planning/rates.yaml``, says of their steps.

    python -m tests.benchmarks.estimates "NAME" [--fit] +sweep=NAME store.root=STORE gpu=h100 ...

adds a run, by what its store says of it, to ``estimates.json`` and prints the table; ``--fit`` says that the rates are
taken from this very run.  The store's own corrections are not in it: what is compared is the table.  Without arguments
it prints the rows for ``rates.yaml`` that fit the runs so marked best: no part of one is negative, and work that is
alike counts by how far its mean is off, relatively.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.config.command_line import parse
from pipeline.config.composition import composition
from pipeline.config.sweep import expand, shared_config
from pipeline.planning.devices import compute_device
from pipeline.planning.estimate import Estimator
from pipeline.planning.facts import resolve
from pipeline.planning.make_plan import make_plan
from pipeline.planning.plan import Plan
from pipeline.planning.rates import CPU, Rates, Work, measured_rates
from pipeline.steps.step import StepRef
from pipeline.store.store import Store
from pipeline.store.timing import Timing

KEPT = Path(__file__).parent / "estimates.json"
COLUMNS = ("start", "texts", "choices", "quantize", "gate")
# Of each row its stage, kind and tasks, and which of its parts can be told apart by runs of two sizes.
ROWS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("answer", "start", (), ("fixed_s", "sized_s")),
    ("answer", "exchange", (), ("fixed_s", "sized_s")),
    ("answer", "texts", (), ("fixed_s", "each output_tokens", "sized_s", "sized_each output_tokens")),
    ("answer", "choices", ("hellaswag*",), ("each documents", "sized_each documents")),
    ("answer", "choices", (), ("fixed_s", "each documents", "sized_s", "sized_each documents")),
    ("quantize", "rtn", (), ("fixed_s", "sized_s")),
    ("quantize", "gptq", (), ("fixed_s", "sized_s", "sized_each calibration_tokens")),
    ("observe", "", (), ("fixed_s", "sized_s")),
    ("gate", "", (), ("fixed_s", "sized_s")),
    ("drift", "", (), ("fixed_s", "sized_s")),
)
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
    return work.kind if work.stage == "answer" and work.kind else work.stage


def _ratio(pairs: Iterable[tuple[float, float]]) -> str:
    pairs = list(pairs)
    return f"{sum(one for one, _ in pairs) / sum(other for _, other in pairs):.2f}" if pairs else MISSING


def fitted(content: Mapping[str, Any], device: str) -> list[str]:
    """Rows for ``rates.yaml``, by the runs on a device that rates are taken from."""
    steps = [step for run in content["runs"] if run["is_fit"] for step in run["steps"]]
    known = [(Work(**step["work"]), seconds) for step in steps for seconds in step["seconds"]]
    known = [(work, seconds) for work, seconds in known if work.device == device]
    size = max((work.num_parameters or 0 for work, _ in known), default=0)
    lines = []
    for stage, kind, tasks, parts in ROWS:
        own = [pair for pair in known if (pair[0].stage, pair[0].kind) == (stage, kind) and _is_row_of(pair[0], tasks)]
        if own:
            row = {"stage": stage, **({"kind": kind} if kind else {}), **({"tasks": list(tasks)} if tasks else {})}
            row |= {"device": device, "num_parameters": size, **_parts(own, _told_apart(own, parts), size)}
            lines.append(f"  - {json.dumps({'source': device.lower(), **row})}")
    return lines


def _told_apart(own: Sequence[tuple[Work, float]], parts: Sequence[str]) -> list[str]:
    """Of models of one size, what grows with them cannot be told from what does not: all is taken to grow."""
    if len({work.num_parameters for work, _ in own}) > 1 or own[0][0].kind == "start":
        return list(parts)
    return [part for part in parts if part.startswith("sized")]


def _is_row_of(work: Work, tasks: Sequence[str]) -> bool:
    special = [pattern for _, kind, patterns, _ in ROWS for pattern in patterns if kind == work.kind]
    return any(fnmatchcase(work.task, pattern) for pattern in tasks or special) == bool(tasks)


def _parts(own: Sequence[tuple[Work, float]], parts: Sequence[str], size: int) -> dict[str, Any]:
    """Seconds of each part: not negative, with the least sum of squares of relative errors."""
    from scipy.optimize import nnls

    alike: dict[str, list[tuple[Work, float]]] = defaultdict(list)
    for work, seconds in own:
        alike[json.dumps([work.num_parameters, work.num_ranks, work.amounts], sort_keys=True)].append((work, seconds))
    means = [(pairs[0][0], fmean(seconds for _, seconds in pairs)) for pairs in alike.values()]
    rows = [[_amount(work, part, size) / seconds for part in parts] for work, seconds in means]
    found: dict[str, Any] = {}
    for part, value in zip(parts, nnls(rows, [1.0] * len(rows))[0], strict=True):
        name, _, amount = part.partition(" ")
        if value:
            found |= {name: {amount: _rounded(value)} if amount else _rounded(value)}
    return found


def _amount(work: Work, part: str, size: int) -> float:
    name, _, amount = part.partition(" ")
    share = (work.num_parameters or size) / size / work.num_ranks if name.startswith("sized") else 1.0
    return share * (work.amounts.get(amount, 0.0) if amount else 1.0)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


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
    if not sys.argv[1:]:
        content = json.loads(KEPT.read_text())
        print("\n".join(line for device in ("H100", "H200", CPU) for line in fitted(content, device)))
        return
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
