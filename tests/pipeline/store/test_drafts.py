"""Drafts: removed when whoever made them is gone, never while it lives, wherever that is."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.store import drafts
from pipeline.store.store import Store
from tests.pipeline.fakes import note
from tests.sweeping import ROOT, wait_for

ELSEWHERE = "0" * 12
HOURS_S = 3600.0


def draft_and_die(root: Path) -> None:
    with Store(root).draft(note("a")):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a process left that was killed."""
    child = multiprocessing.get_context("fork").Process(target=draft_and_die, args=(tmp_path,))
    child.start()
    child.join()
    [path] = tmp_path.glob("note/.draft-*")
    return path


def silent_since(root: Path, seconds: float) -> None:
    for lease in (root / "drafts").iterdir():
        os.utime(lease, (time.time() - seconds,) * 2)


def test_a_draft_of_a_process_that_is_gone_is_removed_at_once(tmp_path: Path, left: Path) -> None:
    assert Store(tmp_path).remove_abandoned_drafts() == 1
    assert not left.exists()
    assert list((tmp_path / "drafts").iterdir()) == []


@pytest.mark.parametrize(("silent_s", "is_removed"), [(0, False), (0.5 * HOURS_S, False), (2 * HOURS_S, True)])
def test_elsewhere_a_draft_lives_as_long_as_it_is_renewed(
    tmp_path: Path, left: Path, monkeypatch: pytest.MonkeyPatch, silent_s: float, is_removed: bool
) -> None:
    """Its process number means nothing here, whether it is taken or not."""
    monkeypatch.setattr(drafts, "_machine", lambda: ELSEWHERE)
    silent_since(tmp_path, silent_s)
    assert Store(tmp_path).remove_abandoned_drafts() == is_removed
    assert left.exists() != is_removed


def test_a_draft_is_renewed_while_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "RENEW_EVERY_S", 0.01)
    with Store(tmp_path).draft(note("a")) as draft:
        silent_since(tmp_path, 2 * HOURS_S)
        [lease] = (tmp_path / "drafts").iterdir()
        wait_for(lambda: time.time() - lease.stat().st_mtime < HOURS_S, timeout_s=10)
        monkeypatch.setattr(drafts, "_machine", lambda: ELSEWHERE)
        assert Store(tmp_path).remove_abandoned_drafts() == 0
        assert draft.path.exists()


def test_a_driver_in_a_container_of_its_own_leaves_live_drafts_alone(tmp_path: Path) -> None:
    code = f"from pipeline.store.store import Store; print(Store({str(tmp_path)!r}).remove_abandoned_drafts())"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    with Store(tmp_path).draft(note("a")) as draft:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if "unshare" in done.stderr:
            pytest.skip(f"no namespaces here: {done.stderr}")
        assert (done.stdout, done.stderr) == ("0\n", "")
        assert draft.path.exists()


def test_what_has_no_lease_is_nobody_s_draft(tmp_path: Path) -> None:
    theirs = tmp_path / "webapp" / f".draft-0123456789ab-{os.uname().nodename}-4194303-01234567"
    theirs.mkdir(parents=True)
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / "notes").write_text("the user's own")
    for path in (theirs, tmp_path / "drafts" / "notes"):
        os.utime(path, (0, 0))
    assert Store(tmp_path).remove_abandoned_drafts() == 0
    assert theirs.exists()
    assert (tmp_path / "drafts" / "notes").exists()
