"""Which files are an installed package's, wherever packages are installed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stages
from stages.evaluate.installed import installed_places, is_installed

PACKAGE = Path(stages.__file__).parent


@pytest.fixture(autouse=True)
def _looked_for_anew() -> Iterator[None]:
    installed_places.cache_clear()
    yield
    installed_places.cache_clear()


def test_a_folder_of_the_path_with_distributions_holds_packages_and_one_without_holds_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``pip install --target`` makes it, a user's site, or a system's."""
    for place in ("target", "own"):
        (tmp_path / place / "module").mkdir(parents=True)
    (tmp_path / "target" / "module-1.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, "", str(tmp_path / "target"), str(tmp_path / "own")])
    assert is_installed(tmp_path / "target" / "module" / "code.py")
    assert not is_installed(tmp_path / "own" / "module" / "code.py")


def test_of_this_package_all_but_its_tasks_is_installed() -> None:
    assert is_installed(PACKAGE / "evaluate" / "answer.py")
    assert not is_installed(PACKAGE / "tasks" / "any" / "task.yaml")
    assert is_installed(Path(pytest.__file__))
