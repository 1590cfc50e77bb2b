"""The study's performance half on one GPU that nothing else reaches: a model's shape, four formats, seven workloads.

    python -m tests.benchmarks.profile --out DIR [--seconds 540] [OVERRIDE ...]
    python -m tests.benchmarks.profile --table tests/benchmarks/profile_h100.parquet

Runs ``+sweep=profile_llama31_8b`` without Ray and MLflow until it is done or the seconds are over, and leaves in DIR:
``store.tar.gz`` (what a later call goes on with, on this machine or another), the report, its points as Parquet and the
log.  Every point is kept the moment it is done; the same command again measures what is missing.  ``--table`` prints
such points as the README beside it shows them.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

SWEEP = "profile_llama31_8b"
LAST_POINT_S = 45.0  # what is in flight may still end
GRACE_S = 20.0


def main() -> int:
    """Unpack, measure, pack; the pipeline's exit code, 130 when time ran out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path)
    what.add_argument("--table", type=Path)
    parser.add_argument("--root", type=Path, default=Path("results/benchmark_profile"))
    parser.add_argument("--resume", type=Path, help="store.tar.gz of an earlier call; DIR's own if not given")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--sweep", default=SWEEP)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return 0
    started = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    _unpack(options.resume or options.out / "store.tar.gz", options.root)
    command = [sys.executable, "-m", "pipeline", f"+sweep={options.sweep}", "cluster=inline", "tracking=off"]
    command += [f"store.root={options.root / 'store'}", *options.overrides]
    code = _run(command, options.out / "run.log", options.seconds)
    _pack(options.root, options.out)
    print((options.out / "run.log").read_text(errors="replace")[-9000:])
    print(f"exit {code} after {time.monotonic() - started:.0f} s")
    return code


def _run(command: list[str], log: Path, seconds: float) -> int:
    """Let it run; one interrupt shortly before the end lets the open point finish, a second ends it."""
    with log.open("a") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        for patience_s in (max(seconds - LAST_POINT_S - GRACE_S, 1.0), LAST_POINT_S, GRACE_S):
            try:
                return process.wait(patience_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
        process.kill()
        return process.wait()


def _unpack(archive: Path, root: Path) -> None:
    if archive.exists() and not (root / "store").exists():
        root.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter="data")


def _pack(root: Path, out: Path) -> None:
    """Everything but what planning remembers; then the newest report beside it."""
    store = root / "store"
    partial = out / "store.tar.gz.partial"
    with tarfile.open(partial, "w:gz") as tar:
        for path in sorted(store.glob("*")):
            if path.name != "cache":
                tar.add(path, f"store/{path.name}")
    partial.replace(out / "store.tar.gz")
    reports = sorted((store / "report").glob("*/report.html"), key=lambda path: path.stat().st_mtime)
    if reports:
        for name in ("report.html", "report.md", "serving.parquet"):
            shutil.copyfile(reports[-1].parent / name, out / name)


def table(points: Path) -> str:
    """The points of a ``serving.parquet`` in Markdown: a row for each workload and format, both modes side by side."""
    import pyarrow.parquet as pq

    by_place: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for point in pq.read_table(points).to_pylist():
        by_place.setdefault((point["workload"], point["recipe"]), {})[point["mode"]] = point
    workloads = list(dict.fromkeys(workload for workload, _ in by_place))
    both = {place: modes for place, modes in by_place.items() if {"synchronous", "throughput"} <= modes.keys()}
    lines = [_line(modes) for _, modes in sorted(both.items(), key=lambda item: workloads.index(item[0][0]))]
    return "\n".join([f"| {' | '.join(_COLUMNS)} |", "|---|---|" + "--:|" * (len(_COLUMNS) - 3) + "---|", *lines])


_COLUMNS = [
    *("workload: tokens in / out", "format", "one query, s", "first token, ms", "of the roofline", "queries", "spread"),
    *("queries/s at saturation", "of the roofline", "queries", "spread", "engine alone", "GPU after", "valid"),
]


def _line(modes: dict[str, dict[str, Any]]) -> str:
    alone, full = modes["synchronous"], modes["throughput"]
    reasons = [*alone["reasons"], *full["reasons"]]
    cells = [
        f"{alone['workload']}: {alone['prompt_tokens']} / {alone['output_tokens']}",
        alone["recipe"],
        _digits(alone["latency_s_median"]),
        _digits(alone["ttft_ms_median"]),
        *_doubts(alone),
        _digits(full["requests_per_s"]),
        *_doubts(full),
        _digits(full["direct_requests_per_s"]),
        f"{full['sm_clock_mhz']} MHz, {full['temperature_c']} °C",
        "; ".join(reasons) or "yes",
    ]
    return f"| {' | '.join(cells)} |"


def _doubts(point: dict[str, Any]) -> list[str]:
    num_failed = f" ({point['num_failed']} failed)" if point["num_failed"] else ""
    return [_percent(point["roofline_share"], 0), f"{point['num_requests']}{num_failed}", _percent(point["spread"], 1)]


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:#.3g}".rstrip(".")


def _percent(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


if __name__ == "__main__":
    sys.exit(main())
