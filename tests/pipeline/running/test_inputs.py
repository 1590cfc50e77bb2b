"""A checkpoint whose turn will come is read before, if memory can hold it: its bytes are checked and in memory then."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.running.batches import batches
from pipeline.running.inputs import Inputs
from pipeline.running.outcome import RunContext
from pipeline.running.worker import run_batch
from pipeline.steps.stages import FETCH_MODEL
from pipeline.steps.step import Step
from pipeline.store.store import Address, Store
from stages.errors import CheckpointError
from stages.fetch import ModelSource, digest_tree
from tests.pipeline.fakes import serving
from tests.stages.checkpoints.written import write_model
from tests.sweeping import wait_for

pytestmark = pytest.mark.dear  # to fetch a model asks transformers what it will load of it


@pytest.fixture
def checkpoint(tmp_path: Path) -> Step:
    path = write_model(tmp_path / "model")
    step = Step(FETCH_MODEL, ModelSource(path=str(path), digest=digest_tree(path)), "model")
    [batch] = batches([step])
    run_batch(batch, RunContext(Address(tmp_path / "store"), "run", max_attempts=1), [])
    return step


def test_it_is_read_beside_the_work_and_checked_once(
    tmp_path: Path, checkpoint: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, damage = [], Store.damage

    def counted(store: Store, ref: object) -> str | None:
        read.append(ref)
        return damage(store, ref)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "damage", counted)
    inputs, later = Inputs(Store(tmp_path / "store")), serving("later", checkpoint)
    assert inputs.of_later(later) is None, "nobody waits for it"
    wait_for(lambda: inputs.of_later(later) is not None)
    assert inputs.of_later(later) == inputs.of(later) == {"checkpoint": Store(tmp_path / "store").path(checkpoint.ref)}
    assert read == [checkpoint.ref]


def test_what_is_damaged_is_refused_whoever_reads_it(tmp_path: Path, checkpoint: Step) -> None:
    store = Store(tmp_path / "store")
    (store.path(checkpoint.ref) / "tokenizer.json").write_text("{ }")
    inputs, later = Inputs(store), serving("later", checkpoint)
    assert inputs.of_later(later) is None
    with pytest.raises(CheckpointError, match=r"tokenizer\.json was changed"):
        inputs.of(later)


def test_what_memory_cannot_hold_is_not_read_before_its_turn(
    tmp_path: Path, checkpoint: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.running.inputs.psutil.virtual_memory", lambda: SimpleNamespace(available=500))
    read: list[object] = []
    monkeypatch.setattr(Store, "damage", lambda store, ref: read.append(ref))
    inputs, later = Inputs(Store(tmp_path / "store")), serving("later", checkpoint)
    assert inputs.of_later(later) is None
    assert inputs.of_later(later) is None
    assert read == []
    assert inputs.of(later)
    assert read == [checkpoint.ref]
