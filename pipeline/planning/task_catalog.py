"""What lm-eval says of tasks, asked in a process of its own and remembered as long as what it rests on is the same."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pipeline.config.schema import DataConfig, TaskConfig
from pipeline.errors import UserError
from pipeline.planning.remembered import cached, of_this_user, stamps, stamps_of
from stages.errors import DataError
from stages.local_files import found


def ask_catalog(tasks: Mapping[str, TaskConfig], data: DataConfig, cache_dir: Path | None) -> dict[str, Any]:
    """What lm-eval says of those tasks, by their keys.

    A process of its own is asked: lm-eval's import takes seconds, and this process stays free of torch.  Where every
    slot declares what its data would say, the answer is the same beside every store.
    """
    if not tasks:
        return {}
    needs_data = any(not task.num_docs or (data.mirror and task.num_fewshot) for task in tasks.values())
    mirror = Path(data.mirror).resolve() if data.mirror and needs_data else None
    store = cache_dir.parent.resolve() if cache_dir is not None else None
    paths = task_paths(data)
    request = {
        "tasks": {key: [task.task, task.overrides, not task.num_docs] for key, task in sorted(tasks.items())},
        "include_paths": paths,
        "mirror": str(mirror) if mirror else None,
        "leave_out": str(store) if store and any(store.is_relative_to(path) for path in paths) else None,
    }
    seen = [stamps(Path(path), store) for path in paths] + ([stamps(mirror)] if mirror else [])
    key = ["catalog 4", _packages(), stamps_of(_catalog_code()), request, seen]
    place = cache_dir if needs_data else of_this_user()
    return dict(cached(place, key, lambda: _answered(request), _still_holds)["facts"])


def _packages() -> list[str]:
    """Installed ones with their versions: tasks need some, and lm-eval is one."""
    folders = [Path(folder) for folder in sys.path if Path(folder).is_dir()]
    return sorted(path.name for folder in folders for path in folder.glob("*.dist-info"))


def _catalog_code() -> list[Path]:
    return sorted((own_tasks_dir().parent / "evaluate").glob("*.py"))


def _answered(request: Mapping[str, Any]) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "stages.evaluate.catalog"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        names = ", ".join(name for name, *_ in request["tasks"].values())
        raise UserError(f"lm-eval could not describe the tasks {names}: {last}")
    facts = json.loads(done.stdout)
    return {"facts": facts, "files": _stamps_of_reads(facts)}


def _still_holds(answer: Mapping[str, Any]) -> bool:
    """Whether the files that lie elsewhere are what they were, and names still lead there; no error is kept."""
    facts = answer["facts"].values()
    return (
        not any("error" in known for known in facts)
        and all(Path(name).exists() == there for known in facts for name, there in known["lookups"].items())
        and all(known["place"] in (None, str(Path.cwd())) for known in facts)
        and _stamps_of_reads(answer["facts"]) == answer["files"]
    )


def _stamps_of_reads(facts: Mapping[str, Any]) -> list[Any]:
    reads = [name for known in facts.values() for names in known.get("reads", {}).values() for name in names]
    return [_stamps_of_name(name) for name in dict.fromkeys(reads)]


def _stamps_of_name(name: str) -> list[Any]:
    try:
        return [name, stamps_of(found(name))]
    except DataError:
        return [name, None]


def own_tasks_dir() -> Path:
    """The folder of the lm-eval tasks that this project brings."""
    return Path(str(resources.files("stages"))) / "tasks"


def task_paths(data: DataConfig) -> list[str]:
    """Folders of lm-eval tasks beside lm-eval's own."""
    return [str(own_tasks_dir()), *(str(Path(path).resolve()) for path in data.task_paths)]
