"""The notebooks run on a stored small result."""

from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.dear

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
STORE = Path(__file__).parents[1] / "data" / "smoke_store"


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTSWEEP_STORE", str(STORE))
    executed = nbclient.NotebookClient(
        nbformat.read(notebook, as_version=4), timeout=120, resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("w4a16_int" in output.get("data", {}).get("text/plain", "") for output in outputs)
