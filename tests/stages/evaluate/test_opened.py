"""A task may read what the plan has digested, and nothing else: what else it opens is named, and refused."""

import itertools
import json

import pytest

from stages.errors import ConfigError, DataError
from stages.evaluate.config import PromptConfig
from stages.evaluate.harness import BuiltTask, load_task

pytestmark = pytest.mark.dear

ROWS = [{"question": f"Is {number} even?", "gold": number % 2} for number in range(4)]
BODY = 'test_split: test\noutput_type: multiple_choice\ndoc_to_choice: ["yes", "no"]\ndoc_to_target: gold\n'
PLAIN = 'doc_to_text: "{{question}}"\n'
LINES = "metric_list: [{metric: acc}]\n"
CODE = """
import os
import datasets
PLACE = os.environ["ELSEWHERE"]
def rows(**options):
    return {"test": datasets.Dataset.from_json(f"{PLACE}/rows.jsonl", cache_dir=f"{PLACE}/{len(os.listdir(PLACE))}")}
def read(docs):
    return docs if open(f"{PLACE}/words.txt").read() else docs
def text(doc):
    with open(os.path.join(PLACE, "prompt.txt")) as file:
        return file.read() + doc["question"]
def written(docs):
    with open(f"{PLACE}/note.txt", "w") as file:
        file.write("one")
    return docs if open(f"{PLACE}/note.txt").read() else docs
def beside(docs):
    return docs if open(os.path.join(os.path.dirname(__file__), "code" + ".py")).read() else docs
"""
OWN = "custom_dataset: !function code.rows\n"
JSON = "dataset_path: json\ndataset_kwargs: {data_files: {test: ROWS}}\n"
TASKS = {
    "makes_rows": OWN + PLAIN,
    "reads": JSON + PLAIN + "process_docs: !function code.read\n",
    "given": JSON + PLAIN,
    "writes": JSON + PLAIN + "process_docs: !function code.written\n",
    "beside": JSON + PLAIN + "process_docs: !function code.beside\n",
    "asks": JSON + "doc_to_text: !function code.text\n",
    "lacks": JSON + PLAIN + "process_docs: !function lacks.docs\n",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Tasks, and a folder elsewhere."""
    tasks, elsewhere = tmp_path_factory.mktemp("tasks"), tmp_path_factory.mktemp("elsewhere")
    (tasks / "code.py").write_text(CODE)
    (tasks / "lacks.py").write_text("import no_such_package\ndef docs(rows): return rows\n")
    (elsewhere / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name in ("words", "prompt"):
        (elsewhere / f"{name}.txt").write_text(f"{name}\n")
    for name, text in TASKS.items():
        said = text.replace("ROWS", str(elsewhere / "rows.jsonl"))
        (tasks / f"{name}.yaml").write_text(f"task: {name}\n{BODY}{LINES}{said}")
    return tasks, elsewhere


@pytest.fixture
def load(places, tmp_path, monkeypatch):
    """Loads a task that may read the named files of the folder elsewhere."""
    tasks, elsewhere = places
    monkeypatch.setenv("ELSEWHERE", str(elsewhere))
    numbers = itertools.count()

    def loaded(name, *reads):
        allowed = [str(elsewhere / read) for read in reads]
        read = load_task(name, {}, [str(tasks)], {}, tmp_path / f"rows_{next(numbers)}", allowed)
        return BuiltTask(read, PromptConfig(apply_chat_template=False), None)

    return loaded


@pytest.mark.parametrize(
    ("name", "reads", "unknown"),
    [
        ("makes_rows", (), "rows.jsonl"),
        ("given", (), "rows.jsonl"),
        ("reads", ("rows.jsonl",), "words.txt"),
    ],
)
def test_what_a_task_reads_unforeseen_is_refused_in_one_line(load, name, reads, unknown):
    with pytest.raises(
        DataError, match=rf"^task {name} reads /.*/elsewhere0/{unknown}, which the plan did not know of"
    ):
        load(name, *reads)
    assert len(load(name, *reads, unknown).documents(range(4))) == 4


def test_prompts_read_no_unforeseen_files_either(load):
    with pytest.raises(DataError, match=r"elsewhere0/prompt.txt, which the plan did not know of"):
        load("asks", "rows.jsonl").documents(range(4))
    documents = load("asks", "rows.jsonl", "prompt.txt").documents(range(4))
    assert documents[0].instances[0].args[0].startswith("prompt\nIs 0 even?")


@pytest.mark.parametrize("name", ["writes", "beside"])
def test_what_a_task_wrote_itself_or_has_beside_it_may_be_read(load, name):
    assert len(load(name, "rows.jsonl").documents(range(4))) == 4


def test_a_module_that_needs_a_package_is_no_fault_of_the_data(load):
    with pytest.raises(
        ConfigError, match=r"^task lacks cannot be scored in this environment: its module lacks.py needs"
    ):
        load("lacks", "rows.jsonl")
