"""Checkpoints of one family follow each other in one open session; each answers, fails and is resumed for itself."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.execution import ClusterConfig, RunnerKind
from pipeline.errors import FailureClass
from pipeline.running.batches import Batch, batches, in_families
from pipeline.running.outcome import RunContext, Status
from pipeline.running.runner import Outcomes, make_runner
from pipeline.steps.stages import ANSWER
from pipeline.steps.step import Resources, Step
from pipeline.store.ledger import Ledger
from pipeline.store.store import Address, Store, open_storage
from tests.pipeline.fakes import note, serving
from tests.pipeline.planning.test_plan import planned

ONE_GPU = Resources(num_cpus=1, num_gpus=1)


def run(root: Path, steps: Sequence[Step], run_id: str = "run") -> Outcomes:
    context = RunContext(Address(root), run_id, max_attempts=2)
    runner = make_runner(ClusterConfig(runner=RunnerKind.inline))
    return runner.run(batches(Store(root).missing(steps)), context, lambda _: None)


def shards(checkpoint: Step, name: str, scratch: Path, **fields: Any) -> list[Step]:
    options = {"family": "w4a16", "scratch": str(scratch)} | fields
    return [serving(f"{name}{index}", checkpoint, **options) for index in range(2)]


def marks(scratch: Path) -> list[str]:
    return (scratch / "sessions").read_text().splitlines()


def read(root: Path, step: Step) -> str:
    return (Store(root).path(step.ref) / "note.txt").read_text()


def test_legs_of_a_family_are_one_batch_behind_all_that_they_need(tmp_path: Path) -> None:
    first, second, third, other = note("a"), note("b"), note("c"), note("d")
    gate = note("gate", second)
    legs = [*shards(first, "a", tmp_path), *shards(second, "b", tmp_path, after=(gate,))]
    strangers = [*shards(third, "s", tmp_path, family=""), *shards(other, "c", tmp_path, family="w8a8")]
    steps = [first, third, *legs[:2], other, *strangers, second, gate, *legs[2:]]
    alone, grouped = batches(steps), in_families(batches(steps))
    assert sorted(batch.label for batch in alone if batch.family) == ["serve:a0", "serve:b0", "serve:c0"]
    [family] = [batch for batch in grouped if legs[0] in batch.steps]
    assert list(family.steps) == legs
    assert set(family.upstream) == {first.ref, second.ref, gate.ref}
    assert list(family.leg(legs[3])) == legs[2:]
    assert len(grouped) == len(alone) - 1
    placed = {step.ref: index for index, batch in enumerate(grouped) for step in batch.steps}
    assert all(placed[ref] < placed[step.ref] for step in steps for ref in step.upstream)


def test_a_session_is_opened_once_for_a_family(tmp_path: Path) -> None:
    root, checkpoints = tmp_path / "store", [note(name) for name in "abc"]
    legs = [shards(checkpoint, str(index), tmp_path) for index, checkpoint in enumerate(checkpoints)]
    outcomes = run(root, [*checkpoints, *legs[0], *legs[1], *legs[2]])
    assert {outcome.status for outcome in outcomes.values()} == {Status.succeeded}
    assert marks(tmp_path) == ["open", "exchange", "exchange", "close"]
    assert [read(root, leg[1]) for leg in legs] == ["a01", "b11", "c21"]
    manifests = [Store(root).manifest(leg[0].ref) for leg in legs]
    first, *noted = [manifest["provenance"].get("session") for manifest in manifests if manifest]
    assert first is None
    assert [each["exchanges"] for each in noted] == [1, 2]
    assert {each["opened_with"] for each in noted} == {checkpoints[0].ref.short}
    assert all(0 <= each["exchange_s"] < 10 for each in noted)


def test_a_checkpoint_that_the_open_session_refuses_gets_one_of_its_own(tmp_path: Path) -> None:
    root, checkpoints = tmp_path / "store", [note(name) for name in ("a", "odd", "c")]
    legs = [shards(checkpoint, str(index), tmp_path) for index, checkpoint in enumerate(checkpoints)]
    outcomes = run(root, [*checkpoints, *legs[0], *legs[1], *legs[2]])
    assert {outcome.status for outcome in outcomes.values()} == {Status.succeeded}
    assert marks(tmp_path) == ["open", "exchange", "close", "open", "exchange", "close"]
    assert read(root, legs[1][0]) == "odd10"
    manifest = Store(root).manifest(legs[1][0].ref)
    assert manifest and "session" not in manifest["provenance"]
    log = next((root / "logs" / "serve").glob("10-*")).read_text()
    assert "a new session, since the open one took no other checkpoint: it is odd" in log


def test_a_leg_that_fails_stops_no_other(tmp_path: Path) -> None:
    root, scratch = tmp_path / "store", tmp_path
    sound, broken, unopened, refused = (
        note("a"), note("broken", behaviour="data_error"), note("c"), note("d")
    )  # fmt: skip
    gate = note("gate", refused, behaviour="data_error")
    legs = [
        shards(broken, "b", scratch),
        shards(unopened, "c", scratch, behaviour="no_session"),
        shards(refused, "d", scratch, after=(gate,)),
        shards(sound, "a", scratch),
    ]
    outcomes = run(root, [broken, unopened, refused, sound, gate, *(step for leg in legs for step in leg)])
    found = [{outcomes[step.ref].status for step in leg} for leg in legs]
    assert found == [{Status.skipped}, {Status.failed}, {Status.skipped}, {Status.succeeded}]
    assert {outcomes[step.ref].failure_class for step in legs[1]} == {FailureClass.engine}
    assert marks(tmp_path) == ["open", "open", "open", "close"], "two tries of one, and one for what is sound"


@pytest.mark.dear
def test_on_a_gpu_a_session_of_its_own_has_a_process_of_its_own(tmp_path: Path) -> None:
    """What a closed engine leaves on a GPU would be in the way of the next one."""
    root, checkpoints = tmp_path / "store", [note(name) for name in ("a", "odd", "c")]
    legs = [
        shards(checkpoint, str(index), tmp_path, resources=ONE_GPU, behaviour="tell_pid")
        for index, checkpoint in enumerate(checkpoints)
    ]
    outcomes = run(root, [*checkpoints, *legs[0], *legs[1], *legs[2]])
    assert {outcome.status for outcome in outcomes.values()} == {Status.succeeded}
    assert marks(tmp_path) == ["open", "exchange", "close", "open", "exchange", "close"]
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 6
    assert pids[0] == pids[1] != pids[2] == pids[3] == pids[4] == pids[5]
    assert str(os.getpid()) not in pids
    history = Ledger(open_storage(root)).history(legs[1][0].ref, "run")
    assert history.deaths == () and history.num_started == 1, "it says nothing against the step"


@pytest.mark.dear
def test_on_ray_every_gpu_takes_its_part_of_a_family(tmp_path: Path) -> None:
    """Four checkpoints on two GPUs that Ray only counts, one of them refused by the session that it would follow in."""
    from ray.cluster_utils import Cluster

    root, checkpoints = tmp_path / "store", [note(name) for name in ("a", "odd", "c", "d")]
    run(root, checkpoints)
    legs = [
        shards(checkpoint, str(index), tmp_path, resources=ONE_GPU, behaviour="tell_pid")
        for index, checkpoint in enumerate(checkpoints)
    ]
    node = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2, "include_dashboard": False})
    try:
        cluster = ClusterConfig(runner=RunnerKind.ray, address=node.address)
        steps = [step for leg in legs for step in leg]
        outcomes = make_runner(cluster).run(batches(steps), RunContext(Address(root), "ray", 2), lambda _: None)
    finally:
        node.shutdown()
    assert {outcome.status for outcome in outcomes.values()} == {Status.succeeded}
    assert sorted(marks(tmp_path)) == ["close"] * 3 + ["exchange"] * 2 + ["open"] * 3
    assert [read(root, leg[0]) for leg in legs] == ["a00", "odd10", "c20", "d30"]
    manifests = [Store(root).manifest(leg[0].ref) for leg in legs]
    assert [bool(manifest and "session" in manifest["provenance"]) for manifest in manifests] == [0, 0, 0, 1]
    assert len(set((tmp_path / "pids").read_text().split())) == 3, "the refused one has a process of its own"
    assert Ledger(open_storage(root)).history(legs[1][0].ref, "ray").deaths == ()


@pytest.mark.dear
def test_a_death_between_legs_costs_what_was_not_published(tmp_path: Path) -> None:
    root, checkpoints = tmp_path / "store", [note(name) for name in "abc"]
    first, last = (shards(checkpoints[index], str(index), tmp_path, resources=ONE_GPU) for index in (0, 2))
    dying = shards(checkpoints[1], "1", tmp_path, resources=ONE_GPU, behaviour="die_once")[:1]
    outcomes = run(root, [*checkpoints, *first, *dying, *last])
    assert {outcome.status for outcome in outcomes.values()} == {Status.succeeded}
    assert (tmp_path / "calls").read_text().split() == ["00", "01", "10", "10", "20", "21"]
    assert marks(tmp_path) == ["open", "exchange", "open", "exchange", "close"]
    assert [read(root, step) for step in (*first, *dying, *last)] == ["a00", "a01", "b10", "c20", "c21"]


@pytest.mark.dear
def test_a_checkpoint_that_kills_its_engines_is_set_aside_and_the_next_is_served(tmp_path: Path) -> None:
    root, checkpoints = tmp_path / "store", [note(name) for name in "abc"]
    legs = [
        shards(checkpoint, name, tmp_path, resources=ONE_GPU, behaviour=behaviour)
        for name, checkpoint, behaviour in zip("abc", checkpoints, ("write", "die", "write"), strict=True)
    ]
    outcomes = run(root, [*checkpoints, *legs[0], *legs[1], *legs[2]])
    assert [outcomes[leg[0].ref].status for leg in legs] == [Status.succeeded, Status.failed, Status.succeeded]
    assert {outcomes[step.ref].failure_class for step in legs[1]} == {FailureClass.crash}
    assert (tmp_path / "calls").read_text().split().count("b1") == 1, "a session that publishes nothing"


@pytest.mark.dear
def test_the_recipes_of_a_grid_are_grouped_by_format_and_no_fingerprint_knows(tmp_path: Path) -> None:
    adjust = "++sweep.adjust=[{when: {recipe: w4a16_int}, set: ['recipe.group_size=64']}]"  # GPTQ, which calibrates
    grid = ["+sweep=smoke", "++sweep.axes={recipe: [w4a16_int, w8a8_int], calibration.seed: [0, 1]}", adjust]
    plan = planned(tmp_path, *grid)
    alone = planned(tmp_path, *grid, "engine.exchange_weights=false")
    assert plan.steps.keys() == alone.steps.keys()
    grouped, single = (in_families(batches(each.steps.values())) for each in (plan, alone))
    legs = [[len({step.inputs["checkpoint"] for step in batch.steps}) for batch in each if is_evaluation(batch)]
            for each in (grouped, single)]  # fmt: skip
    assert sorted(legs[0]) == [1, 2, 2], "the base, and two checkpoints in each format"
    assert sorted(legs[1]) == [1] * 5
    other = planned(tmp_path, "suite=smoke", "recipe=w4a16_int", "++sweep.axes={recipe.group_size: [32, 64]}")
    assert len([batch for batch in in_families(batches(other.steps.values())) if is_evaluation(batch)]) == 3


def is_evaluation(batch: Batch) -> bool:
    return batch.steps[0].stage is ANSWER
