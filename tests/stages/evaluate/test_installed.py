"""Which files are an installed package's, wherever packages are installed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stages
from stages.evaluate.catalog import describe
from stages.evaluate.installed import installed_places, is_installed

PACKAGE = Path(stages.__file__).parent


@pytest.fixture(autouse=True)
def _looked_for_anew() -> Iterator[None]:
    installed_places.cache_clear()
    yield
    installed_places.cache_clear()


def test_of_a_folder_of_the_path_what_distributions_have_put_there_is_theirs_and_the_rest_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``pip install --target`` makes it, also into the folder of somebody's project."""
    record = tmp_path / "target" / "module-1.0.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    names = ("module/__init__.py", "module/code.py", '"single,one.py"', "spaced/part/__init__.py", "examples/one.py")
    record.write_text("".join(f"{name},sha256=x,1\n" for name in (*names, "../bin/script", "/etc/module")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, "", "target", str(tmp_path / "own")])
    target = tmp_path / "target"
    for name in ("module/sub/data.yaml", "single,one.py", "spaced/part/code.py", "examples/one.py"):
        assert is_installed(target / name), name
    for name in ("own.py", "tasks/mine.yaml", "examples/two.py", "spaced/other/code.py", "../bin/code.py"):
        assert not is_installed(target / name), name
    assert not is_installed(tmp_path / "own" / "module" / "code.py")


@pytest.mark.parametrize("name", ["site-packages", "dist-packages"])
def test_a_folder_for_packages_is_theirs_with_all_that_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Those of a system record nothing."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / name)])
    assert is_installed(tmp_path / name / "module" / "code.py")


def test_a_change_of_tasks_that_a_package_brings_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version is no part of what they are known by."""
    package = tmp_path / "site-packages" / "brought"
    (package / "mine").mkdir(parents=True)
    (package / "mine" / "mine.yaml").write_text("task: mine\nprocess_docs: !function code.docs\n")
    (package / "mine" / "code.py").write_text("from shared import both\n")
    (package / "shared.py").write_text("both = 1\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(package.parent)])
    facts = describe({"mine": ("mine", {}, False)}, [str(package)])["mine"]
    assert facts["homes"] == {"mine": str(package / "mine")}
    assert facts["reads"] == {"mine": [str(package / "shared.py")]}


def test_of_this_package_all_but_its_tasks_is_installed() -> None:
    assert is_installed(PACKAGE / "evaluate" / "answer.py")
    assert not is_installed(PACKAGE / "tasks" / "any" / "task.yaml")
    assert is_installed(Path(pytest.__file__))
