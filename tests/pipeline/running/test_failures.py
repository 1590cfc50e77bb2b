"""Every failure class, injected for real: the right class, the right policy, and the rest of the work is done."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from pipeline.config.execution import ClusterConfig, RunnerKind
from pipeline.errors import FailureClass, classify
from pipeline.running.batches import batches
from pipeline.running.capture import log_path
from pipeline.running.outcome import RunContext, Status
from pipeline.running.runner import Outcomes, make_runner
from pipeline.steps.step import Resources, Step
from pipeline.store.ledger import Ledger
from pipeline.store.store import Address, Store, open_storage
from tests.pipeline.fakes import note, serving

pytestmark = pytest.mark.dear


def run(
    root: Path,
    steps: Sequence[Step],
    kind: RunnerKind = RunnerKind.inline,
    timeout_s: Mapping[str, float] | None = None,
    run_id: str = "run",
) -> Outcomes:
    context = RunContext(Address(root), run_id, max_attempts=2, timeout_s=timeout_s or {})
    runner = make_runner(ClusterConfig(runner=kind, num_cpus=2))
    return runner.run(batches(Store(root).missing(steps)), context, lambda _: None)


def calls(scratch: Path) -> list[str]:
    path = scratch / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_out_of_memory_is_tried_once_more_with_a_smaller_batch(tmp_path: Path) -> None:
    root, scratch = tmp_path / "store", str(tmp_path)
    fits = note("fits", behaviour="large_batches_do_not_fit", scratch=scratch)
    never = note("never", behaviour="no_batch_fits", scratch=scratch)
    smallest = note("smallest", behaviour="no_batch_fits", batch=1, scratch=scratch)
    outcomes = run(root, [fits, never, smallest])
    assert outcomes[fits.ref].status is Status.succeeded
    assert outcomes[never.ref].failure_class is FailureClass.oom
    assert "a batch of 2" in outcomes[never.ref].message
    assert calls(tmp_path) == ["fits", "fits", "never", "never", "smallest"]


def test_an_engine_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    checkpoint = note("weights")
    step = serving("a", checkpoint, behaviour="engine_error_once", scratch=str(tmp_path))
    assert run(tmp_path / "store", [checkpoint, step])[step.ref].status is Status.succeeded


@pytest.mark.parametrize("behaviour", ["data_error", "bug"])
def test_what_would_only_repeat_itself_is_not_retried(tmp_path: Path, behaviour: str) -> None:
    step = note("a", behaviour=behaviour, scratch=str(tmp_path))
    assert run(tmp_path / "store", [step])[step.ref].status is Status.failed
    assert calls(tmp_path) == ["a"]


def test_a_flipped_byte_in_a_checkpoint_never_becomes_a_score(tmp_path: Path) -> None:
    root, checkpoint = tmp_path / "store", note("weights")
    step, other = serving("a", checkpoint, scratch=str(tmp_path)), note("b")
    run(root, [checkpoint])
    path = Store(root).path(checkpoint.ref) / "note.txt"
    path.write_text("wEights")
    outcomes = run(root, [checkpoint, step, other], run_id="second")
    assert outcomes[step.ref].status is Status.failed
    assert outcomes[step.ref].failure_class is FailureClass.data
    assert "note.txt was changed" in outcomes[step.ref].message
    assert outcomes[other.ref].status is Status.succeeded
    # Moved aside, the checkpoint is missing, so a rerun makes it and its dependants.
    assert run(root, [checkpoint, step, other], run_id="third")[step.ref].status is Status.succeeded


@pytest.mark.parametrize("kind", RunnerKind)
def test_a_full_disk_stops_the_run_with_nothing_half_published(
    small_disk: Path, tmp_path: Path, kind: RunnerKind
) -> None:
    first = note("first", scratch=str(tmp_path))
    large = note("x" * 3 * 2**20, first)
    object.__setattr__(large, "label", "large")
    behind, later = note("behind", large), [note(f"later{i}", large, scratch=str(tmp_path)) for i in range(3)]
    outcomes = run(small_disk, [first, large, behind, *later], kind)
    assert outcomes[first.ref].status is Status.succeeded
    assert outcomes[large.ref].failure_class is FailureClass.disk
    assert {outcomes[step.ref].status for step in (behind, *later)} == {Status.not_run}
    assert [path.name[:5] for path in (small_disk / "note").iterdir()] == ["first"]
    assert calls(tmp_path) == ["first"]


def test_what_kills_or_hangs_a_worker_is_classified_and_the_rest_is_done(tmp_path: Path) -> None:
    """On Ray, because only the death of a process ends these: one run for all, so that they meet each other too."""
    root, scratch = tmp_path / "store", str(tmp_path)
    little = Resources(num_cpus=1, memory_gib=0.7)
    bomb = note("bomb", behaviour="memory_bomb", scratch=scratch, resources=little)
    fault = note("fault", behaviour="segfault", scratch=scratch)
    hang = note("hang", behaviour="hang", scratch=scratch)
    locked = note("locked", behaviour="hang_in_c", scratch=scratch)
    behind = note("behind", hang)
    checkpoint = note("weights")
    shards = [
        serving(text, checkpoint, behaviour=how, scratch=scratch)
        for text, how in {"s1": "write", "s2": "segfault", "s3": "write"}.items()
    ]
    free = [note(f"free{index}") for index in range(4)]
    steps = [bomb, fault, hang, locked, behind, checkpoint, *shards, *free]
    outcomes = run(root, steps, RunnerKind.ray, timeout_s={"note": 8.0})
    classes = {step.label: outcomes[step.ref].failure_class for step in (bomb, fault, hang, locked)}
    assert classes == {
        "bomb": FailureClass.oom,
        "fault": FailureClass.crash,
        "hang": FailureClass.timeout,
        "locked": FailureClass.timeout,
    }
    assert outcomes[behind.ref].status is Status.skipped
    assert {outcomes[step.ref].status for step in (*free, shards[0], shards[2])} == {Status.succeeded}
    assert outcomes[shards[1].ref].failure_class is FailureClass.crash
    assert Store(root).find(shards[1].ref) is None
    tried = calls(tmp_path)
    assert {name: tried.count(name) for name in ("bomb", "fault", "hang", "locked", "s1", "s2", "s3")} == {
        "bomb": 2, "fault": 2, "hang": 2, "locked": 2, "s1": 1, "s2": 2, "s3": 1,
    }  # fmt: skip
    assert not _runs(tmp_path / "child-hang"), "what the hung step started outlived it"
    assert "fakes.py" in log_path(root, hang).read_text(), "the log must show where it hung"
    failure = Ledger(open_storage(root)).last_failure(hang.ref)
    assert failure is not None
    assert "8 s" in failure.message


def _runs(pid_file: Path) -> bool:
    process = psutil.pid_exists(pid := int(pid_file.read_text())) and psutil.Process(pid)
    return bool(process) and process.status() != psutil.STATUS_ZOMBIE


def test_weights_that_do_not_fit_the_disk_are_no_bug(small_disk: Path) -> None:
    """safetensors says so with an exception of its own that is no OSError."""
    import numpy as np
    from safetensors.numpy import save_file

    with pytest.raises(Exception, match="No space left") as caught:
        save_file({"weights": np.zeros(2**20, np.float32)}, small_disk / "model.safetensors")
    assert classify(caught.value) is FailureClass.disk
