"""What is kept of lm-eval's index is what reading its files gives, and no longer than its files are the same."""

import os
import pickle
from pathlib import Path
from unittest.mock import Mock

import pytest

from stages.evaluate import task_index
from stages.evaluate.task_index import Index, build_index, expand, folders_of


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tasks in the place of lm-eval's own, and a user who has kept nothing."""
    folder = tmp_path / "brought"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.yaml").write_text("task: one\ntag: both\ninclude: deep/_base\nprocess_docs: !function code.docs\n")
    (folder / "deep" / "two.yaml").write_text("task: two\ntag: both\nwhen: 2024-01-01\n")
    (folder / "deep" / "_base").write_text("test_split: test\n")
    (folder / "all.yaml").write_text("group: all\ntask: [{task: one, num_fewshot: 2}, two]\n")
    monkeypatch.setattr(task_index, "task_roots", lambda include_paths=(): [folder, *map(Path, include_paths)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return folder


def unread(path: Path) -> None:
    raise AssertionError(f"{path} was read again")


def described(index: Index) -> dict[str, object]:
    return {name: (entry.kind, entry.path, dict(entry.config), entry.members) for name, entry in index.items()}


def test_what_is_kept_is_what_the_files_say(brought: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = build_index()
    monkeypatch.setattr(task_index, "_parse", unread)
    index = build_index()
    assert described(index) == described(read)
    assert index.keys() == {"one", "two", "both", "all"}
    assert index["one"].config["test_split"] == "test"
    assert index["one"].config["process_docs"].file == brought / "code.py"
    assert expand(index, "all") == {"one": {"num_fewshot": 2}, "two": {}}
    assert list(expand(index, "both")) == ["one", "two"]
    assert folders_of(index) == {brought, brought / "deep"}


def test_tasks_of_ones_own_lie_over_what_is_kept(brought: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.yaml").write_text("task: one\ntest_split: mine\n")
    for _ in range(2):
        index = build_index([str(own)])
        assert index["one"].config["test_split"] == "mine"
        assert index["two"].path == brought / "deep" / "two.yaml"
        assert folders_of(index) == {own, brought, brought / "deep"}


@pytest.mark.parametrize("change", ["include", "task", "new", "gone"])
def test_a_change_below_is_seen(brought: Path, change: str) -> None:
    before = described(build_index())
    match change:
        case "include":
            (brought / "deep" / "_base").write_text("test_split: other\n")
        case "task":
            (brought / "one.yaml").write_text("task: one\ninclude: deep/_base\ntest_split: other\n")
        case "new":
            (brought / "deep" / "three.yaml").write_text("task: three\n")
        case "gone":
            (brought / "one.yaml").unlink()
    after = build_index()
    assert described(after) != before
    assert ("one" in after) is (change != "gone")
    assert ("three" in after) is (change == "new")
    if change in ("include", "task"):
        assert after["one"].config["test_split"] == "other"


def test_a_file_that_was_overwritten_with_its_old_time_is_seen(brought: Path) -> None:
    """As ``cp -p`` does, and what unpacks archives of equal times."""
    build_index()
    file, text = brought / "deep" / "_base", "test_split: tes2\n"
    stat = file.stat()
    file.write_text(text)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert build_index()["one"].config["test_split"] == "tes2"


def test_what_another_user_wrote_is_not_unpickled(brought: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(pickle, "loads", unread)
    monkeypatch.setattr(task_index, "_parse", parse := Mock(wraps=task_index._parse))
    build_index()
    assert parse.called


def test_links_in_a_circle_and_folders_that_cannot_be_read_end_nowhere(brought: Path) -> None:
    """lm-eval does not follow the one and passes over the other."""
    (brought / "deep" / "up").symlink_to(brought)
    (brought / "gone").symlink_to(brought / "nowhere")
    (brought / "itself").symlink_to(brought / "itself")
    (brought / "closed").mkdir(mode=0)
    assert build_index().keys() == {"one", "two", "both", "all"}


@pytest.mark.parametrize("content", [b"", b"odd", None])
def test_what_was_damaged_is_read_again(brought: Path, tmp_path: Path, content: bytes | None) -> None:
    before = described(build_index())
    (file,) = (tmp_path / "caches" / "quantsweep" / "tasks").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if content is None else content)
    assert described(build_index()) == before
    assert file.read_bytes() == whole


def test_where_nothing_can_be_kept_the_files_are_read(
    brought: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = described(build_index())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert described(build_index()) == before
