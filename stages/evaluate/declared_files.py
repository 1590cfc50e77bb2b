"""The files of a data set's parts and splits, where the head of its README names them plainly.

The datasets library finds the same, after an import of 3 s and a look at every part for each part that is asked for
(57 subjects of MMLU).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

Splits = Mapping[str, list[Path]]

_HEAD = re.compile(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_NOT_PLAIN = re.compile(r"\.\.|\*\*|[\[\]{}?!]|:")  # what the library reads in a way of its own
_OTHER_DESCRIPTIONS = (".huggingface.yaml", "dataset_infos.json")
_KEYS = {"config_name", "default", "data_files"}


def declared_files(folder: Path) -> Mapping[str | None, Splits] | None:
    """Parquet files by part and split, the part that is read by default also under None.

    None where anything is not plain, so that the datasets library must find the files.
    """
    configs = _configs(folder)
    if configs is None:
        return None
    files = _files(folder)
    parts: dict[str | None, Splits] = {}
    for config in configs:
        splits = _splits(config, files, folder)
        if splits is None or config["config_name"] in parts:
            return None
        parts[str(config["config_name"])] = splits
    defaults = [each["config_name"] for each in configs if _is_default(each, len(configs))]
    if len(defaults) > 1:
        return None
    return parts | {None: parts[defaults[0]]} if defaults else parts


def _configs(folder: Path) -> list[dict[str, Any]] | None:
    readme = folder / "README.md"
    if not readme.is_file() or any((folder / name).exists() for name in _OTHER_DESCRIPTIONS):
        return None
    head = _HEAD.match(readme.read_text(encoding="utf-8"))
    try:
        said = yaml.load(head[1], getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if head else None
    except yaml.YAMLError:
        return None
    configs = said.get("configs") if isinstance(said, dict) else None
    is_plain = isinstance(configs, list) and configs and all(map(_is_plain, configs))
    return configs if is_plain else None


def _is_plain(config: Any) -> bool:
    if not isinstance(config, dict) or not {"config_name", "data_files"} <= config.keys() <= _KEYS:
        return False
    files = config["data_files"]
    return isinstance(config["config_name"], str) and isinstance(files, list) and all(map(_is_plain_split, files))


def _is_plain_split(said: Any) -> bool:
    if not isinstance(said, dict) or said.keys() != {"split", "path"} or not isinstance(said["split"], str):
        return False
    return isinstance(said["path"], str) and not _NOT_PLAIN.search(said["path"]) and said["path"][:1] not in ("/", "~")


def _is_default(config: Mapping[str, Any], num_configs: int) -> bool:
    return num_configs == 1 or config["config_name"] == "default" or bool(config.get("default"))


def _splits(config: Mapping[str, Any], files: list[str], folder: Path) -> Splits | None:
    splits: dict[str, list[Path]] = {}
    for said in config["data_files"]:
        pattern = re.compile(re.escape(os.path.normpath(said["path"])).replace(r"\*", "[^/]*"))
        found = [file for file in files if pattern.fullmatch(file)]
        if not found or said["split"] in splits or not all(file.endswith(".parquet") for file in found):
            return None
        splits[said["split"]] = [folder / file for file in found]
    return splits


def _files(folder: Path) -> list[str]:
    """All that is not hidden, by its path from the folder."""
    found: list[str] = []
    for path, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__")))
        here = os.path.relpath(path, folder)
        found += (os.path.normpath(f"{here}/{name}") for name in sorted(names) if not name.startswith("."))
    return found
