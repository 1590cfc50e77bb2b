"""What a sweep took: only what manifests say, and shares of a GPU's time that count no second twice."""

from pathlib import Path

import pytest

from pipeline.planning.plan import Plan
from pipeline.results.spent import costs_of
from pipeline.steps.step import Step
from pipeline.store.store import Store
from stages.report.config import CostsConfig
from tests.pipeline.fakes import note

FIRST, SECOND = {"index": 0, "uuid": "GPU-a"}, {"index": 1, "uuid": "GPU-b"}
H100 = "NVIDIA H100 80GB HBM3, 570.1"


def publish(store: Store, step: Step, start: float, end: float, stage_s: float | None = None, **said: object) -> None:
    with store.draft(step) as draft:
        times = {"run_id": "one", "host": "node", "started": start, "ended": end}
        draft.publish({}, {**times, "stage_s": end - start if stage_s is None else stage_s, "gpus": [H100], **said})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def costs(store: Store, *steps: Step) -> CostsConfig | None:
    plan = Plan("test", {}, {step.ref: step for step in steps})
    store.missing(steps)
    return costs_of(plan, store)


def held(*gpus: dict[str, object]) -> dict[str, object]:
    return {"num_gpus": len(gpus), "held_gpus": list(gpus)}


def test_a_gpu_s_shares_are_of_its_run_and_count_no_second_twice(store: Store) -> None:
    steps = [note(text) for text in "abcd"]
    publish(store, steps[0], 0, 40, stage_s=30, **held(FIRST))
    publish(store, steps[1], 20, 60, **held(FIRST))  # a fraction of the same GPU, beside it
    publish(store, steps[2], 60, 100, **held(SECOND))
    publish(store, steps[3], 0, 500, num_gpus=0, held_gpus=[])
    found = costs(store, *steps)
    assert found is not None
    first, second = found.gpus
    assert (first.gpu, first.product, first.num_steps, first.run_s) == ("0", H100, 2, 100)
    assert (first.held, first.computing) == (0.6, 0.5)
    assert (second.gpu, second.product, second.held) == ("1", None, 0.4)


def test_time_between_two_runs_is_of_neither(store: Store) -> None:
    steps = [note(text) for text in "ab"]
    publish(store, steps[0], 0, 10, **held(FIRST))
    publish(store, steps[1], 1000, 1030, **held(FIRST), run_id="two")
    found = costs(store, *steps)
    assert found is not None
    assert [(row.run_s, row.held) for row in found.gpus] == [(40, 1.0)]


def test_expected_stands_beside_what_those_steps_took(store: Store) -> None:
    steps = [note(text) for text in "abc"]
    publish(store, steps[0], 0, 36, expected_s=30.0, **held(FIRST))
    publish(store, steps[1], 36, 72, expected_s=40.0, **held(FIRST, SECOND))
    publish(store, steps[2], 72, 100, expected_s=None, **held(FIRST))
    found = costs(store, *steps)
    assert found is not None
    (row,) = found.stages
    assert (row.num_steps, row.seconds) == (3, 100)
    assert row.gpu_hours == pytest.approx((36 + 72 + 28) / 3600, abs=1e-4)
    assert (row.num_expected, row.expected_s, row.expected_took_s) == (2, 70, 72)


def test_what_older_artifacts_do_not_say_is_not_known(store: Store) -> None:
    old = note("old")
    publish(store, old, 0, 10)
    found = costs(store, old)
    assert found is not None
    (row,) = found.stages
    assert (row.seconds, row.gpu_hours, row.expected_s, found.gpus) == (10, None, None, [])
    silent = note("silent")
    with store.draft(silent) as draft:
        draft.publish({}, {})
    assert costs(store, silent) is None
