"""Seconds to score stored answers anew: a hundred thousand word problems with GSM8K's two filters, on one core.

    python -m tests.benchmarks.rescoring

Beside it lm-eval's own loop over the same responses (filters, then ``process_results``), without reading or writing.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.evaluate.answers import Answer, Answered, AnswerFacts, write_answers
from stages.evaluate.config import LeafConfig, ScoreConfig
from stages.evaluate.digests import digest
from stages.evaluate.harness import load_task
from stages.evaluate.score import score

SHARD_SIZE = 1000
TASK = """
task: problems
dataset_path: own/problems
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], max_gen_toks: 256}
metric_list:
- metric: exact_match
  aggregation: mean
  higher_is_better: true
  ignore_case: true
  ignore_punctuation: false
  regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
filter_list:
- name: strict-match
  filter: [{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}, {function: take_first}]
- name: flexible-extract
  filter: [{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"}, {function: take_first}]
metadata: {version: 1.0}
"""
STEP = "She has {0} boxes with 12 pencils each, that is {0} * 12 = {1}, and gives {2} of them away. "


def rows(number: int) -> list[dict[str, Any]]:
    return [
        {"question": f"How many pencils are in {n} boxes?", "answer": f"{STEP}#### {n * 12}"} for n in range(number)
    ]


def text(number: int) -> str:
    """Some 500 characters; every third is wrong, every seventh says it in other words."""
    said = number * 12 + (number % 3 == 0)
    steps = "".join(STEP.format(number, number * 12, part) for part in range(5))
    return f"{steps}So the answer is {said}." if number % 7 == 0 else f"{steps}\n#### {said}"


def write(folder: Path, number: int) -> dict[str, Path]:
    """The task, its data and its answers; a step's inputs."""
    (folder / "tasks").mkdir()
    (folder / "tasks" / "problems.yaml").write_text(TASK)
    (folder / "data").mkdir()
    documents = rows(number)
    (folder / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    facts = AnswerFacts(
        task="problems", version=1.0, output_type="generate_until", num_docs=number, reasoning=None, scoring={},
        arithmetic={"method": "dense"}, comparable={},
    )  # fmt: skip
    inputs = {"data:own/problems": folder / "data"}
    for start in range(0, number, SHARD_SIZE):
        out = inputs[f"problems/{start // SHARD_SIZE:04d}"] = folder / f"shard_{start}"
        out.mkdir()
        write_answers(out, [_answered(n, documents[n]) for n in range(start, min(start + SHARD_SIZE, number))], facts)
    return inputs


def _answered(number: int, document: dict[str, Any]) -> Answered:
    answer = Answer(
        text=text(number), token_ids=list(range(160)), finish_reason="stop", stop=("Question:", "<|im_end|>"),
        num_prompt_tokens=900, num_output_tokens=160,
    )  # fmt: skip
    return Answered(
        doc_id=number, doc_digest=digest(document), prompt_digest=digest(number), num_requests=1, answers=[answer]
    )


def by_lm_eval(folder: Path, inputs: dict[str, Path], number: int) -> float:
    """Seconds of lm-eval's filters and metrics over the same responses."""
    from lm_eval.api.instance import Instance

    data = {"own/problems": inputs["data:own/problems"]}
    task = load_task("problems", {}, [str(folder / "tasks")], data, folder / "read")
    instances = [
        Instance("generate_until", doc, (), 0, metadata=("problems", n, 1)) for n, doc in enumerate(task.eval_docs)
    ]
    for n, instance in enumerate(instances):
        instance.resps = [text(n)]
    task._instances = instances
    started = time.perf_counter()
    task.apply_filters()
    for instance in instances:
        for response in instance.filtered_resps.values():
            task.process_results(copy.deepcopy(instance.doc), [response])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=100_000, help="of answers")
    number = parser.parse_args().number
    with TemporaryDirectory() as place:
        folder = Path(place)
        inputs = write(folder, number)
        config = ScoreConfig(
            leaves=[LeafConfig(task="problems", harness="bench")], include_paths=[str(folder / "tasks")]
        )
        (folder / "out").mkdir()
        started = time.perf_counter()
        metrics = score(config, inputs, folder / "out")
        ours_s = time.perf_counter() - started
        theirs_s = by_lm_eval(folder, inputs, number)
    print(json.dumps({**metrics, "score_s": round(ours_s, 1), "lm_eval_loop_s": round(theirs_s, 1)}))


if __name__ == "__main__":
    main()
