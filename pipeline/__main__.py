"""Compose, expand, plan, run.

python -m pipeline +sweep=smoke                 # the whole path on a CPU
python -m pipeline +sweep=llama31 mode=plan     # what a cluster would do
python -m pipeline --config-dir=DIR +sweep=mine # a sweep of one's own
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import hydra
from rich.console import Console

from pipeline.config.bad_input import check_nothing_is_blank, describe
from pipeline.config.command_line import Command, parse
from pipeline.config.composition import composition, with_own_model
from pipeline.config.schema import Config, register
from pipeline.config.sweep import expand, shared_config
from pipeline.context import FAILURE, INTERRUPTED, SUCCESS, USER_ERROR, PlannedSweep
from pipeline.modes import MAKING, mode_named
from pipeline.planning.endpoints import check_engines
from pipeline.planning.facts import resolve
from pipeline.planning.make_plan import make_plan
from pipeline.planning.memory import check_gpu_memory
from pipeline.planning.plan import Plan
from pipeline.results.resubmission import check_usage, with_overrides_of_file
from pipeline.store.store import Store
from pipeline.usage import answer
from stages.errors import ExplainedError, redacted

MIN_WIDTH = 200


def execute(config: Config, overrides: Sequence[str]) -> int:
    """From a composed config to an exit code."""
    mode = mode_named(config.mode)
    check_nothing_is_blank(config)
    check_usage(config.mode, config.failures)
    store = Store(config.store.root, Path(config.store.cache))
    # What only looks at a store makes none, and so remembers nothing where there is none.
    cache = store.local / "cache" if mode in MAKING or store.local.is_dir() else None

    def planned() -> Plan:
        trials = expand(overrides, config)
        for trial in trials:
            check_nothing_is_blank(trial.config)
        facts = resolve(trials, cache)
        plan = make_plan(config.sweep.name, trials, facts)
        check_engines(plan, facts)
        check_gpu_memory(plan)
        return plan

    return mode(PlannedSweep(planned, config, store, _console(), overrides))


def _console() -> Console:
    """Wide enough that no number is cut: a narrow terminal folds the lines."""
    return Console(width=max(Console().width, MIN_WIDTH))


def main() -> int:
    """The command line; returns the exit code."""
    try:
        if (page := answer(sys.argv[1:])) is not None:
            print(page)
            return SUCCESS
        command = parse(with_overrides_of_file(sys.argv[1:]))
        if command.shown:
            return _shown_by_hydra(command)
        command = with_own_model(command)
        with composition(command) as composed:
            return execute(shared_config(composed, command.overrides), command.overrides)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        message = str(error) if isinstance(error, ExplainedError) else describe(error)
        if message is None:
            print(redacted(traceback.format_exc()), file=sys.stderr)
            return FAILURE
        print(f"error: {redacted(message)}", file=sys.stderr)
        return USER_ERROR


def _shown_by_hydra(command: Command) -> int:
    """Hydra answers ``--cfg job`` and its like by itself."""
    register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its own handler prints tracebacks and lists; errors are ours to word
    own = [f"--config-dir={command.config_dir}"] if command.config_dir else []
    sys.argv[1:] = [*command.overrides, *command.shown, *own]
    hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(lambda composed: None)()
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
