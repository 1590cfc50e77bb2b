"""Stored answers are scored without a model: by shards, leaves and repeats, and what does not fit is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stages.documents import read_table
from stages.errors import ConfigError, DataError
from stages.evaluate.answers import ANSWERS, Answer, Answered, AnswerFacts, read_answers, write_answers
from stages.evaluate.artifact import read_leaf_facts, read_samples
from stages.evaluate.config import LeafConfig, ScoreConfig, ScoringConfig
from stages.evaluate.digests import digest
from stages.evaluate.reasoning import Reasoning
from stages.evaluate.score import score

pytestmark = pytest.mark.dear

FACTS = AnswerFacts(
    task="sums", version=1.0, output_type="generate_until", num_docs=30, reasoning=None, scoring={},
    arithmetic={"method": "dense"}, comparable={"engine": "vllm", "dtype": "float32"},
)  # fmt: skip
ROWS = [{"question": f"What is {number} and 1?", "answer": str(number + 1)} for number in range(30)]
TASK = """
task: {name}
dataset_path: own/sums
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
filter_list: [{{name: number, filter: [{{function: regex, regex_pattern: "([0-9]+)"}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
VOTES = """
include: sums.yaml
task: votes
filter_list:
- name: vote
  filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: majority_vote}, {function: take_first}]
"""
OWN = """
include: sums.yaml
task: own
process_results: !function own.process_results
metric_list:
- {metric: right, aggregation: mean, higher_is_better: true}
- {metric: whole, aggregation: mean, higher_is_better: true}
- {metric: part, aggregation: mean, higher_is_better: true}
"""
PICKS = """
task: picks
dataset_path: own/sums
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["{{answer}}", "none"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""
BEGINNINGS = """
include: picks.yaml
task: beginnings
doc_to_text: "{{ 1 }}"
doc_to_choice: "{{[question + ' No,', question + ' Yes,']}}"
doc_to_target: "it is."
"""
CODE = """
def process_results(doc, results):
    right = results[0] == doc["answer"]
    return {"right": right, "whole": int(right), "part": float(right)}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of tasks and a data set."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "tasks").mkdir()
    (folder / "data").mkdir()
    for name in ("sums", "others"):
        (folder / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name))
    (folder / "tasks" / "votes.yaml").write_text(VOTES)
    (folder / "tasks" / "own.yaml").write_text(OWN)
    (folder / "tasks" / "picks.yaml").write_text(PICKS)
    (folder / "tasks" / "beginnings.yaml").write_text(BEGINNINGS)
    (folder / "tasks" / "own.py").write_text(CODE)
    (folder / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture
def shard(tmp_path):
    """Writes answers: texts by document, ``repeats`` of them, the first with the seed ``first_seed``."""

    def write(texts, name="0000", facts=FACTS, first_seed=0, **fields):
        out = tmp_path / f"{facts.task}-{name}"
        out.mkdir()
        rows = [
            Answered(
                doc_id=doc_id,
                doc_digest=digest(ROWS[doc_id]),
                prompt_digest=f"p{doc_id}",
                num_requests=1,
                answers=[
                    Answer(text=text, finish_reason="stop", seed=1000 * doc_id + first_seed + number, **fields)
                    for number, text in enumerate(each)
                ],
            )
            for doc_id, each in texts.items()
        ]
        write_answers(out, rows, facts)
        return out

    return write


@pytest.fixture
def run(place, tmp_path):
    def scored(shards, leaves=("sums",), **scoring):
        compat, cluster = scoring.pop("harness_compat", False), scoring.pop("cluster", None)
        config = ScoreConfig(
            leaves=[LeafConfig(task=leaf, harness="h") for leaf in leaves],
            scoring=ScoringConfig(**scoring),
            harness_compat=compat,
            cluster=cluster,
            include_paths=[str(place / "tasks")],
        )
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        metrics = score(config, {"data:own/sums": place / "data", **shards}, out)
        return metrics, read_samples(out).to_pylist(), read_leaf_facts(out)

    return scored


def test_shards_and_leaves_become_rows_in_their_order(run, shard):
    later = shard({3: ["4"], 4: ["no number"]}, "0001")
    first = shard({0: ["It is 1."], 1: ["7"]})
    others = shard({0: ["1"]}, facts=replace(FACTS, task="others"))
    shards = {"sums/0001": later, "sums/0000": first, "others/0000": others}
    metrics, rows, facts = run(shards, ("sums", "others"))
    assert [(row["leaf"], row["doc_id"], row["exact_match,number"]) for row in rows] == [
        ("sums", 0, 1.0), ("sums", 1, 0.0), ("sums", 3, 1.0), ("sums", 4, 0.0), ("others", 0, 1.0),
    ]  # fmt: skip
    assert [row["target"] for row in rows[:2]] == ["1", "2"] and rows[0]["responses"] == ["It is 1."]
    assert metrics == {"num_documents": 5, "num_missing": 0}
    assert list(facts) == ["sums", "others"] and facts["sums"].comparable == FACTS.comparable


def test_a_document_is_kept_as_its_task_puts_it_with_what_it_may_be_answered_with(run, shard):
    """Without examples and template; beginnings of one text are its choices, what they share is the question."""
    facts = replace(FACTS, output_type="multiple_choice")
    worths = [Answer(logprob=worth, is_greedy=False) for worth in (-1.0, -2.0)]
    found = {}
    for task in ("picks", "beginnings"):
        out = shard({3: []}, task, facts=replace(facts, task=task))
        answered = Answered(doc_id=3, doc_digest=digest(ROWS[3]), prompt_digest="p", num_requests=2, answers=worths)
        write_answers(out, [answered], replace(facts, task=task))
        found[task] = run({f"{task}/0000": out}, (task,))[1][0]
    assert (found["picks"]["question"], found["picks"]["target"]) == ("What is 3 and 1?", "0")
    assert found["beginnings"]["question"] == "it is."
    assert found["beginnings"]["choices"] == ["What is 3 and 1? No,", "What is 3 and 1? Yes,"]
    assert found["beginnings"]["loglikelihoods"] == [-1.0, -2.0]
    written = run({"sums/0000": shard({0: ["1"]})})[1][0]
    assert (written["question"], written["choices"]) == ("What is 0 and 1?", None)


def test_repeats_have_the_mean_and_what_is_asked_of_them(run, shard):
    """Thirty problems, twenty answers each; problem p has p right ones, up to all; in shards over repeats, too."""
    texts = {p: [str(p + 1)] * min(p, 20) + ["0"] * (20 - min(p, 20)) for p in range(30)}
    whole = {"sums/0000": shard(texts)}
    parts = {
        "sums/0000": shard({p: each[:8] for p, each in texts.items()}, "a"),
        "sums/0001": shard({p: each[8:] for p, each in texts.items()}, "b", first_seed=8),
    }
    found = [run(shards, pass_at=[1, 5, 10], majority=True)[1] for shards in (whole, parts)]
    assert found[0] == found[1]
    for row in found[0]:
        right = min(row["doc_id"], 20)
        assert row["exact_match,number"] == pytest.approx(right / 20) == row["exact_match_pass@1,number"]
        assert row["exact_match_majority@20,number"] == (1.0 if right >= 10 else 0.0)
        assert len(row["responses"]) == 20
    assert run(whole, harness_compat=True)[1][10]["exact_match,number"] == 1.0, "lm-eval scores the first"


def test_the_kind_of_a_metric_is_declared_and_not_how_its_values_look(run, shard):
    """lm-eval's own scorer by name, a task's own code by the type of what it returns; means of repeats are graded."""
    given = shard({0: ["1"], 1: ["9"]})
    (facts,) = run({"sums/0000": given})[2].values()
    assert facts.metrics["exact_match,number"].kind == "right_or_wrong"
    repeated = shard({0: ["1", "1"], 1: ["9", "9"]}, "twice")
    (facts,) = run({"sums/0000": repeated}, pass_at=[1, 2])[2].values()
    kinds = {name: metric.kind for name, metric in facts.metrics.items()}
    assert kinds == {
        "exact_match,number": "graded", "exact_match_pass@1,number": "graded", "exact_match_pass@2,number": "pass_at",
    }  # fmt: skip
    (facts,) = run({"own/0000": shard({0: ["1"]}, facts=replace(FACTS, task="own"))}, ("own",))[2].values()
    kinds = {name.partition(",")[0]: metric.kind for name, metric in facts.metrics.items()}
    assert kinds == {"right": "right_or_wrong", "whole": "right_or_wrong", "part": "graded"}


def test_a_declared_field_says_which_documents_belong_together(run, shard):
    shards = {"sums/0000": shard({0: ["1"], 1: ["2"]})}
    _, rows, (facts,) = [*run(shards, cluster="answer")[:2], run(shards, cluster="answer")[2].values()]
    assert [row["cluster"] for row in rows] == [digest("1"), digest("2")] and facts.cluster == "answer"
    assert {row["cluster"] for row in run(shards)[1]} == {None}
    with pytest.raises(ConfigError, match="cluster=story is no field of its documents; they have question, answer"):
        run(shards, cluster="story")


def test_a_task_that_votes_gets_all_answers_at_once(run, shard):
    given = shard({1: ["2", "3", "2"], 2: ["2", "2", "3"]}, facts=replace(FACTS, task="votes"))
    _, rows, _ = run({"votes/0000": given}, ("votes",))
    assert [row["exact_match,vote"] for row in rows] == [1.0, 0.0]


@pytest.mark.parametrize("asked", [{"pass_at": [1]}, {"majority": True}])
def test_what_is_asked_of_repeats_is_told_or_refused(run, shard, asked):
    one = shard({0: ["1"], 1: ["2"]}, "one")
    voting = shard({1: ["2", "3", "2"], 2: ["2", "2", "3"]}, facts=replace(FACTS, task="votes"))
    for shards, leaf in (({"sums/0000": one}, "sums"), ({"votes/0000": voting}, "votes")):
        with pytest.raises(ConfigError, match=f"{next(iter(asked))} needs several answers to a document"):
            run(shards, (leaf,), **asked)


def test_tokens_are_not_read_again(shard):
    """They are most of what answers of thousands of tokens take in memory, and no score needs them."""
    out = shard({0: ["1"]}, token_ids=(5, 6))
    assert read_table(out / ANSWERS).to_pylist()[0]["token_ids"] == [[5, 6]]
    (answered,) = read_answers(out)
    assert answered.answers[0].text == "1" and answered.answers[0].token_ids is None


def test_more_tries_than_answers_are_refused(run, shard):
    with pytest.raises(ConfigError, match="pass_at=3 needs as many answers to a document, and there are 2"):
        run({"sums/0000": shard({0: ["1", "2"]})}, pass_at=[3])


def test_thoughts_are_kept_and_only_the_answer_is_scored(run, shard):
    facts = replace(FACTS, reasoning=Reasoning(start="<think>", end="</think>"))
    texts = {0: ["<think>7, no</think>1"], 1: ["<think>2, no 3, no"]}
    given = shard(texts, facts=facts, opening="")
    _, rows, _ = run({"sums/0000": given})
    assert [row["exact_match,number"] for row in rows] == [1.0, 0.0]
    assert [row["thoughts"] for row in rows] == [["7, no"], ["<think>2, no 3, no"]]
    assert [row["thinking"] for row in rows] == [True, True]
    assert [row["responses"] for row in rows] == [["1"], [""]]


def test_another_document_than_the_one_that_was_asked_is_not_scored(run, shard, place):
    given = shard({0: ["1"], 1: ["2"]})
    changed = ROWS[0] | {"answer": "one"}
    kept = (place / "data" / "test.jsonl").read_text()
    (place / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [changed, *ROWS[1:]]))
    try:
        _, rows, _ = run({"sums/0000": given})
    finally:
        (place / "data" / "test.jsonl").write_text(kept)
    assert [row["error"] for row in rows] == [
        "not scored: its data holds another document than the one that was asked", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"comparable": FACTS.comparable | {"dtype": "bfloat16"}}, 'dtype is "float32" in shard sums/0000 and "bfloat'),
        ({"arithmetic": {"method": "simulated"}}, "sums: two arithmetics: method is"),
        ({"version": 2.0}, "version is 1.0 in shard sums/0000 and 2.0"),
        ({"task": "others"}, "sums/0001: holds answers to task others"),
    ],
)
def test_shards_that_were_not_asked_alike_are_refused(run, shard, facts, says):
    shards = {"sums/0000": shard({0: ["1"]}), "sums/0001": shard({1: ["2"]}, "b", replace(FACTS, **facts))}
    with pytest.raises(DataError, match=says) as refused:
        run(shards)
    assert "\n" not in str(refused.value)


def test_shards_that_overlap_or_fall_short_are_refused(run, shard):
    with pytest.raises(DataError, match="document 1 is in two shards"):
        run({"sums/0000": shard({0: ["1"], 1: ["2"]}), "sums/0001": shard({1: ["2"]}, "b")})
    with pytest.raises(DataError, match="documents have 1 and 2 answers; a shard is missing"):
        run({"sums/0000": shard({0: ["1"]}, "c"), "sums/0001": shard({1: ["2", "2"]}, "d")})
    with pytest.raises(DataError, match="sums: no answers were given"):
        run({})


def test_scoring_loads_no_model_library(shard, place, tmp_path):
    """So that a node without one can do it."""
    given = shard({0: ["1"]})
    code = f"""
import sys
from pathlib import Path
from stages.evaluate.config import LeafConfig, ScoreConfig
from stages.evaluate.score import score
config = ScoreConfig(leaves=[LeafConfig(task="sums", harness="h")], include_paths=[{str(place / "tasks")!r}])
out = Path({str(tmp_path / "scored")!r}); out.mkdir()
print(score(config, {{"data:own/sums": Path({str(place / "data")!r}), "sums/0000": Path({str(given)!r})}}, out))
print({{"torch", "vllm", "transformers"}} & {{*sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert done.stdout.splitlines() == ["{'num_documents': 1, 'num_missing': 0}", "set()"], done.stderr[-2000:]
