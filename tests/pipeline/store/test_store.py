"""The store: an artifact is complete or not there, whoever writes, dies or meddles."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.planning.plan import Plan
from pipeline.results.garbage import collect
from pipeline.results.record import save
from pipeline.store.directory import DirectoryStorage
from pipeline.store.manifest import MANIFEST, file_name
from pipeline.store.memory import remember
from pipeline.store.store import Store
from pipeline.store.timing import Timing
from tests.pipeline.fakes import note


def publish(root: Path, text: str = "hello") -> Path:
    store, step = Store(root), note(text)
    with store.draft(step) as draft:
        (draft.path / "note.txt").write_text(text)
        (draft.path / "more").mkdir()
        (draft.path / "more" / "data.bin").write_bytes(b"\0" * 1000)
        draft.publish({"length": float(len(text)), "unknown": None}, {"ended": 1.0})
    return store.path(step.ref)


def test_a_published_artifact_says_what_it_is(tmp_path: Path) -> None:
    path = publish(tmp_path)
    manifest = json.loads((path / MANIFEST).read_text())
    step = note("hello")
    assert Store(tmp_path).find(step.ref) == path
    assert path == tmp_path / "note" / f"hello-{step.fingerprint[:12]}"
    assert manifest["fingerprint"] == step.fingerprint
    assert manifest["payload"] == step.payload
    assert manifest["metrics"] == {"length": 5.0, "unknown": None}
    assert manifest["files"]["more/data.bin"]["size"] == 1000


def test_a_label_is_no_identity(tmp_path: Path) -> None:
    publish(tmp_path)
    renamed = note("hello")
    object.__setattr__(renamed, "label", "another name")
    assert Store(tmp_path).find(renamed.ref) is not None


def test_the_full_fingerprint_decides(tmp_path: Path) -> None:
    path = publish(tmp_path)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["fingerprint"] = manifest["fingerprint"][:12] + "0" * 52
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert Store(tmp_path).find(note("hello").ref) is None


BAD_MANIFESTS = ["", "[", '["x"]', "null", "{}", '"x"', "[" * 5000, b"\xff\xfe"]
BAD_VALUES: dict[str, Any] = {
    "stage": 1,
    "label": None,
    "fingerprint": ["x"],
    "payload": [1, "note"],
    "inputs": {"input": ["note"]},
    "metrics": {"length": "long"},
    "files": {"note.txt": {"size": 5}},
    "provenance": {"ended": "yesterday"},
}


@pytest.mark.parametrize("bad", [*BAD_MANIFESTS, *BAD_VALUES], ids=repr)
def test_a_bad_manifest_is_no_manifest(tmp_path: Path, bad: str | bytes) -> None:
    path, step = publish(tmp_path), note("hello")
    manifest = json.loads((path / MANIFEST).read_text())
    if bad in BAD_VALUES:
        bad = json.dumps({**manifest, str(bad): BAD_VALUES[str(bad)]})
    (path / MANIFEST).write_bytes(bad.encode() if isinstance(bad, str) else bad)
    store = Store(tmp_path)
    assert store.missing([step]) == [step]
    assert (store.manifest(step.ref), list(store.manifests("note"))) == (None, [])
    assert store.environments([step.ref]) == []
    assert store.damaged([step]) == {}
    assert publish(tmp_path) == path
    assert Store(tmp_path).damaged([step]) == {}


def test_missing_lists_what_is_not_published(tmp_path: Path) -> None:
    publish(tmp_path, "one")
    assert Store(tmp_path).missing([note("one"), note("two")]) == [note("two")]


def test_an_open_store_sees_what_another_process_publishes_and_removes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find(note("hello").ref) is None
    path = publish(tmp_path)
    assert store.find(note("hello").ref) == path
    shutil.rmtree(path)
    assert store.find(note("hello").ref) is None


def _publish_and_die(root: Path, die_at: int) -> None:
    """Die by SIGKILL at the ``die_at``-th file operation of publishing."""
    count = 0

    def hook(event: str, _: object) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir"):
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    publish(root)
    os._exit(0)


@pytest.mark.dear
def test_a_kill_between_any_two_writes_leaves_all_or_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for die_at in range(1, 200):
        root = tmp_path / str(die_at)
        child = context.Process(target=_publish_and_die, args=(root, die_at))
        child.start()
        child.join()
        found = Store(root).find(note("hello").ref)
        if found is not None:
            assert (found / "note.txt").read_text() == "hello"
            assert (found / "more" / "data.bin").stat().st_size == 1000
        again = publish(root)
        Store(root).remove_abandoned_drafts()
        assert [path.name for path in (root / "note").iterdir()] == [again.name]
        if child.exitcode == 0:
            assert die_at > 10, "the test must have killed it at many points before"
            return
    raise AssertionError("publishing never came to its end")


def test_two_publishers_of_one_step_are_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All four find nothing there before the first of them publishes."""
    num, alone = 4, DirectoryStorage.publish
    together = threading.Barrier(num, timeout=60)

    def publish_together(storage: DirectoryStorage, *artifact: Any) -> None:
        together.wait()
        alone(storage, *artifact)

    monkeypatch.setattr(DirectoryStorage, "publish", publish_together)
    with ThreadPoolExecutor(num) as publishers:
        for round_number in range(5):
            root = tmp_path / str(round_number)
            paths = list(publishers.map(publish, [root] * num))
            assert set(paths) == set((root / "note").iterdir()) == {Store(root).find(note("hello").ref)}
            assert (paths[0] / "more" / "data.bin").stat().st_size == 1000
            assert list((root / "drafts").iterdir()) == []


def test_what_lies_in_the_way_without_a_manifest_is_moved_aside(tmp_path: Path) -> None:
    path = publish(tmp_path)
    (path / MANIFEST).unlink()
    assert Store(tmp_path).find(note("hello").ref) is None
    assert publish(tmp_path) == path
    assert Store(tmp_path).find(note("hello").ref) == path


def test_a_draft_that_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Store(tmp_path).draft(note("hello")) as draft:
        (draft.path / "half").write_text("half")
        raise KeyError
    assert list((tmp_path / "note").iterdir()) == []


def test_a_draft_of_a_living_process_is_not_abandoned(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.draft(note("hello")) as draft:
        assert store.remove_abandoned_drafts() == 0
        assert draft.path.exists()


def test_a_store_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"store\.root=DIR"):
        Store(tmp_path / "file" / "store").check_writable(0)
    with pytest.raises(UserError, match="GiB free"):
        Store(tmp_path).check_writable(needed_bytes=2**60)
    for nowhere in ("", "  "):
        with pytest.raises(UserError, match=r"no place .*store\.root=DIR"):
            Store(nowhere)


def test_an_open_store_with_patience_sees_at_once_what_it_publishes_itself(tmp_path: Path) -> None:
    store = Store(tmp_path, patience_s=60)
    assert store.find(note("one").ref) is None
    publish(tmp_path, "other")  # the directory is there, listed and old
    assert store.find(note("one").ref) is None
    with store.draft(note("one")) as draft:
        draft.publish({}, {})
    assert store.find(note("one").ref) is not None


def test_what_is_remembered_of_a_store_never_hides_a_change(tmp_path: Path) -> None:
    kept, lost, torn = (publish(tmp_path, text) for text in ("kept", "lost", "torn"))
    steps = [note(text) for text in ("kept", "lost", "torn", "never")]
    assert Store(tmp_path).missing(steps) == steps[3:]  # and remembers
    shutil.rmtree(lost)
    (torn / MANIFEST).unlink()
    assert Store(tmp_path).missing(steps) == steps[1:]
    (tmp_path / "cache" / "index.json").write_text("torn by a ki")
    assert Store(tmp_path).missing(steps) == steps[1:]
    assert Store(tmp_path).find(steps[0].ref) == kept


def test_when_and_where_steps_ran_is_remembered_with_them(tmp_path: Path) -> None:
    said = {"run_id": "r", "host": "h", "started": 1.0, "ended": 5.5, "stage_s": 2.5, "gpus": ["NVIDIA H100, 570"]}
    held = {"num_gpus": 1, "held_gpus": [{"index": 3, "uuid": "GPU-a"}], "expected_s": 4.0}
    steps = [note(text) for text in ("all", "older", "silent", "missing")]
    for step, provenance in zip(steps, ({**said, **held}, said, {}), strict=False):
        with Store(tmp_path).draft(step) as draft:
            draft.publish({}, provenance)
    for _ in ("read", "remembered"):
        store = Store(tmp_path)
        assert store.missing(steps) == steps[3:]
        found = store.timings(step.ref for step in steps)
        assert found == {
            steps[0].ref: Timing("r", "h", 1.0, 5.5, 2.5, ("NVIDIA H100, 570",), 1.0, ("3 GPU-a",), 4.0),
            steps[1].ref: Timing("r", "h", 1.0, 5.5, 2.5, ("NVIDIA H100, 570",)),
        }
    assert (found[steps[0].ref].seconds, found[steps[0].ref].before_s) == (4.5, 2.0)


def test_a_memory_of_an_earlier_version_is_read_again(tmp_path: Path) -> None:
    path, step = publish(tmp_path, "a"), note("a")
    stamp = str((path / MANIFEST).stat().st_mtime_ns)
    remember(tmp_path / "cache" / "index.json", {f"note/{path.name}": [stamp, step.fingerprint, "digest"]})
    store = Store(tmp_path)
    assert store.missing([step]) == []
    assert store.environments([step.ref]) == [{"packages": None, "git": None}]


def test_an_artifact_that_is_made_again_elsewhere_is_known_by_its_new_environment(tmp_path: Path) -> None:
    step = note("a")
    for version in ("1", "2"):
        store = Store(tmp_path)
        with store.draft(step) as draft:
            draft.publish({}, {"packages": {"vllm": version}})
        assert store.missing([step]) == []  # and remembers
        assert store.environments([step.ref]) == [{"packages": {"vllm": version}, "git": None}]
        shutil.rmtree(store.path(step.ref))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda path: (path / "note.txt").write_text("hellO"), "note.txt was changed"),
        (lambda path: (path / "more" / "data.bin").unlink(), "more/data.bin is missing"),
        (lambda path: (path / "extra").write_text("x"), "extra does not belong"),
    ],
)
def test_full_verification_finds_damage(tmp_path: Path, harm: Callable[[Path], object], told: str) -> None:
    path, step = publish(tmp_path), note("hello")
    store = Store(tmp_path)
    assert store.damaged([step, note("never")]) == {}
    harm(path)
    assert told in store.damaged([step])[step.ref]
    store.set_aside(step.ref)
    assert store.find(step.ref) is None
    assert publish(tmp_path) == path
    assert Store(tmp_path).damaged([step]) == {}


@pytest.mark.usefixtures("notes_are_collected")
def test_garbage_is_what_no_sweep_refers_to(tmp_path: Path) -> None:
    store, old = Store(tmp_path), publish(tmp_path, "old")
    used, from_it = note("used"), note("made from it", note("used"))
    recorded = publish(tmp_path, "recorded")
    for step in (used, from_it):
        with store.draft(step) as draft:
            draft.publish({}, {})
    (tmp_path / "sweeps").mkdir()
    record = {"trials": [{"checkpoint": list(note("recorded").ref)}], "report": None}
    (tmp_path / "sweeps" / "earlier.json").write_text(json.dumps(record))
    save(store, Plan("test", {}, {from_it.ref: from_it}), None)
    assert [unused.location for unused in collect(store, delete=False)] == [str(old)]
    assert old.exists()
    theirs = tmp_path / "notes" / "of the user"
    theirs.mkdir(parents=True)
    damaged = store.path(used.ref)
    store.set_aside(used.ref)  # beside the one that takes its place, with the same fingerprint
    with store.draft(used) as draft:
        draft.publish({}, {})
    with store.draft(note("being made")) as draft:
        collect(store, delete=True)
        assert draft.path.exists()
    assert not old.exists()
    assert theirs.exists()
    assert [path for path in (tmp_path / "note").iterdir() if path.name.startswith(".damaged")] == []
    assert damaged.exists()
    assert recorded.exists()
    assert store.missing([used, from_it]) == []


@pytest.mark.usefixtures("notes_are_collected")
def test_what_a_sweep_will_need_is_no_garbage_before_anything_is_made_of_it(tmp_path: Path) -> None:
    """A data set that another sweep fetched a moment ago: no manifest names it yet."""
    path, data = publish(tmp_path, "data"), note("data")
    store, theirs = Store(tmp_path), note("theirs", data)
    save(store, Plan("other", {}, {data.ref: data, theirs.ref: theirs}), None)
    assert collect(store, delete=True) == []
    assert path.exists()


def test_file_names_are_portable() -> None:
    assert file_name("smollm2/w4a16_int/group_size=64") == "smollm2-w4a16_int-group_size=64"
    assert file_name("...") == "artifact"
    assert len(file_name("a" * 300)) < 200
