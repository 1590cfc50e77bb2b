"""Garbage collection beside sweeps that begin, publish and save their records at any moment."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import UserError
from pipeline.planning.plan import Plan
from pipeline.results import record
from pipeline.results.garbage import collect
from pipeline.steps.step import Step
from pipeline.store import bucket, bucket_listing
from pipeline.store.manifest import MANIFEST
from pipeline.store.store import Store
from tests.pipeline.fakes import note

pytestmark = pytest.mark.usefixtures("notes_are_collected")
OLD, OTHER = note("old"), note("other")


@pytest.fixture(params=["directory", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store that holds two artifacts which no record names."""
    root = tmp_path if request.param == "directory" else f"memory://{tmp_path}"
    store = Store(root, tmp_path / "cache")
    publish(store, OLD, OTHER)
    return store


def publish(store: Store, *steps: Step) -> None:
    for step in steps:
        with store.draft(step) as draft:
            (draft.path / "note.txt").write_text("text")
            draft.publish({}, {})


def begin(store: Store, *steps: Step) -> None:
    """What a driver does before it looks at what is there."""
    record.save(store, Plan("begun", {}, {step.ref: step for step in steps}), None)


def before(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[Store], Any]) -> None:
    """Let something happen the first time that the collection calls a method of its store."""
    real, done = getattr(Store, name), []

    def first(store: Store, *arguments: Any) -> Any:
        if not done:
            done.append(True)
            act(store)
        return real(store, *arguments)

    monkeypatch.setattr(Store, name, first)


def test_what_a_record_names_is_safe_although_it_was_published_after_the_record_was_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(store, note("new"))
    before(monkeypatch, "hide", lambda store: publish(store, note("new")))
    collect(store, delete=True)
    assert store.missing([note("new"), OLD]) == [OLD]


@pytest.mark.parametrize("moment", ["everything", "refresh", "hide"])
def test_a_sweep_that_begins_keeps_what_it_finds_or_finds_it_missing(
    store: Store, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    before(monkeypatch, moment, lambda store: begin(store, OLD))
    removed = collect(store, delete=True)
    assert [each.name for each in removed] == [f"other-{OTHER.fingerprint[:12]}"]
    assert store.missing([OLD]) == []
    assert store.damaged([OLD]) == {}
    assert collect(store, delete=True) == []


def test_what_a_sweep_makes_again_while_it_is_hidden_is_there_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_and_make(store: Store) -> None:
        begin(store, OLD)
        assert store.missing([OLD]) == [OLD]
        publish(store, OLD)

    hide = Store.hide

    def hide_and_be_watched(store: Store, stored: Any) -> Any:
        hidden = hide(store, stored)
        if stored.name.startswith("old-"):
            begin_and_make(Store(store.url, store.local))
        return hidden

    monkeypatch.setattr(Store, "hide", hide_and_be_watched)
    collect(store, delete=True)
    monkeypatch.setattr(Store, "hide", hide)
    collect(store, delete=True)
    assert store.missing([OLD]) == []
    assert store.damaged([OLD]) == {}
    assert collect(store, delete=True) == []


def test_two_collections_at_once_remove_everything_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, "hide", lambda store: collect(store, delete=True))
    assert collect(store, delete=True) == []
    assert store.missing([OLD, OTHER]) == [OLD, OTHER]


def test_a_manifest_reaches_nothing_outside_its_artifact(tmp_path: Path) -> None:
    store, precious = Store(tmp_path / "store"), tmp_path / "precious.txt"
    publish(store, OLD, OTHER)
    precious.write_text("mine")
    for step, name in ((OLD, "../../../precious.txt"), (OTHER, str(precious))):
        path = store.path(step.ref) / MANIFEST
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "files": {**manifest["files"], name: {"size": 4, "sha256": ""}}}))
    collect(store, delete=True)
    assert precious.read_text() == "mine"


def test_a_folder_with_a_manifest_of_its_own_is_the_user_s(tmp_path: Path) -> None:
    """As web applications and browser extensions have one."""
    site = tmp_path / "webapp" / "site"
    for folder in (site, tmp_path / "note" / "site-0123456789ab", tmp_path / ".damaged-x" / "y"):
        (folder / "pages").mkdir(parents=True)
        (folder / MANIFEST).write_text(json.dumps({"name": "my site", "stage": folder.parent.name}))
        (folder / "pages" / "index.html").write_text("<html>")
    assert collect(Store(tmp_path), delete=True) == []
    assert len(list(tmp_path.rglob("index.html"))) == 3


def test_an_artifact_that_somebody_put_a_file_into_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, OLD)
    (store.path(OLD.ref) / "my notes.txt").write_text("do not ship")
    assert collect(store, delete=True) == []
    assert store.missing([OLD]) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Two stores that share a stage's directory, an artifact that was moved to another disk, a folder inside one."""
    theirs, store = Store(tmp_path / "theirs"), Store(tmp_path / "ours")
    publish(theirs, OLD)
    publish(store, OTHER)
    inside = store.path(OTHER.ref)
    shutil.move(inside, tmp_path / "moved")
    inside.symlink_to(tmp_path / "moved")
    assert collect(store, delete=True) == []
    shutil.rmtree(tmp_path / "ours" / "note")
    (tmp_path / "ours" / "note").symlink_to(tmp_path / "theirs" / "note")
    assert collect(store, delete=True) == []
    assert theirs.missing([OLD]) == []


@pytest.mark.parametrize("harm", [lambda path: path.write_text("x"), lambda path: path.symlink_to("not mounted")])
def test_records_that_cannot_be_listed_are_not_taken_for_none(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    store = Store(tmp_path)
    publish(store, OLD)
    harm(tmp_path / "sweeps")
    with pytest.raises(UserError, match="sweeps cannot be read"):
        collect(store, delete=True)
    assert store.missing([OLD]) == []


def test_a_record_that_is_a_link_to_nothing_stops_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, OLD)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "small.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"sweeps/small\.json cannot be read"):
        collect(store, delete=True)
    assert store.missing([OLD]) == []


def test_an_upload_that_came_to_no_end_goes_when_nothing_of_it_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, files = Store(f"memory://{tmp_path}", tmp_path / "cache"), MemoryFileSystem()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bucket.BucketStorage, "create", die)
        publish(store, OLD)
    uploads = f"{tmp_path}/artifacts"
    assert collect(store, delete=True) == []
    assert files.find(uploads)
    monkeypatch.setattr(bucket_listing, "ABANDONED_AFTER_S", -1)
    assert [each.name for each in collect(store, delete=True)] == [None]
    assert not files.find(uploads)


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
def test_a_collection_that_is_broken_off_leaves_nothing_hidden(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    hide, asked = Store.hide, []

    def hide_one(store: Store, stored: Any) -> Any:
        asked.append(stored)
        if len(asked) > 1:
            raise error
        return hide(store, stored)

    monkeypatch.setattr(Store, "hide", hide_one)
    with pytest.raises((error, UserError)):
        collect(store, delete=True)
    assert Store(store.url, store.local).missing([OLD, OTHER]) == []
