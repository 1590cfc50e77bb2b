"""The store on object storage: a real S3 server in a process of its own, reached through the network."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.planning.plan import Plan
from pipeline.results import load
from pipeline.results.garbage import collect
from pipeline.results.record import save
from pipeline.steps.roles import under
from pipeline.store.store import Store
from tests.pipeline.fakes import note
from tests.sweeping import driver, free_port, make_sweep, stop_group, tables, wait_for

pytestmark = pytest.mark.dear


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    log = (tmp_path_factory.mktemp("s3") / "server.log").open("ab")
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            urllib.request.urlopen(url, timeout=2)
        except OSError:
            return False
        return True

    wait_for(answers)
    yield url
    stop_group(server, signal.SIGTERM)


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of a store in an empty bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    import s3fs

    name = f"bucket-{abs(hash(tmp_path))}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}/sweeps"


def publish(store: Store, text: str = "hello", content: str | None = None) -> Path:
    step = note(text)
    with store.draft(step) as draft:
        (draft.path / "note.txt").write_text(content or text)
        (draft.path / "more").mkdir()
        (draft.path / "more" / "data.bin").write_bytes(b"\0" * 1000)
        draft.publish({"length": float(len(text))}, {})
    return store.path(step.ref)


def objects(bucket: str) -> list[str]:
    import s3fs

    return sorted(s3fs.S3FileSystem(use_listings_cache=False).find(bucket))


def test_what_one_machine_publishes_another_reads(bucket: str, tmp_path: Path) -> None:
    publish(Store(bucket, tmp_path / "here"))
    there = Store(bucket, tmp_path / "there")
    assert there.missing([note("hello"), note("other")]) == [note("other")]
    path = there.path(note("hello").ref)
    assert path.is_relative_to(tmp_path / "there")
    assert (path / "note.txt").read_text() == "hello"
    assert (path / "more" / "data.bin").read_bytes() == b"\0" * 1000
    assert (there.manifest(note("hello").ref) or {})["metrics"] == {"length": 5.0}
    assert there.damaged([note("hello")]) == {}


def test_of_two_publishers_the_first_wins_and_the_second_leaves_nothing(bucket: str, tmp_path: Path) -> None:
    first, second = (Store(bucket, tmp_path / name) for name in ("first", "second"))
    assert second.missing([note("hello")])  # it looked before the first was done
    with second.draft(note("hello")) as draft:
        (draft.path / "note.txt").write_text("mine")
        publish(first, "hello", "the first")
        draft.publish({}, {})
    second.refresh()
    assert (second.path(note("hello").ref) / "note.txt").read_text() == "the first"
    assert len([name for name in objects(bucket) if "/artifacts/" in name]) == 2


def test_an_upload_without_its_marker_is_nothing(bucket: str, tmp_path: Path) -> None:
    """What a machine leaves that dies before the marker."""
    import s3fs

    s3fs.S3FileSystem().pipe_file(f"{bucket}/artifacts/note/hello-{note('hello').fingerprint[:12]}/0/note.txt", b"x")
    store = Store(bucket, tmp_path)
    assert store.missing([note("hello")])
    assert publish(store).exists()


def test_a_bad_copy_is_fetched_again_and_a_bad_object_is_reported(bucket: str, tmp_path: Path) -> None:
    import s3fs

    path = publish(Store(bucket, tmp_path / "here"))
    there = Store(bucket, tmp_path / "there")
    copy = there.path(note("hello").ref)
    (copy / "note.txt").write_text("jello")
    assert there.damage(note("hello").ref) is None
    assert (there.path(note("hello").ref) / "note.txt").read_text() == "hello"
    [stored] = [name for name in objects(bucket) if name.endswith("note.txt")]
    s3fs.S3FileSystem().pipe_file(stored, b"jello")
    assert there.damaged([note("hello")]) == {note("hello").ref: "note.txt was changed"}
    shutil.rmtree(copy)
    assert "note.txt was changed" in str(there.damage(note("hello").ref))
    there.set_aside(note("hello").ref)
    assert there.missing([note("hello")])
    assert publish(there).exists()
    shutil.rmtree(path)
    assert (Store(bucket, tmp_path / "here").path(note("hello").ref) / "note.txt").read_text() == "hello"


@pytest.mark.usefixtures("notes_are_collected")
def test_garbage_is_what_no_sweep_refers_to(bucket: str, tmp_path: Path) -> None:
    store = Store(bucket, tmp_path)
    for text in ("used", "old"):
        publish(store, text)
    save(store, Plan("test", {}, {note("used").ref: note("used")}), None)
    [unused] = collect(store, delete=True)
    assert "/old-" in unused.location
    assert store.missing([note("used"), note("old")]) == [note("old")]
    assert not [name for name in objects(bucket) if "/old-" in name]


def test_a_bucket_that_is_not_there_is_refused_in_one_line(bucket: str, tmp_path: Path) -> None:
    store = Store("s3://no-such-bucket-at-all/x", tmp_path)
    with pytest.raises(UserError, match=r"cannot be written .*; check|cannot be written .*: check"):
        store.check_writable(0)
    with pytest.raises(UserError, match=r"store\.cache=DIR"):
        Store(bucket)


@pytest.mark.e2e
def test_a_sweep_killed_twice_in_a_bucket_ends_as_in_a_directory(bucket: str, tmp_path: Path) -> None:
    """Two machines, each with a cache of its own; the tables come out to the byte."""
    own = make_sweep(tmp_path)
    small = ["cluster=inline", "tracking=off", "tasks.a.limit=60", "tasks.b.limit=40"]
    assert driver(own, *small, "store.root=reference").wait() == 0
    stored = [*small, f"store.root={bucket}"]
    for cache in ("here", "there"):
        sweep = driver(own, *stored, f"store.cache={cache}", sleep_s=0.1)
        before = len(objects(bucket))
        wait_for(lambda: len(objects(bucket)) > before + 40)  # noqa: B023 (called at once)
        os.kill(sweep.pid, signal.SIGKILL)
        sweep.wait()
    assert driver(own, *stored, "store.cache=elsewhere").wait() == 0, (own / "driver.log").read_text()[-4000:]
    assert driver(own, *stored, "store.cache=yet_elsewhere").wait() == 0
    assert "0 steps run" in (own / "driver.log").read_text().rpartition("steps to run")[2]
    results = load(bucket, "small", tmp_path / "notebook")
    reference = tables(own / "reference")
    for trial, record in results.trials.items():
        for task, ref in under(record.steps, "compare").items():
            found = results.store.find(ref)
            assert found is not None
            assert (found / "comparison.parquet").read_bytes() == reference[f"compare/{found.name}"]
            assert results.samples(trial, task).num_rows in (60, 40)
    assert (results.report_dir() / "summary.parquet").read_bytes() == reference["summary"]
    assert pq.read_table(results.report_dir() / "summary.parquet").num_rows
