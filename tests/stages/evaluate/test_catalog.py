"""What the catalog says of tasks, against lm-eval's own index and the data of the mirror."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.errors import ConfigError
from stages.evaluate.catalog import describe
from stages.evaluate.task_index import FunctionRef, build_index, expand

HUB = Path(os.environ.get("QUANTSWEEP_DATA", Path(__file__).parents[3] / "../shared/data/hub"))
needs_hub = pytest.mark.skipif(not HUB.is_dir(), reason="QUANTSWEEP_DATA names no mirror of data sets")


@pytest.fixture(scope="module")
def index():
    return build_index()


@pytest.mark.dear
def test_names_kinds_and_settings_are_those_of_lm_evals_own_index(index):
    from lm_eval.tasks import TaskManager

    theirs = TaskManager().task_index
    kinds = {"TASK": "task", "PY_TASK": "task", "GROUP": "group", "TAG": "tag"}
    assert theirs.keys() <= index.keys()
    for name, entry in theirs.items():
        assert index[name].kind == kinds[entry.kind.name], name
        if index[name].kind == "tag":
            assert set(index[name].members) == entry.tags
        else:
            assert as_text(dict(index[name].config)) == entry.cfg, name


def as_text(value):
    """Function references spelled as lm-eval's index spells them."""
    if isinstance(value, FunctionRef):
        return str(value.folder.expanduser() / value.spec)
    if isinstance(value, dict):
        return {key: as_text(item) for key, item in value.items()}
    return [as_text(item) for item in value] if isinstance(value, list) else value


def test_facts_need_no_data_and_no_heavy_import():
    code = (
        "import sys, json; from stages.evaluate.catalog import describe; facts = describe(['mmlu', 'fda']);"
        "print(json.dumps([facts, sorted({'torch', 'lm_eval', 'datasets', 'transformers'} & {*sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    facts, heavy = json.loads(done.stdout)
    assert heavy == []
    mmlu = facts["mmlu"]
    assert len(mmlu["leaves"]) == 57
    assert mmlu["leaves"][:2] == ["mmlu_abstract_algebra", "mmlu_anatomy"]
    assert mmlu["weight_by_size"] is True
    assert mmlu["group_metric"] == "acc,none"
    assert set(mmlu["num_docs"].values()) == {None}
    assert mmlu["datasets"]["mmlu_anatomy"] == ["cais/mmlu"]
    assert facts["fda"]["datasets"] == {"fda": ["hazyresearch/based-fda"]}


def test_the_command_answers_json_with_json():
    asked = {name: [name, {}, True] for name in ("gsm8k_cot_llama", "gsm8k_cot_lama")}
    request = {"tasks": asked, "include_paths": [], "mirror": None}
    command = [sys.executable, "-m", "stages.evaluate.catalog"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    known = facts["gsm8k_cot_llama"]
    assert known["leaves"] == ["gsm8k_cot_llama"]
    assert known["metrics"]["gsm8k_cot_llama"] == ["exact_match,strict-match", "exact_match,flexible-extract"]
    assert known["group_metric"] is None, "it is no group"
    assert (known["weight_by_size"], known["num_fewshot"]["gsm8k_cot_llama"]) == (None, 8)
    assert facts["gsm8k_cot_lama"] == {"error": "unknown task 'gsm8k_cot_lama': did you mean 'gsm8k_cot_llama'?"}


def test_members_come_in_lm_evals_order_with_what_groups_lay_over_them(index):
    members = expand(index, "openllm")
    assert list(members)[:2] == ["arc_challenge", "hellaswag"]
    assert members["arc_challenge"] == {"fewshot_split": "train", "num_fewshot": 25}
    assert members["mmlu_anatomy"] == {"num_fewshot": 5}
    assert list(expand(index, "leaderboard_gpqa")) == [
        f"leaderboard_gpqa_{part}" for part in ("diamond", "extended", "main")
    ]
    assert next(iter(expand(index, "multimedqa"))) == "pubmedqa"


def test_a_member_that_has_no_name_of_its_own_is_refused(index):
    with pytest.raises(ConfigError, match="inside itself"):
        expand(index, "t0_eval")
    with pytest.raises(ConfigError, match="by a function"):
        expand(index, "darija_translation")


GROUP = "group: pair\ntask: [one_leaf, two_leaf]\naggregate_metric_list: [{metric: exact_match, filter_list: loose}]\n"
LEAF = """task: {name}
dataset_path: own/rows
test_split: test
metric_list: [{{metric: exact_match}}]
filter_list: [{{name: strict, filter: []}}, {{name: {loose}, filter: []}}]
"""


@pytest.mark.dear
@pytest.mark.parametrize(("other", "metric"), [("loose", "exact_match,loose"), ("none", None)])
def test_the_metric_that_a_group_averages_is_its_own_if_each_leaf_has_it(tmp_path, other, metric):
    (tmp_path / "pair.yaml").write_text(GROUP)
    for name, loose in (("one_leaf", "loose"), ("two_leaf", other)):
        (tmp_path / f"{name}.yaml").write_text(LEAF.format(name=name, loose=loose))
    assert describe(["pair"], [str(tmp_path)])["pair"]["group_metric"] == metric


@pytest.mark.dear
def test_a_leaf_that_a_group_has_twice_is_refused_where_the_two_differ(tmp_path):
    (tmp_path / "leaf.yaml").write_text(LEAF.format(name="leaf", loose="loose"))
    for name, second in (("same", "leaf"), ("other", "{task: leaf, num_fewshot: 3}")):
        (tmp_path / f"{name}.yaml").write_text(f"group: {name}\ntask: [leaf, {second}]\n")
    facts = describe(["same", "other"], [str(tmp_path)])
    assert facts["same"]["leaves"] == ["leaf"]
    assert "has leaf twice" in facts["other"]["error"]


@pytest.mark.dear
def test_a_users_tasks_are_found_and_override(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ncustom_dataset: !function mine.rows\ntest_split: test\ndoc_to_text: x\n"
    )
    (tmp_path / "mine.py").write_text("def rows(**options):\n    raise OSError('no network here')\n")
    (tmp_path / "mmlu.yaml").write_text("group: mmlu\ntask: [arc_easy, mine_not]\n")
    facts = describe(["mine", "mmlu"], [str(tmp_path)])
    assert "no network here" in facts["mine"]["error"]
    assert "mine_not" in facts["mmlu"]["error"]


@pytest.mark.dear
def test_rows_that_a_task_makes_itself_are_counted():
    facts = describe(["tabular", "mathador"])
    assert facts["tabular"]["datasets"] == {leaf: [] for leaf in facts["tabular"]["leaves"]}
    assert all(count > 100 for count in facts["tabular"]["num_docs"].values())
    assert facts["mathador"]["num_docs"]["mathador"] > 100


@pytest.mark.dear
@needs_hub
def test_documents_are_counted_from_the_mirror():
    tasks = ["mmlu_abstract_algebra", "hellaswag", "arc_challenge", "gsm8k_cot_llama", "leaderboard_ifeval", "piqa"]
    facts = describe(tasks, mirror=HUB)
    counts = {name: facts[name]["num_docs"][name] for name in tasks}
    assert counts == {
        "mmlu_abstract_algebra": 100,
        "hellaswag": 10042,
        "arc_challenge": 1172,
        "gsm8k_cot_llama": 1319,
        "leaderboard_ifeval": 541,
        "piqa": None,
    }


@pytest.mark.dear
def test_default_metrics_are_lm_evals():
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    from stages.evaluate.catalog import _DEFAULT_METRICS

    assert _DEFAULT_METRICS == DEFAULT_METRIC_REGISTRY
