"""MATH level 5: the judge tells right from wrong as lm-eval's scorer does, and what it cannot tell is missing."""

import os
import threading
from pathlib import Path

import pytest

from stages.evaluate.harness import load_task
from stages.tasks.math_level5.judge import Judge, JudgeError

pytestmark = pytest.mark.dear

HUB = Path(os.environ.get("QUANTSWEEP_DATA", Path(__file__).parents[3] / "../shared/data/hub"))
HUB_ID = "DigitalLearningGmbH/MATH-lighteval"
TASKS = Path(__file__).parents[3] / "stages" / "tasks"
needs_hub = pytest.mark.skipif(not (HUB / HUB_ID).is_dir(), reason="QUANTSWEEP_DATA names no mirror with MATH")


@pytest.fixture(scope="module")
def judge():
    return Judge()


@pytest.mark.parametrize(
    ("reference", "response", "agrees"),
    [
        (r"It is $\boxed{\frac{1}{2}}$.", "Final Answer: The final answer is $0.5$. I hope it is correct.", True),
        (r"It is $\boxed{\frac{1}{2}}$.", r"so $\boxed{\dfrac{2}{4}}$", True),
        (r"$\boxed{(-\infty, 2]}$", r"The final answer is $(-\infty,2]$.", True),
        (r"$\boxed{(-\infty, 2]}$", r"The final answer is $(-\infty,2)$.", False),
        (r"$\boxed{x^2+2x+1}$", r"The final answer is $(x+1)^2$.", True),
        (r"$\boxed{12}$", "The final answer is $13$.", False),
        (r"$\boxed{12}$", "I do not know.", False),
    ],
)
def test_equal_answers_agree_however_they_are_written(judge, reference, response, agrees):
    assert judge.agrees(reference, response) is agrees


def test_what_the_judge_cannot_tell_is_an_error_and_not_a_wrong_answer(judge):
    with pytest.raises(JudgeError, match="holds no answer"):
        judge.agrees("no formula here", "$1$")
    hasty = Judge(answer_s=0.001)
    with pytest.raises(JudgeError, match="no verdict within"):
        hasty.agrees(r"$\boxed{12}$", "The final answer is $12$.")
    hasty._answer_s = 20
    assert hasty.agrees(r"$\boxed{12}$", "The final answer is $12$.")  # by another process


def test_the_judge_can_be_asked_from_any_thread(judge):
    told = []
    thread = threading.Thread(target=lambda: told.append(judge.agrees(r"$\boxed{7}$", "$7$")))
    thread.start()
    thread.join()
    assert told == [True]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Ours and lm-eval's, of one subject."""
    names = {"ours": "math_level5_counting_and_probability", "theirs": "leaderboard_math_counting_and_prob_hard"}
    return {
        side: load_task(name, {}, (), {HUB_ID: HUB / HUB_ID}, tmp_path_factory.mktemp(side))
        for side, name in names.items()
    }


@needs_hub
def test_documents_prompts_and_examples_are_lm_evals(tasks):
    requests = {}
    for side, task in tasks.items():
        task.build_all_requests(limit=5)
        requests[side] = [instance.args for instance in task.instances]
    assert requests["ours"] == requests["theirs"]
    assert requests["ours"][0][0].count("Problem:") == 5  # four examples and the question
    assert len(tasks["ours"].eval_docs) == 123


@needs_hub
def test_the_judge_agrees_with_lm_evals_scorer_on_reference_solutions_and_wrong_answers(tasks):
    docs = list(tasks["ours"].eval_docs)[:12]
    for doc, other in zip(docs, docs[1:] + docs[:1], strict=True):
        for response in (
            doc["solution"],
            f"Final Answer: The final answer is ${other['answer']}$. I hope it is correct.",
        ):
            (ours,) = tasks["ours"].process_results(doc, [response]).values()
            assert ours == tasks["theirs"].process_results(doc, [response])["exact_match"]
        assert tasks["ours"].process_results(doc, [doc["solution"]]) == {"exact_match": 1.0}
