"""Running batches: outcomes are values, finished work is published at once, and a death is no disaster."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.config.execution import ClusterConfig, RunnerKind
from pipeline.errors import FailureClass, UserError
from pipeline.running.batches import batches
from pipeline.running.capture import log_path
from pipeline.running.outcome import RunContext, Status
from pipeline.running.runner import Outcomes, make_runner
from pipeline.running.worker import run_batch
from pipeline.steps.step import Resources, Step, StepRef
from pipeline.store.ledger import Ledger
from pipeline.store.store import Address, Store, open_storage
from tests.pipeline.fakes import note, serving

INLINE = ClusterConfig(runner=RunnerKind.inline)


@pytest.fixture(scope="module")
def on_ray() -> Iterator[ClusterConfig]:
    """A node of two cores."""
    from ray.cluster_utils import Cluster

    node = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield ClusterConfig(runner=RunnerKind.ray, address=node.address)
    node.shutdown()


def run(root: Path, steps: Sequence[Step], cluster: ClusterConfig = INLINE, run_id: str = "run") -> Outcomes:
    missing = Store(root).missing(steps)
    return make_runner(cluster).run(batches(missing), RunContext(Address(root), run_id, max_attempts=2), lambda _: None)


def read(root: Path, step: Step) -> str:
    return (Store(root).path(step.ref) / "note.txt").read_text()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_steps_read_what_their_inputs_published(tmp_path: Path) -> None:
    first = note("a")
    second = note("b", first)
    run(tmp_path, [first, second])
    assert read(tmp_path, second) == "ab"


def test_a_failure_stops_only_what_depends_on_it(tmp_path: Path) -> None:
    broken = note("broken", behaviour="data_error")
    behind = note("behind", broken)
    further = note("further", behind)
    gated = note("gated", after=(broken,))
    free = note("free")
    outcomes = run(tmp_path, [broken, behind, further, gated, free])
    assert outcomes[broken.ref].status is Status.failed
    assert outcomes[broken.ref].failure_class is FailureClass.data
    assert outcomes[broken.ref].message == "the data is odd: look at it"
    for step in (behind, further, gated):
        assert outcomes[step.ref].status is Status.skipped
        assert "the data is odd" in outcomes[step.ref].message
    assert outcomes[free.ref].status is Status.succeeded
    assert read(tmp_path, free) == "free"


def test_an_unforeseen_error_is_a_crash_with_its_traceback_in_the_log(tmp_path: Path) -> None:
    step = note("a", behaviour="bug")
    assert run(tmp_path, [step])[step.ref].failure_class is FailureClass.crash
    assert "nobody thought of this" in log_path(tmp_path, step).read_text()
    assert "Traceback" in log_path(tmp_path, step).read_text()


def test_no_secret_of_a_library_s_error_is_kept(tmp_path: Path) -> None:
    broken = note("a", behaviour="no_login")
    behind = note("b", broken)
    outcomes = run(tmp_path, [broken, behind])
    assert outcomes[broken.ref].message == "ConnectionError: https://***@host/x?token=*** does not answer"
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "sesame" in path.read_text()] == []


def test_what_a_step_prints_goes_to_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    step = note("a")
    run(tmp_path, [step])
    assert "wrote a" in log_path(tmp_path, step).read_text()
    assert "wrote a" not in capfd.readouterr().out


def test_a_stream_that_a_library_kept_reaches_the_log_of_the_step_at_work(tmp_path: Path) -> None:
    first, second = note("a", behaviour="keep_stderr"), note("b", behaviour="use_kept_stderr")
    run(tmp_path, [first, second])
    assert "through the kept stream" in log_path(tmp_path, second).read_text()


def test_a_session_is_opened_once_and_closed(tmp_path: Path) -> None:
    checkpoint = note("weights")
    steps = [serving(text, checkpoint, scratch=str(tmp_path)) for text in "abc"]
    run(tmp_path / "store", [checkpoint, *steps])
    assert lines(tmp_path / "sessions") == ["open", "close"]
    manifest = Store(tmp_path / "store").manifest(steps[2].ref)
    assert manifest is not None
    assert manifest["metrics"]["served"] == 3


def test_a_dead_engine_voids_its_shard_and_is_replaced(tmp_path: Path) -> None:
    """A new engine tries the shard once more, and another one goes on with the next."""
    checkpoint = note("weights")
    behaviours = {"a": "write", "b": "engine_error", "c": "write"}
    steps = [serving(text, checkpoint, behaviour=how, scratch=str(tmp_path)) for text, how in behaviours.items()]
    outcomes = run(tmp_path / "store", [checkpoint, *steps])
    assert [outcomes[step.ref].status for step in steps] == [Status.succeeded, Status.failed, Status.succeeded]
    assert Store(tmp_path / "store").find(steps[1].ref) is None
    assert lines(tmp_path / "sessions").count("open") == 3
    assert lines(tmp_path / "calls") == ["a", "b", "b", "c"]


def test_a_rerun_does_only_what_is_missing(tmp_path: Path) -> None:
    first = note("a", scratch=str(tmp_path))
    second = note("b", first, scratch=str(tmp_path))
    third = note("c", second, scratch=str(tmp_path))
    store = tmp_path / "store"
    run(store, [first, second, third])
    (Store(store).path(second.ref) / "manifest.json").unlink()
    run(store, [first, second, third], run_id="again")
    assert lines(tmp_path / "calls") == ["a", "b", "c", "b"]
    assert run(store, [first, second, third], run_id="third") == {}


def test_a_failed_step_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    run(tmp_path, [note("a", behaviour="bug")])
    assert run(tmp_path, [note("a")], run_id="next")[note("a").ref].status is Status.succeeded


def test_batches_share_sessions_and_come_after_what_they_need() -> None:
    checkpoint, other = note("one"), note("two")
    steps = [checkpoint, serving("a", checkpoint), other, serving("b", checkpoint), serving("c", other)]
    grouped = batches(steps)
    assert [[step.label for step in batch.steps] for batch in grouped] == [["one"], ["two"], ["a", "b"], ["c"]]
    assert grouped[2].upstream == (checkpoint.ref,)


def test_a_batch_comes_after_what_its_later_steps_need() -> None:
    checkpoint, late = note("weights"), note("late")
    first, last = serving("a", checkpoint), serving("b", checkpoint, late)
    assert [batch.steps for batch in batches([checkpoint, first, late, last])][-1] == (first, last)


@pytest.mark.dear
def test_both_runners_do_the_same(tmp_path: Path, on_ray: ClusterConfig) -> None:
    broken, first = note("broken", behaviour="data_error"), note("a")
    steps = [broken, first, note("b", first), note("c", broken)]
    for cluster in (INLINE, on_ray):
        root = tmp_path / cluster.runner.value
        outcomes = run(root, steps, cluster)
        statuses = [outcomes[step.ref].status for step in steps]
        assert statuses == [Status.failed, Status.succeeded, Status.succeeded, Status.skipped]
        assert read(root, steps[2]) == "ab"


@pytest.mark.dear
def test_a_worker_that_dies_is_replaced_and_a_step_that_kills_workers_is_set_aside(
    tmp_path: Path, on_ray: ClusterConfig
) -> None:
    scratch = str(tmp_path)
    unlucky = note("unlucky", behaviour="die_once", scratch=scratch)
    deadly = note("deadly", behaviour="die", scratch=scratch)
    behind, free = note("behind", deadly), note("free", unlucky)
    outcomes = run(tmp_path / "store", [unlucky, deadly, behind, free], on_ray)
    assert outcomes[unlucky.ref].status is Status.succeeded
    assert outcomes[free.ref].status is Status.succeeded
    assert outcomes[deadly.ref].status is Status.failed
    assert outcomes[deadly.ref].failure_class is FailureClass.crash
    assert outcomes[behind.ref].status is Status.skipped
    assert lines(tmp_path / "calls").count("deadly") == 2
    failure = Ledger(open_storage(tmp_path / "store")).last_failure(deadly.ref)
    assert failure is not None
    assert failure.failure_class is FailureClass.crash


@pytest.mark.dear
def test_work_that_no_node_can_hold_is_refused_before_it_starts(tmp_path: Path, on_ray: ClusterConfig) -> None:
    step = note("a", scratch=str(tmp_path), resources=Resources(num_gpus=4))
    with pytest.raises(UserError, match="needs 4 GPUs"):
        run(tmp_path / "store", [step], on_ray)
    assert lines(tmp_path / "calls") == []


def test_a_session_that_never_opens_is_not_tried_for_every_step(tmp_path: Path) -> None:
    root, checkpoint = tmp_path / "store", note("model")
    shards = [serving(f"s{i}", checkpoint, behaviour="no_session", scratch=str(tmp_path)) for i in range(6)]
    outcomes = run(root, [checkpoint, *shards])
    assert lines(tmp_path / "sessions") == ["open"] * 2
    assert {outcomes[shard.ref].failure_class for shard in shards} == {FailureClass.engine}
    assert "not tried" in outcomes[shards[-1].ref].message
    assert "the engine did not start" in outcomes[shards[-1].ref].message
    assert set(Ledger(open_storage(root)).failures(shards)) == {shard.ref for shard in shards}


def test_every_step_behind_a_damaged_input_is_told_what_is_wrong(tmp_path: Path) -> None:
    root, checkpoint = tmp_path / "store", note("model")
    run(root, [checkpoint])
    (Store(root).path(checkpoint.ref) / "note.txt").write_text("lemod")
    shards = [serving(f"s{i}", checkpoint, scratch=str(tmp_path)) for i in range(4)]
    outcomes = run(root, shards, run_id="second")
    assert {outcome.failure_class for outcome in outcomes.values()} == {FailureClass.data}
    assert all("damaged" in outcome.message for outcome in outcomes.values())
    assert all(outcome.status is Status.succeeded for outcome in run(root, [checkpoint, *shards], run_id="3").values())


def test_an_input_that_this_machine_sees_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may go on saying for a minute that a directory does not hold what others put there."""
    first = note("a")
    second = note("b", first)
    run(tmp_path, [first])
    seen, has = iter([False] * 3), Store.has
    monkeypatch.setattr("pipeline.running.inputs.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(Store, "has", lambda self, ref: has(self, ref) and (ref != first.ref or next(seen, True)))
    assert run(tmp_path, [second])[second.ref].status is Status.succeeded
    monkeypatch.setattr("pipeline.running.inputs.APPEARS_WITHIN_S", 0.05)
    lost = note("c", note("never made"))
    outcome = run(tmp_path, [lost])[lost.ref]
    assert outcome.failure_class is FailureClass.data
    assert "is not in the store" in outcome.message


def test_a_store_that_fails_once_costs_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [serving(f"s{i}", note("model"), scratch=str(tmp_path)) for i in range(3)]
    run(tmp_path / "store", [note("model")])
    has, troubles = Store.has, iter([OSError(5, "Input/output error")])

    def has_with_trouble(store: Store, ref: StepRef) -> bool:
        if ref == steps[1].ref and (trouble := next(troubles, None)):
            raise trouble
        return has(store, ref)

    [batch] = batches(steps)
    monkeypatch.setattr(Store, "has", has_with_trouble)
    outcomes = run_batch(batch, RunContext(Address(str(tmp_path / "store")), "run", max_attempts=2), [])
    lost = [outcome.ref for outcome in outcomes if outcome.status is not Status.succeeded]
    assert len(lost) == 1
    assert list(Ledger(open_storage(tmp_path / "store")).failures(steps)) == lost


def test_an_artifact_says_what_was_expected_of_its_step_and_what_it_held(tmp_path: Path) -> None:
    steps = [note("a").expecting(7.5), note("b", resources=Resources(num_gpus=2))]
    for batch in batches(steps):
        run_batch(batch, RunContext(Address(tmp_path), "run", max_attempts=1), [])
    said = [(Store(tmp_path).manifest(step.ref) or {})["provenance"] for step in steps]
    assert [each["expected_s"] for each in said] == [7.5, None]
    assert [each["num_gpus"] for each in said] == [0, 2]
    assert said[0]["held_gpus"] == []
    assert "held_gpus" in said[1]
