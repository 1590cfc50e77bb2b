"""Whatever a task is made of or reads belongs to its identity, however it is named; what cannot be is refused here."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.config.schema import TaskConfig
from pipeline.config.sweep import Trial
from pipeline.errors import UserError
from pipeline.planning.facts import resolve
from pipeline.planning.make_plan import make_plan
from stages.evaluate.catalog import describe
from stages.local_files import digest_files
from tests.pipeline.planning.test_plan import trials_of

pytestmark = pytest.mark.dear

BODY = """
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["yes", "no"]
doc_to_target: gold
metric_list: [{metric: acc}]
"""
# A task's settings by its name, and the file outside of its own folder that it depends on.
TASKS = {
    "by_split": ("dataset_path: json\ndataset_kwargs: {data_files: {test: HERE/data/split.jsonl}}", "data/split.jsonl"),
    "one_file": ("dataset_path: csv\ndataset_kwargs: {data_files: HERE/data/one.csv}", "data/one.csv"),
    "a_list": ("dataset_path: json\ndataset_kwargs: {data_files: {test: [HERE/data/l.json]}}", "data/l.json"),
    "a_pattern": (
        "dataset_path: json\ndataset_kwargs: {data_files: {test: HERE/data/p/**/*.jsonl}}",
        "data/p/q/r.jsonl",
    ),
    "one_comes": ("dataset_path: json\ndataset_kwargs: {data_files: HERE/data/some/*.jsonl}", "data/some/new.jsonl"),
    "relative": (
        "dataset_path: json\ndataset_kwargs: {data_files: {test: data/relative.jsonl}}",
        "data/relative.jsonl",
    ),
    "zipped": ("dataset_path: json\ndataset_kwargs: {data_files: 'zip://*.jsonl::HERE/data/z.zip'}", "data/z.zip"),
    "a_folder": ("dataset_path: HERE/data/folder", "data/folder/deep/test.jsonl"),
    "data_dir": ("dataset_path: json\ndataset_kwargs: {data_dir: HERE/data/dir}", "data/dir/test.jsonl"),
    "argument": (
        "custom_dataset: !function code.rows\ndataset_kwargs: {path: HERE/data/argument.json}",
        "data/argument.json",
    ),
    "included": ("include: ../../shared/base", "shared/base"),
    "included_twice": ("include: ../../shared/upper", "shared/lower"),
    "module": ("include: ../../shared/with_module", "shared/helper.py"),
    "importable": ("dataset_path: own/rows\nprocess_docs: !function shared.other.docs", "shared/other.py"),
    "imported": ("dataset_path: own/rows\nprocess_docs: !function imports.docs", "tasks/lib/deep.py"),
    "named_in_code": ("dataset_path: own/rows\nprocess_docs: !function names.docs", "data/words.txt"),
    "subfolder": ("dataset_path: own/rows", "tasks/subfolder/texts/intro.txt"),
    "prompt_file": ("dataset_path: own/rows\nuse_prompt: HERE/data/prompts.yaml:short", "data/prompts.yaml"),
    "laid_over": ("dataset_path: json", "data/laid_over.jsonl"),
}
FILES = {
    "shared/base": "dataset_path: own/rows\n",
    "shared/upper": "include: lower\n",
    "shared/lower": "dataset_path: own/rows\n",
    "shared/with_module": "dataset_path: own/rows\nprocess_docs: !function helper.docs\n",
    "shared/other.py": "def docs(rows): return rows\n",
    "shared/helper.py": "def docs(rows): return rows\n",
    "tasks/lib/__init__.py": "",
    "tasks/lib/deep.py": "WORDS = []\n",
    "tasks/argument/code.py": "def rows(**options): return {}\n",
    "tasks/imported/imports.py": "def docs(rows):\n    from lib.deep import WORDS\n    return rows\n",
    "tasks/named_in_code/names.py": "def docs(rows):\n    return rows if open('HERE/data/words.txt') else []\n",
}
SLOTS = {name: TaskConfig(task=name, num_docs={name: 3}, datasets={"own/rows": None}) for name in TASKS}
SLOTS["laid_over"].overrides = {"dataset_kwargs": {"data_files": {"test": "data/laid_over.jsonl"}}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tasks and what they read elsewhere in it."""
    monkeypatch.chdir(tmp_path)
    written = {file: "{}\n" for _, file in TASKS.values()} | FILES
    written["tasks/beside/models/one/model.safetensors"] = ""
    written["data/some/old.jsonl"] = written.pop("data/some/new.jsonl")
    written |= {f"tasks/{name}/{name}.yaml": f"task: {name}\n{text}{BODY}" for name, (text, _) in TASKS.items()}
    written["tasks/beside/beside.yaml"] = f"task: beside\ndataset_path: own/rows{BODY}"
    for name, text in written.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("HERE", str(tmp_path)))
    return tmp_path


def shards(here: Path, slots: Mapping[str, TaskConfig]) -> dict[str, str]:
    """The fingerprint of the answers to each slot's documents, with everything declared that data would say."""

    def trials() -> Iterator[Trial]:
        for trial in trials_of("+sweep=smoke"):
            if trial.is_base:
                trial.config.tasks, trial.config.suites = dict(slots), {}
                trial.config.data.task_paths = [str(here / "tasks")]
                yield trial

    (trial,) = trials()
    plan = make_plan(
        "test", [trial], resolve([trial], here / "tasks" / "beside" / "results" / "store" / "cache")
    ).trials[trial.name]
    roles = {slot: f"answer/{slot}/{next(iter(task.num_docs))}/0000" for slot, task in slots.items()}
    return {slot: plan.steps[role].fingerprint for slot, role in roles.items()}


def test_what_a_task_reads_elsewhere_is_what_it_is(here: Path) -> None:
    """Of all of them; of a task without any nothing changes, also where the store lies below it."""
    slots = SLOTS | {"beside": TaskConfig(task="beside", num_docs={"beside": 3}, datasets={"own/rows": None})}
    before = shards(here, slots)
    for _, file in TASKS.values():
        with (here / file).open("a") as stream:
            stream.write("\n")
    for name in ("results/store/made.json", "models/one/model.safetensors"):
        (here / "tasks" / "beside" / name).write_text("{}")
    after = shards(here, slots)
    assert [slot for slot in slots if after[slot] == before[slot]] == ["beside"]
    assert shards(here, slots) == after
    (here / "data" / "split.jsonl").unlink()
    with pytest.raises(
        UserError, match=r"^task by_split: /.*/data/split.jsonl is not there.*: put there what it reads"
    ):
        shards(here, slots)


def test_contents_count_and_places_from_where_the_name_is(tmp_path: Path) -> None:
    digests = []
    for folder in ("one", "other"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        for file in ("a.jsonl", "deep/b.jsonl"):
            (tmp_path / folder / file).write_text(file)
        names = ("", "**/*.jsonl", "a.jsonl")
        digests.append([digest_files([str(tmp_path / folder / name)]) for name in names])
    assert digests[0] == digests[1]
    (tmp_path / "one" / "deep" / "b.jsonl").rename(tmp_path / "one" / "deep" / "c.jsonl")
    renamed = [digest_files([str(tmp_path / "one" / name)]) for name in names]
    assert [new == old for new, old in zip(renamed, digests[0], strict=True)] == [False, False, True]


UNFIT = {
    "runs_code": ("unsafe_code: true", "task runs_code runs code that the model wrote; that needs a sandbox"),
    "shows_images": ("doc_to_image: [picture]", "task shows_images shows images or plays sound; only text"),
    "class_of_code": ("class: !function code.Runs", "task class_of_code runs code that the model wrote"),
    "asks_else": ("output_type: greedy", "task asks_else asks for greedy; what can be asked: loglikelihood"),
    "no_function": ("process_docs: !function lost.docs", "names the function lost.docs, which is not beside its YAML"),
    "no_package": (
        "process_docs: !function needs.docs",
        "its module needs.py needs the package no_such_package, which is not installed; leave the task out",
    ),
    "called_later": (
        "process_docs: !function later.docs",
        "later.docs needs the package no_such_package, which is not installed; leave the task out",
    ),
    "guarded": (
        "process_docs: !function guarded.docs",
        "its module guarded.py needs another version of numpy than ",
    ),
    "nameless": (
        "metric_list: [{metric: acc, aggregation: !function needs_none.total, higher_is_better: true}]",
        "metric acc is aggregated by a function that cannot be found by name",
    ),
    "class_sums": ("class: !function needs_none.Sums", "metric f1 is aggregated by a function that cannot be found"),
    "aggregated": (
        "include: ../outside/sums",
        "metric acc is aggregated by a function of .*outside/sums.py, outside of the folders of tasks",
    ),
}
MODULES = {
    "tasks/code.py": "class Runs:\n    UNSAFE_CODE = True\n",
    "tasks/needs.py": "import no_such_package\ndef docs(rows): return rows\n",
    "tasks/needs_none.py": "from functools import partial\ntotal = partial(sum, start=1)\n"
    "class Sums:\n    def aggregation(self):\n        return {'em': sum, 'f1': partial(sum, start=1)}\n",
    "tasks/later.py": "def docs(rows): return inner(rows)\n"
    "def inner(rows):\n    import no_such_package\n    return rows\n",
    "tasks/guarded.py": "from importlib.metadata import version\n"
    "try:\n    assert version('numpy') == '0.1'\n"
    "except AssertionError as error:\n    raise type(error)('pip install numpy==0.1') from error\n"
    "def docs(rows): return rows\n",
    "outside/sums": "metric_list: [{metric: acc, aggregation: !function sums.total, higher_is_better: true}]\n",
    "outside/sums.py": "def total(items): return sum(items)\n",
}
FIT = "try:\n    import no_such_package\nexcept ImportError:\n    no_such_package = None\ndef docs(rows): return rows\n"


def test_what_cannot_be_evaluated_here_is_refused_in_the_plan_however_much_is_declared(tmp_path: Path) -> None:
    written = MODULES | {"tasks/fit.py": FIT, "tasks/fit.yaml": "task: fit\nprocess_docs: !function fit.docs\n" + BODY}
    for name, (setting, _) in UNFIT.items():
        key, value = setting.split(": ", 1)
        given = dict([line.split(": ", 1) for line in BODY.strip().splitlines()])
        given = ({} if key in ("include", "class") else given) | {key: value}
        written[f"tasks/{name}.yaml"] = f"task: {name}\n" + "".join(f"{key}: {v}\n" for key, v in given.items())
    written["tasks/all.yaml"] = f"group: all\ntask: {json.dumps(['fit', *UNFIT])}\n"
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    refused = describe({"all": ("all", {}, False)}, [str(tmp_path / "tasks")])["all"]["refused"]
    assert refused.keys() == UNFIT.keys()
    for name, (_, line) in UNFIT.items():
        assert re.search(line, refused[name]) and "\n" not in refused[name], refused[name]
    slots = {leaf: TaskConfig(task="all", leaves=[leaf], num_docs={leaf: 3}) for leaf in ("fit", "runs_code")}
    with pytest.raises(UserError, match=r"^task runs_code runs code that the model wrote"):
        shards(tmp_path, slots)
