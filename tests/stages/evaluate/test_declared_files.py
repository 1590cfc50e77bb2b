"""Files of a data set by its README: those that the datasets library finds, or none."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.evaluate.declared_files import declared_files
from tests.stages.evaluate.test_catalog import HUB, needs_hub

ONE = "configs:\n- config_name: default\n  data_files:\n  - {split: test, path: 'default/test-*.parquet'}\n"


def a_set(folder: Path, head: str, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"x": [1]}), folder / file)
    (folder / "README.md").write_text(f"---\n{head}---\n# A set\n")
    return folder


def test_a_part_has_its_splits_and_one_is_the_default(tmp_path: Path) -> None:
    folder = a_set(tmp_path, ONE, "default/test-0.parquet", "default/test-1.parquet", "default/.test-2.parquet")
    found = declared_files(folder)
    files = {"test": [folder / "default/test-0.parquet", folder / "default/test-1.parquet"]}
    assert found == {"default": files, None: files}


@pytest.mark.parametrize(
    "head",
    [
        "license: mit\n",
        "configs: nonsense\n",
        "configs: [\n",
        ONE.replace("test-*", "**/test-*"),
        ONE.replace("test-*", "nowhere-*"),
        ONE.replace("test-*.parquet", "*"),
        ONE.replace("default/", "/default/"),
        ONE.replace("  data_files", "  data_dir: x\n  data_files"),
        ONE.replace("split: test, path", "split: test, more: x, path"),
        ONE + ONE.removeprefix("configs:\n"),
    ],
)
def test_what_is_not_plain_is_left_to_the_library(tmp_path: Path, head: str) -> None:
    assert declared_files(a_set(tmp_path, head, "default/test-0.parquet", "default/other.json.parquet.txt")) is None


def test_another_description_or_none_is_left_to_the_library(tmp_path: Path) -> None:
    folder = a_set(tmp_path, ONE, "default/test-0.parquet")
    (folder / "dataset_infos.json").write_text("{}")
    assert declared_files(folder) is None
    assert declared_files(tmp_path / "nowhere") is None


@pytest.mark.dear
@needs_hub
@pytest.mark.parametrize("name", ["openai/gsm8k", "Rowan/hellaswag", "allenai/ai2_arc", "TAUR-Lab/MuSR"])
def test_they_are_those_that_the_library_finds(name: str, tmp_path: Path) -> None:
    import datasets

    found = declared_files(HUB / name)
    assert found is not None
    for part, splits in found.items():
        builder = datasets.load_dataset_builder(str(HUB / name), part, cache_dir=str(tmp_path))
        theirs = {split: [Path(file) for file in files] for split, files in builder.config.data_files.items()}
        assert theirs == splits
