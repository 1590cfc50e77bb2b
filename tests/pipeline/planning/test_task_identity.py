"""Whatever a task is made of or reads belongs to its identity, however it is named; what cannot be is refused here."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.config.schema import TaskConfig
from pipeline.config.sweep import Trial
from pipeline.errors import UserError
from pipeline.planning.facts import resolve
from pipeline.planning.make_plan import make_plan
from stages.errors import DataError
from stages.evaluate.catalog import describe
from stages.evaluate.task_identity import check_unchanged, identities
from stages.evaluate.task_index import Entry
from stages.local_files import digest_files, local_identity
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


def is_known_by_meaning(slot: str) -> bool:
    """Whether the slot's file holds settings or code."""
    return slot.startswith("included") or TASKS[slot][1].endswith(".py")


def steps(here: Path, slots: Mapping[str, TaskConfig]) -> dict[str, list[str]]:
    """Fingerprints of each slot's answers and scores, with everything declared that data would say."""

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
    roles = {slot: (f"answer/{slot}/{next(iter(task.num_docs))}/0000", f"score/{slot}") for slot, task in slots.items()}
    return {slot: [plan.steps[role].fingerprint for role in both] for slot, both in roles.items()}


def test_what_a_task_reads_elsewhere_is_what_it_is(here: Path) -> None:
    """Of all of them; of a task without any nothing changes, also where the store lies below it."""
    slots = SLOTS | {"beside": TaskConfig(task="beside", num_docs={"beside": 3}, datasets={"own/rows": None})}
    before = steps(here, slots)
    for _, file in TASKS.values():
        with (here / file).open("a") as stream:
            stream.write("\n")
    for name in ("results/store/made.json", "models/one/model.safetensors"):
        (here / "tasks" / "beside" / name).write_text("{}")
    after = steps(here, slots)
    same = [{slot for slot in slots if after[slot][at] == before[slot][at]} for at in (0, 1)]
    assert same[1] == {"beside"}
    assert same[0] == {"beside", *filter(is_known_by_meaning, TASKS)}, "to settings and code a line break adds nothing"
    assert steps(here, slots) == after
    (here / "data" / "split.jsonl").unlink()
    with pytest.raises(
        UserError, match=r"^task by_split: /.*/data/split.jsonl is not there.*: put there what it reads"
    ):
        steps(here, slots)


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


LEAF = """
task: leaf
include: base
tag: some
fewshot_config: {sampler: first_n, samples: [{question: Is it?, gold: 0}]}
"""
BASE = """
dataset_path: own/rows
output_type: generate_until
test_split: test
process_docs: !function code.docs
doc_to_text: !function code.text
doc_to_target: gold
process_results: !function code.judge
filter_list: [{name: cut, filter: [{function: custom, filter_fn: !function code.cut}]}]
metric_list: [{metric: acc, aggregation: !function code.mean}]
"""
CODE = """
import re
import judges
from both import shared, strict
WORDS = ["yes", "no"]
NUMBER = re.compile(r"-?[0-9]+")
FORMATS = {"plain": lambda doc: doc["question"]}
def docs(rows):
    return rows.filter(kept)
def kept(row):
    return shared(row)
def text(doc):
    return FORMATS["plain"](doc) + layout(doc)  # as it stands
def layout(doc) -> "Layout":
    from later import ending
    return " or ".join(WORDS) + ending()
class Layout:
    wide = True
def judge(doc, results):
    return {"acc": compared(shared(results[0]), doc)}
def compared(answer, doc):
    return float(strict(NUMBER.findall(answer)) == judges.right(doc))
def cut(responses, docs):
    return responses
def mean(items):
    return sum(items) / len(items)
"""
MADE_OF = {
    "leaf.yaml": LEAF,
    "base": BASE,
    "other.yaml": "task: other\ninclude: base\ndoc_to_text: question\n",
    "group.yaml": "group: all\ntask: [leaf, other]\naggregate_metric_list: [{metric: acc}]\n",
    "code.py": CODE,
    "both.py": "def shared(row):\n    return row\ndef strict(found):\n    return found\n",
    "judges.py": "RIGHT = 1\ndef right(doc):\n    return RIGHT\n",
    "later.py": "def ending():\n    return '?'\n",
    "names.json": "[]",
}
# What is changed, in which file: it asks nobody again.
OF_SCORING = {
    "a filter": ("base", "name: cut", "name: part"),
    "the metrics": ("base", "metric: acc", "metric: exact"),
    "the scorer's name": ("base", "code.judge", "code.compared"),
    "a comment": ("code.py", "as it stands", "as it is"),
    "a layout of code": ("code.py", "import judges\n", "\nimport judges\n\n\n"),
    "a comment of settings": ("base", "doc_to_target: gold", "doc_to_target: gold  # the answer"),
    "a label": ("leaf.yaml", "tag: some", "tag: others"),
    "the scorer": ("code.py", '{"acc": compared', '{"acc": 1 - compared'),
    "what it calls": ("code.py", "return float(", "return 1 - float("),
    "what it calls elsewhere": ("judges.py", "return RIGHT", "return 1 - RIGHT"),
    "what it imports": ("both.py", "return found", "return found[:1]"),
    "its pattern": ("code.py", "-?[0-9]+", "[0-9]+"),
    "its constant elsewhere": ("judges.py", "RIGHT = 1", "RIGHT = 0"),
    "a filter's function": ("code.py", "return responses", "return responses[:]"),
    "an aggregation": ("code.py", "sum(items) /", "max(items) /"),
}
OF_PROMPTS = {
    "the text's function": ("code.py", "+ layout(doc)", "+ ' ' + layout(doc)"),
    "what it calls": ("code.py", '" or ".join', '", ".join'),
    "what that imports": ("later.py", "'?'", "'!'"),
    "what both use": ("both.py", "return row", "return dict(row)"),
    "a quoted type": ("code.py", "wide = True", "wide = False"),
    "a constant": ("code.py", '["yes", "no"]', '["no", "yes"]'),
    "a table": ("code.py", 'doc["question"]', 'doc["query"]'),
    "what the documents are": ("code.py", "rows.filter(kept)", "rows.filter(kept).shuffle(seed=1)"),
    "an example": ("leaf.yaml", "gold: 0", "gold: 1"),
    "a setting": ("base", "doc_to_target: gold", "doc_to_target: answer"),
    "a data file": ("names.json", "[]", "[1]"),
    "a metric that needs more requests": ("base", "metric: acc", "metric: acc_mutual_info"),
    "what a scorer's module does": ("judges.py", "RIGHT = 1", "import random\nrandom.seed(1)\nRIGHT = 1"),
    "code that finds names": ("code.py", "from later import ending", "ending = globals()['en' + 'ding']"),
}
OF_OTHERS = {
    "a sibling": ("other.yaml", "doc_to_text: question", "doc_to_text: query"),
    "a group": ("group.yaml", "metric: acc", "metric: exact"),
}
# With this in place of the first line of code, who changes the scorer may change prompts as well.
HIDDEN = {
    "by what it is called": "PARTS = [globals()[name] for name in ('ju' + 'dge',)]",
    "by a name that is put together": "PARTS = [getattr(judges, name) for name in dir(judges)]",
    "in its own file": "SOURCE = open(__file__).read()",
    "in files beside it": "from pathlib import Path\nSOURCES = list(Path(__file__).parent.glob('*'))",
    "in a module that is named": "from importlib import import_module\nPART = import_module('co' + 'de')",
    "by a decorator": "def told(function):\n    WORDS.append(function)\n    return function\n@told",
    "as a text": "NAMES = sorted(['judge'])",
    "under another name": "from code import judge as part\nPART = part",
}


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    """A task's folder, beside others'."""
    home = tmp_path / "tasks" / "leaf"
    home.mkdir(parents=True)
    for name, text in MADE_OF.items():
        (home / name).write_text(text)
    return home


def changed(home: Path, name: str, old: str, new: str) -> list[str]:
    """Which identities of the leaf another text in one of its files changes."""
    before, text = known_by(home), (home / name).read_text()
    assert text.count(old) == 1, (name, old)
    (home / name).write_text(text.replace(old, new))
    after = known_by(home)
    (home / name).write_text(text)
    return [which for which in before if after[which] != before[which]]


def known_by(home: Path) -> dict[str, str]:
    """The leaf's identities, as the worker that answers and the one that scores compute them."""
    found = identities(Entry("leaf", "task", home / "leaf.yaml", {}), {}, [])
    return {which: local_identity(home, getattr(found, which), []) for which in ("prompts", "whole")}


@pytest.mark.parametrize("what", OF_SCORING)
def test_who_changes_a_scorer_asks_nobody_again(leaf: Path, what: str) -> None:
    assert changed(leaf, *OF_SCORING[what]) == ["whole"]


@pytest.mark.parametrize("what", OF_PROMPTS)
def test_what_prompts_can_reach_is_asked_again(leaf: Path, what: str) -> None:
    assert changed(leaf, *OF_PROMPTS[what]) == ["prompts", "whole"]


@pytest.mark.parametrize("what", OF_OTHERS)
def test_another_task_of_the_folder_is_no_part_of_it(leaf: Path, what: str) -> None:
    assert changed(leaf, *OF_OTHERS[what]) == []


@pytest.mark.parametrize("what", HIDDEN)
def test_a_scorer_that_prompts_may_find_otherwise_than_by_name_is_a_part_of_them(leaf: Path, what: str) -> None:
    (leaf / "code.py").write_text(CODE.replace("def judge", f"{HIDDEN[what]}\ndef judge"))
    assert changed(leaf, *OF_SCORING["the scorer"]) == ["prompts", "whole"]


def test_a_module_that_does_nothing_but_define_is_no_other(leaf: Path) -> None:
    defined = "def text(doc):\n    return doc['question']\ndef docs(rows):\n    return rows\n"
    (leaf / "code.py").write_text(defined + "def judge(doc, results):\n    return {'acc': 1}\n")
    assert changed(leaf, "code.py", "doc['question']", "doc['query']") == ["prompts", "whole"]
    assert changed(leaf, "code.py", "'acc': 1", "'acc': 0") == ["whole"]


def test_a_task_that_is_a_class_is_one_with_its_scorer(leaf: Path) -> None:
    (leaf / "leaf.yaml").write_text("task: leaf\nclass: !function code.Layout\n")
    assert changed(leaf, *OF_SCORING["the scorer"]) == ["prompts", "whole"]


def test_code_that_nests_without_end_stays_whole(leaf: Path) -> None:
    (leaf / "code.py").write_text(CODE.replace("def judge", f"LONG = {' + '.join(['1'] * 900)}\ndef judge"))
    assert changed(leaf, *OF_SCORING["the scorer"]) == ["prompts", "whole"]


def test_a_scorer_in_a_module_of_its_own_may_change_its_place(leaf: Path) -> None:
    before = known_by(leaf)
    (leaf / "scoring.py").write_text("import math\ndef judge(doc, results):\n    return {'acc': math.pi}\n")
    (leaf / "base").write_text(BASE.replace("code.judge", "scoring.judge"))
    after = known_by(leaf)
    assert (after["prompts"] == before["prompts"], after["whole"] == before["whole"]) == (True, False)


def test_a_plan_asks_again_what_prompts_depend_on_and_scores_again_the_rest(
    leaf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One task gets another scorer, its copy other prompts."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(leaf)]))
    edits = {"leaf": OF_SCORING["the scorer"], "copy": OF_PROMPTS["the text's function"]}
    shutil.copytree(leaf, copy := leaf.with_name("copy"))
    (copy / "leaf.yaml").write_text(LEAF.replace("task: leaf", "task: copy"))
    slots = {name: TaskConfig(task=name, num_docs={name: 3}, datasets={"own/rows": None}) for name in edits}
    before = steps(leaf.parents[1], slots)
    for home, (name, old, new) in edits.items():
        file = leaf.with_name(home) / name
        file.write_text(file.read_text().replace(old, new))
    after = steps(leaf.parents[1], slots)
    differ = {name: [one != other for one, other in zip(before[name], after[name], strict=True)] for name in slots}
    assert differ == {"leaf": [False, True], "copy": [True, True]}


def test_a_worker_refuses_what_is_not_as_planned_only_where_it_matters(leaf: Path) -> None:
    """Answering looks at what makes prompts, scoring at all."""
    planned, entry = known_by(leaf), Entry("leaf", "task", leaf / "leaf.yaml", {})
    (leaf / "code.py").write_text(CODE.replace("sum(items) /", "max(items) /"))
    check_unchanged(entry, "lm_eval-0" + planned["prompts"], [], lambda: identities(entry, {}, []).prompts)
    with pytest.raises(
        DataError, match=r"^task leaf: what it reads \(/.*/tasks/leaf\) changed after the plan was made"
    ):
        check_unchanged(entry, "lm_eval-0" + planned["whole"], [], lambda: identities(entry, {}, []).whole)


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
        steps(tmp_path, slots)
