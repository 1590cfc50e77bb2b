"""The prompts of the cards in ``conf/task``, document by document, against lm-eval's own ``build_all_requests``."""

import os
from pathlib import Path

import pytest
import yaml

import conf
from stages.evaluate.config import PromptConfig
from stages.evaluate.digests import prompt_digest
from stages.evaluate.harness import BuiltTask, load_task
from stages.evaluate.task_index import build_index

HUB = Path(os.environ.get("QUANTSWEEP_DATA", Path(__file__).parents[3] / "../shared/data/hub"))
NUM_DOCS = 24
CARDS = {  # card -> the leaf that stands for it
    "mmlu": "mmlu_anatomy",
    "mmlu_generative": "mmlu_llama_anatomy",
    "mmlu_cot": "mmlu_cot_llama_anatomy",
    "arc_challenge": "arc_challenge",
    "arc_challenge_generative": "arc_challenge_llama",
    "gsm8k_cot": "gsm8k_cot_llama",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "truthfulqa": "truthfulqa_mc2",
    "ifeval": "ifeval_strict",
    "bbh": "leaderboard_bbh_boolean_expressions",
    "gpqa": "leaderboard_gpqa_main",
    "musr": "leaderboard_musr_murder_mysteries",
    "mmlu_pro": "leaderboard_mmlu_pro",
}


@pytest.fixture(scope="module")
def model(smollm2):
    from transformers import AutoTokenizer

    from stages.evaluate.engines.harness_model import HarnessModel

    return HarnessModel(AutoTokenizer.from_pretrained(smollm2), 4096)


@pytest.mark.parametrize("card", CARDS)
def test_prompts_are_lm_evals(card, model, tmp_path):
    settings = yaml.safe_load((Path(conf.__file__).parent / "task" / f"{card}.yaml").read_text())
    (hub_id,) = settings["datasets"]
    if not (HUB / hub_id).is_dir():
        pytest.skip(f"QUANTSWEEP_DATA holds no {hub_id}")
    names = ("num_fewshot", "apply_chat_template", "fewshot_as_multiturn")
    prompt = PromptConfig(**{name: settings[name] for name in names if name in settings})
    overrides = settings.get("overrides", {})

    task = load_task(CARDS[card], overrides, (), {hub_id: HUB / hub_id}, tmp_path / "ours")
    documents = BuiltTask(task, prompt, model.apply_chat_template).documents(range(NUM_DOCS))
    expected = lm_evals_digests(CARDS[card], hub_id, prompt, model, tmp_path / "theirs")
    assert [document.error for document in documents] == [None] * NUM_DOCS
    assert [prompt_digest(document.instances) for document in documents] == expected
    assert len(set(expected)) == NUM_DOCS


def lm_evals_digests(name, hub_id, prompt, model, cache_dir):
    """By lm-eval alone: its own loader, with the data set named by its path, and its own way through a task."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=str(build_index()[name].path.parent))
    local = {"dataset_path": str(HUB / hub_id), "dataset_kwargs": {"cache_dir": str(cache_dir)}}
    task = manager.load([{"group": "one", "task": [{"task": name, **local}]}])["tasks"][name]
    if prompt.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=prompt.num_fewshot)
    task.set_fewshot_seed(seed=prompt.fewshot_seed)
    task.build_all_requests(
        limit=NUM_DOCS,
        apply_chat_template=prompt.apply_chat_template,
        fewshot_as_multiturn=prompt.fewshot_as_multiturn,
        chat_template=model.apply_chat_template,
    )
    by_document = {}
    for instance in task.instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    return [prompt_digest(instances) for _, instances in sorted(by_document.items())]
