"""IFEval: lm-eval's prompts and checks, and the mean of its two strict accuracies."""

import os
from pathlib import Path

import pytest

from stages.evaluate.config import PromptConfig
from stages.evaluate.digests import prompt_digest
from stages.evaluate.harness import BuiltTask, load_task
from stages.evaluate.nltk_data import provide_nltk_data
from stages.tasks.ifeval_strict.ifeval_strict import mean_of_both_levels

pytestmark = pytest.mark.dear

HUB = Path(os.environ.get("QUANTSWEEP_DATA", Path(__file__).parents[3] / "../shared/data/hub"))
HUB_ID = "wis-k/instruction-following-eval"
RESPONSES = [
    "",
    "I will not.",
    "* one\n* two\n* three",
    "<<TITLE>> ALL IN CAPITALS",
    "no comma, one comma. Yes\n\nP.S. x",
]


def test_the_score_is_the_mean_of_prompts_and_instructions():
    assert mean_of_both_levels([[True], [True, False, False, False]]) == (1 / 2 + 2 / 5) / 2


@pytest.mark.skipif(not (HUB / HUB_ID).is_dir(), reason="QUANTSWEEP_DATA names no mirror with IFEval")
def test_prompts_and_verdicts_are_lm_evals(tmp_path):
    provide_nltk_data(tmp_path)
    names = {"ours": "ifeval_strict", "theirs": "leaderboard_ifeval"}
    tasks = {side: load_task(name, {}, (), {HUB_ID: HUB / HUB_ID}, tmp_path / side) for side, name in names.items()}
    documents = {
        side: BuiltTask(task, PromptConfig(apply_chat_template=False), None).documents(range(100))
        for side, task in tasks.items()
    }
    digests = {side: [prompt_digest(document.instances) for document in built] for side, built in documents.items()}
    assert digests["ours"] == digests["theirs"]

    verdicts = {
        side: [
            tasks[side].process_results(document.doc, [RESPONSES[index % len(RESPONSES)]])
            for index, document in enumerate(built)
        ]
        for side, built in documents.items()
    }
    extra = [ours.pop("strict_acc") for ours in verdicts["ours"]]
    assert verdicts["ours"] == verdicts["theirs"]

    def aggregated(side, metric, values):
        return tasks[side].aggregation()[metric](values)

    levels = [
        aggregated("theirs", metric, [verdict[metric] for verdict in verdicts["theirs"]])
        for metric in ("prompt_level_strict_acc", "inst_level_strict_acc")
    ]
    assert 0 < levels[0] < levels[1]
    assert aggregated("ours", "strict_acc", extra) == pytest.approx(sum(levels) / 2)
