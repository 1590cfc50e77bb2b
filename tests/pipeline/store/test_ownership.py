"""Garbage collection: nothing goes that was not published in the store, and nothing that a record names."""

import functools
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.planning.plan import Plan
from pipeline.results.garbage import collect
from pipeline.results.record import save
from pipeline.steps.stages import STAGES
from pipeline.store import bucket_listing
from pipeline.store.manifest import MANIFEST, read_manifest
from pipeline.store.store import Store
from tests.pipeline.fakes import NOTE, note

ROOT = Path(__file__).parents[3]
TEXTS = ["a", "b", "c"]
NAMES = {text: f"{text}-{note(text).fingerprint[:12]}" for text in TEXTS}
PROOF = ("manifest_version", "stage", "label", "fingerprint", "payload")


def publish(store: Store, text: str) -> None:
    with store.draft(note(text)) as draft:
        (draft.path / "more").mkdir()
        (draft.path / "note.txt").write_text(text)
        (draft.path / "more" / "data.bin").write_bytes(b"\0" * 10)
        draft.publish({}, {})


@contextmanager
def notes_collected() -> Iterator[None]:
    STAGES[NOTE.name] = NOTE
    try:
        yield
    finally:
        del STAGES[NOTE.name]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories of three published notes."""
    root = tmp_path_factory.mktemp("published")
    for text in TEXTS:
        publish(Store(root), text)
    return root / "note"


@functools.cache
def manifest_of(text: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        publish(Store(scratch), text)
        return read_manifest(Path(scratch) / "note" / NAMES[text])


@st.composite
def manifests(draw: Callable[..., Any]) -> str:
    """One as the store writes them, or with one thing of it another."""
    manifest = manifest_of(draw(st.sampled_from(TEXTS)))
    changed = draw(st.none() | st.sampled_from(sorted(manifest)))
    return json.dumps(manifest if changed is None else {**manifest, changed: draw(VALUES)})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("webapp"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
CONTENTS = st.text(max_size=10) | VALUES.map(json.dumps) | st.just('["x"]') | manifests()
FOLDERS = st.sampled_from(["note", "webapp", "evaluate", "logs", "drafts", "note/sub", ".damaged-x", "."])
DIGITS = st.sampled_from([*(name[2:] for name in NAMES.values()), "0123456789ab", "0123456789AB", "site"])
DIRECTORIES = st.builds(
    "{}{}-{}{}".format,
    st.sampled_from(["", ".damaged-", ".draft-", "copy-of-"]),
    st.sampled_from([*TEXTS, "x", "my site"]),
    DIGITS,
    st.sampled_from(["", "-01234567"]),
)
FILES = st.sampled_from([MANIFEST, "note.txt", "more/data.bin", "index.html", f"more/{MANIFEST}"])
IN_ARTIFACTS = st.sampled_from(
    [f"note/{aside.format(name)}" for name in NAMES.values() for aside in ("{}", ".damaged-{}-76543210")]
)
PLACES = st.builds("{}/{}".format, FOLDERS, DIRECTORIES) | IN_ARTIFACTS
TREES = st.dictionaries(st.builds("{}/{}".format, PLACES, FILES), CONTENTS, max_size=8)
SOME = st.sets(st.sampled_from(TEXTS))


def is_artifact(name: str, content: str) -> bool:
    """Whether a manifest says of its place just what the store writes there: then nobody can tell who did."""
    wanted = next((text for text in TEXTS if f"note/{NAMES[text]}/" in name or f"damaged-{NAMES[text]}-" in name), None)
    if wanted is None or not name.endswith(MANIFEST):
        return False
    try:
        said, true = json.loads(content), manifest_of(wanted)
        return all(said[key] == true[key] for key in PROOF)
    except (ValueError, KeyError, TypeError):
        return False


def files_below(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.dear
@settings(max_examples=40)
@given(strange=TREES, published=SOME, damaged=SOME, recorded=SOME)
def test_what_was_not_published_here_and_what_a_record_names_stays(
    artifacts: Path, strange: dict[str, str], published: set[str], damaged: set[str], recorded: set[str]
) -> None:
    with tempfile.TemporaryDirectory() as scratch, notes_collected():
        root = Path(scratch) / "store"
        for text in published:
            shutil.copytree(artifacts / NAMES[text], root / "note" / NAMES[text])
        for text in damaged:
            shutil.copytree(artifacts / NAMES[text], root / "note" / f".damaged-{NAMES[text]}-76543210")
        save(Store(root), Plan("test", {}, {note(text).ref: note(text) for text in recorded}), None)
        garbage = {NAMES[text] for text in published - recorded} | {
            f".damaged-{NAMES[text]}-76543210" for text in damaged
        }
        ours = {name for name in files_below(root) if set(name.split("/")) & garbage}
        for name, content in strange.items():
            for place in (root / name, Path(scratch) / "beside" / name):
                if not (place.exists() or is_artifact(name, content)):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_text(content)
        meddled = {place for place in garbage if any(f"/{place}/" in name for name in strange)}
        before = files_below(Path(scratch))
        collect(Store(root), delete=True)
        after = files_below(Path(scratch))
        gone = {name.removeprefix("store/") for name in before.keys() - after.keys()}
        assert gone <= ours, "not published here, or named"
        assert {name: content for name, content in before.items() if name in after} == after, "moved or changed"
        assert gone >= {name for name in ours if not set(name.split("/")) & meddled}, "garbage"


PREFIXES = st.sampled_from(["artifacts", "manifests", "damaged", "hidden", "webapp", "artifacts/deeper"])
OBJECTS = st.builds(
    "{}/{}/{}{}".format,
    PREFIXES,
    FOLDERS.filter(lambda folder: folder != "."),
    DIRECTORIES,
    st.sampled_from(
        [".json", "-01234567.json", f"/0123456789ab/{MANIFEST}", "/0123456789ab/note.txt", "/note.txt", ""]
    ),
) | st.sampled_from(["artifacts/readme.txt", "damaged/notes.json", "hidden/notes", "manifests/note/notes.txt"])


@pytest.mark.dear
@settings(max_examples=40)
@given(strange=st.dictionaries(OBJECTS, CONTENTS, max_size=8), published=SOME, damaged=SOME, recorded=SOME)
def test_so_it_does_in_a_bucket(
    strange: dict[str, str], published: set[str], damaged: set[str], recorded: set[str]
) -> None:
    root, files = f"/{uuid.uuid4().hex}", MemoryFileSystem()
    with tempfile.TemporaryDirectory() as cache, notes_collected(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_listing, "ABANDONED_AFTER_S", -1)  # as old as anything may be
        store = Store(f"memory:/{root}", Path(cache))
        for text in damaged | published:
            publish(store, text)
        for text in damaged:
            store.set_aside(note(text).ref)
            if text in published:
                publish(store, text)
        kept = {
            path for text in published & recorded for path in files.find(f"{root}/manifests") if NAMES[text] in path
        }
        kept |= {
            f"{root}/artifacts/note/{Path(path).stem}/{json.loads(files.cat_file(path))['upload']}/{file}"
            for path in kept
            for file in ("note.txt", "more/data.bin")
        }
        ours = set(files.find(root)) - kept
        save(store, Plan("test", {}, {note(text).ref: note(text) for text in recorded}), None)
        for name, content in strange.items():
            if not files.exists(f"{root}/{name}"):
                files.pipe_file(f"{root}/{name}", content.encode())
        before = {path: files.cat_file(path) for path in files.find(root)}
        collect(Store(f"memory:/{root}", Path(cache)), delete=True)
        after = {path: files.cat_file(path) for path in files.find(root)}
        assert before.keys() - after.keys() <= ours, "not published here, or named"
        assert {path: content for path, content in before.items() if path in after} == after, "moved or changed"
        assert not ours & after.keys(), "garbage"
        files.rm(root, recursive=True)
