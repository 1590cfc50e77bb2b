"""Compose, expand, plan, run.

python -m pipeline +sweep=smoke                 # the whole path on a CPU
python -m pipeline +sweep=llama31 mode=plan     # what a cluster would do
python -m pipeline --config-dir=DIR +sweep=mine # a sweep of one's own
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from pipeline.config.bad_input import check_nothing_is_blank, describe
from pipeline.config.schema import Config, register
from pipeline.config.sweep import expand, shared_config
from pipeline.context import INTERRUPTED, SUCCESS, USER_ERROR, PlannedSweep
from pipeline.modes import mode_named
from pipeline.planning.facts import resolve
from pipeline.planning.make_plan import make_plan
from pipeline.planning.memory import check_gpu_memory
from pipeline.planning.plan import Plan
from pipeline.results.resubmission import check_usage, with_overrides_of_file
from pipeline.store.store import Store
from pipeline.usage import answer
from stages.errors import ExplainedError

MIN_WIDTH = 200


def execute(config: Config, overrides: Sequence[str]) -> int:
    """From a composed config to an exit code."""
    mode = mode_named(config.mode)
    check_nothing_is_blank(config)
    check_usage(config.mode, config.failures)
    store = Store(config.store.root, Path(config.store.cache))

    def planned() -> Plan:
        trials = expand(overrides, config)
        for trial in trials:
            check_nothing_is_blank(trial.config)
        plan = make_plan(config.sweep.name, trials, resolve(trials, store.local / "cache"))
        check_gpu_memory(plan)
        return plan

    return mode(PlannedSweep(planned, config, store, _console(), overrides))


def _console() -> Console:
    """Wide enough that no number is cut: a narrow terminal folds the lines."""
    return Console(width=max(Console().width, MIN_WIDTH))


def main() -> int:
    """The command line; returns the exit code."""
    if (page := answer(sys.argv[1:])) is not None:
        print(page)
        return SUCCESS
    register()
    # Hydra's own handler prints tracebacks and multi-line lists; errors are ours to word.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    ended: list[int | BaseException] = []

    @hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
    def compose_and_execute(composed: DictConfig) -> None:
        # Nothing is raised through Hydra, which would print a preamble of its own.
        try:
            overrides = list(HydraConfig.get().overrides.task)
            ended.append(execute(shared_config(composed, overrides), overrides))
        except BaseException as error:
            ended.append(error)

    try:
        sys.argv[1:] = with_overrides_of_file(sys.argv[1:])
        compose_and_execute()
        for end in ended:
            if isinstance(end, BaseException):
                raise end
            return end
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        message = str(error) if isinstance(error, ExplainedError) else describe(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return USER_ERROR
    return SUCCESS  # Hydra answered by itself, as it does to --cfg job


if __name__ == "__main__":
    sys.exit(main())
