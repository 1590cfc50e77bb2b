"""What evaluate writes, against lm-eval itself on the same documents; and what it refuses, loses and keeps apart."""

import hashlib
import json
import shutil
import threading
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from stages.errors import ConfigError, DataError, EngineError
from stages.evaluate.answer import announce, answer, exchange, open_session, session_key
from stages.evaluate.builders import Apart, Here
from stages.evaluate.config import AnswerConfig, EngineConfig, EngineKind, PromptConfig
from stages.evaluate.engines.protocol import Generation, Score
from stages.evaluate.order import documents_of
from stages.evaluate.session import Session
from stages.quantize import Algorithm
from tests.evaluation import evaluate

pytestmark = pytest.mark.dear

ENGINE = EngineConfig(kind=EngineKind.transformers, dtype="float32", max_model_len=320, batch_size=4)
DATA_SET = "quizzes/harbour"
NUM_DOCS = 11
TASKS = {
    "quiz_choice": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
num_fewshot: 2
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: brier_score}]
""",
    "quiz_letter": """
output_type: multiple_choice
doc_to_text: "{{question}} A, B, C or D?"
doc_to_choice: [A, B, C, D]
doc_to_target: gold
num_fewshot: 3
""",
    "quiz_write": """
output_type: generate_until
doc_to_text: "{{question}}\\nAnswer in words:"
doc_to_target: "{{choices[gold]}}"
num_fewshot: 1
repeats: 2
generation_kwargs: {until: ["\\n", "zq"], max_gen_toks: 10}
filter_list:
- {name: first, filter: [{function: take_first}]}
- name: lower
  filter: [{function: lowercase}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}]
""",
    "quiz_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{choices | join(' ')}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "quiz_code": """
output_type: generate_until
doc_to_text: !function code.prompt
doc_to_target: gold
process_results: !function code.measure
generation_kwargs: {until: [], max_gen_toks: 4}
metric_list: [{metric: length, aggregation: !function code.longest, higher_is_better: true}]
""",
}
TASKS["quiz_peeks"] = (
    TASKS["quiz_code"].replace("code.measure", "code.peek").replace("!function code.prompt", "question")
)
TASKS["quiz_unreadable"] = (
    TASKS["quiz_code"].replace("code.prompt", "code.unreadable").replace("code.measure", "code.count")
)
TASKS["quiz_broken"] = TASKS["quiz_code"].replace("code.measure", "code.fail")
CODE = """
import os
class TimedOut(BaseException):
    "As math-verify's"
def prompt(doc):
    if doc["question"].startswith("Which 3"):
        raise KeyError("picture")
    return doc["question"]
def unreadable(doc):
    return "half a character: \\ud83d" if doc["question"].startswith("Which 3") else doc["question"]
def count(doc, results):
    return {"length": len(results[0])}
def measure(doc, results):
    if doc["question"].startswith("Which 5"):
        raise ValueError("no\\nnumber")
    if doc["question"].startswith("Which 7"):
        raise TimedOut("too long")
    return {"length": len(results[0]), "words": results[0].split()}
def peek(doc, results):
    return {"length": len(open(os.environ["ELSEWHERE"]).read())}
def fail(doc, results):
    raise ValueError("no number")
def longest(values):
    return max(values)
"""


def row(number, prefix="Which"):
    choices = [f"{word} {'boat' if number % 2 else 'naïve 東京 map'}" for word in ("a", "the", "no", "every")]
    return {"question": f"{prefix} {number} of the sentences is true?", "choices": choices, "gold": number % 4}


def write_data_set(folder, prefix="Which"):
    """A data set in the hub's layout: README.md with its header, JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    header = "configs:\n- config_name: main\n  data_files:\n"
    for split, num_rows in (("train", 5), ("test", NUM_DOCS)):
        header += f"  - {{split: {split}, path: {split}.jsonl}}\n"
        rows = [row(number + (100 if split == "train" else 0), prefix) for number in range(num_rows)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    (folder / "README.md").write_text(f"---\n{header}---\n")
    return folder


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    common = f"dataset_path: {DATA_SET}\ndataset_name: main\ntest_split: test\nfewshot_split: train\n"
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}metadata: {{version: 2.0}}\n{text}")
    (folder / "quizzes.yaml").write_text("group: quizzes\ntask: [quiz_choice, {task: quiz_letter, num_fewshot: 1}]\n")
    (folder / "code.py").write_text(CODE)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("data") / "harbour")


@pytest.fixture(scope="module")
def config_of(tasks_dir):
    def make(task, start=0, stop=NUM_DOCS, engine=ENGINE, overrides=None, **prompt):
        return AnswerConfig(
            task=task, start=start, stop=stop, num_docs=NUM_DOCS, harness="test", include_paths=[str(tasks_dir)],
            engine=engine, overrides=overrides or {}, prompt=PromptConfig(**prompt),
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def inputs(tiny_model, data_dir):
    return {"checkpoint": tiny_model, f"data:{DATA_SET}": data_dir}


@pytest.fixture(scope="module")
def session(config_of, inputs):
    with open_session(config_of("quiz_choice"), inputs) as opened:
        yield opened


@pytest.fixture
def run(session, inputs, tmp_path_factory):
    def evaluated(config, opened=session, **changed):
        out = tmp_path_factory.mktemp("out")
        metrics = evaluate(config, inputs | changed, out, opened)
        (facts,) = json.loads((out / "task.json").read_text())["leaves"].values()
        return metrics, pq.read_table(out / "samples.parquet").to_pylist(), facts

    return evaluated


@pytest.fixture
def bytes_of(session, inputs, tmp_path_factory):
    def evaluated(config, opened=session):
        out = tmp_path_factory.mktemp("out")
        answer(config, inputs, out, opened)
        return {path.name: path.read_bytes() for path in sorted(out.iterdir())}

    return evaluated


@pytest.fixture(scope="module")
def reference_task(tasks_dir, data_dir, tmp_path_factory):
    """The same task loaded by lm-eval alone, its data set named by a local path."""
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("reference")
    shutil.copytree(tasks_dir, folder, dirs_exist_ok=True)
    for path in folder.glob("*.yaml"):
        path.write_text(path.read_text().replace(DATA_SET, str(data_dir)))
    return lambda name: TaskManager(include_defaults=False, include_path=str(folder)).load([name])["tasks"][name]


def reference_digests(task, model, num_fewshot, seed=1234, **prompt):
    from stages.evaluate.digests import prompt_digest

    task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=seed)
    task.build_all_requests(chat_template=model.apply_chat_template, **prompt)
    by_document = {}
    for instance in task.instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    return [prompt_digest(instances) for _, instances in sorted(by_document.items())]


@pytest.mark.parametrize(
    ("task", "num_fewshot", "prompt"),
    [
        ("quiz_choice", 2, {"apply_chat_template": True, "fewshot_as_multiturn": True}),
        ("quiz_choice", 4, {"apply_chat_template": True, "fewshot_as_multiturn": False}),
        ("quiz_letter", 3, {"apply_chat_template": False, "fewshot_as_multiturn": False}),
        (
            "quiz_write",
            1,
            {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be kind."},
        ),
        ("quiz_text", 0, {"apply_chat_template": False, "fewshot_as_multiturn": False}),
    ],
)
def test_prompts_are_lm_evals_document_by_document(run, config_of, session, reference_task, task, num_fewshot, prompt):
    expected = reference_digests(reference_task(task), session.model, num_fewshot, seed=7, **prompt)
    chosen = {"num_fewshot": num_fewshot, "fewshot_seed": 7, **prompt}
    for start, stop in ((6, 9), (0, NUM_DOCS)):
        _, rows, _ = run(config_of(task, start, stop, **chosen))
        assert [row["prompt_digest"] for row in rows] == expected[start:stop]


@pytest.mark.parametrize("task", ["quiz_choice", "quiz_letter", "quiz_write", "quiz_text"])
def test_responses_and_metrics_are_lm_evals(run, config_of, tiny_model, reference_task, task):
    from lm_eval.evaluator import evaluate as evaluate_with_lm_eval
    from lm_eval.models.huggingface import HFLM

    _, rows, facts = run(config_of(task))
    adapter = HFLM(str(tiny_model), dtype="float32", device="cpu", batch_size=4, max_length=ENGINE.max_model_len - 2)
    reference = reference_task(task)
    reference.set_config(key="num_fewshot", value=reference.get_config("num_fewshot") or 0)
    reference.set_fewshot_seed(seed=1234)
    theirs = evaluate_with_lm_eval(
        adapter, {"tasks": {task: reference}}, apply_chat_template=True, fewshot_as_multiturn=True, bootstrap_iters=0
    )
    samples = theirs["samples"][task]
    assert len(samples) == NUM_DOCS * len({sample["filter"] for sample in samples})
    for sample in samples:
        ours = rows[sample["doc_id"]]
        for metric in sample["metrics"]:
            found = ours[f"{metric},{sample['filter']}"]
            found = json.loads(found) if isinstance(found, str) else found
            assert flat(found) == pytest.approx(flat(sample[metric]), abs=1e-4)
        responses = [response for request in sample["resps"] for response in request]
        if task == "quiz_write":
            assert ours["responses"] == responses
        else:
            assert flat(ours["loglikelihoods"]) == pytest.approx(
                [flat(response)[0] for response in responses], abs=1e-4
            )
    names = {name.removesuffix("_stderr") for name in facts["metrics"]}
    assert names <= set(theirs["results"][task])


def flat(value):
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0):
        return [number for item in list(value) for number in flat(item)]
    return [float(value)]


def test_a_shard_has_the_same_bytes_alone_and_after_others_and_in_another_session(bytes_of, config_of, inputs, session):
    shards = [config_of(task, 4, 8) for task in ("quiz_letter", "quiz_write", "quiz_choice")]
    after_others = [bytes_of(shard) for shard in (config_of("quiz_text"), *shards)][1:]
    again = [bytes_of(shard) for shard in reversed(shards)][::-1]
    with open_session(shards[0], inputs) as other:
        alone = [bytes_of(shard, other) for shard in shards]
        announced = []
        for shard in shards:
            for each in shards:
                announce(each, inputs, other)
            announced.append(bytes_of(shard, other))
    assert after_others == again == alone == announced


def test_choices_are_refused_before_a_server_is_asked(config_of, inputs):
    server = EngineConfig(
        kind=EngineKind.endpoint, dtype="served", max_model_len=320, url="http://127.0.0.1:9/v1", served_model="own"
    )
    for task in ("quiz_choice", "quiz_text"):
        with pytest.raises(ConfigError, match=f"task {task} is scored by log-likelihoods"):
            with open_session(config_of(task, engine=server), inputs):
                raise AssertionError("it was opened")


def test_a_shard_that_cannot_be_built_fails_when_it_is_asked_for_and_the_session_lives(run, config_of, inputs, session):
    bad = config_of("quiz_choice", num_fewshot=6)
    announce(bad, inputs, session)
    assert run(config_of("quiz_text", 0, 2))[0]["num_missing"] == 0
    with pytest.raises(ConfigError, match="5 examples to draw from"):
        run(bad)


def test_a_shard_is_answered_before_the_engine_begins_with_what_was_only_announced(
    run, config_of, inputs, session, monkeypatch
):
    """It can be published the moment it is done."""
    asked, score = [], session.engine.loglikelihood
    monkeypatch.setattr(session.engine, "loglikelihood", lambda requests: asked.append(requests) or score(requests))
    shards = [config_of("quiz_choice", start, start + 3) for start in (0, 3, 6)]
    for shard in shards:
        announce(shard, inputs, session)
    for number, shard in enumerate(shards, 1):
        assert run(shard)[0]["num_documents"] == 3
        assert len(asked) == number


@pytest.mark.parametrize("task", ["quiz_choice", "quiz_write"])
def test_a_rerun_asks_the_same_in_another_order_and_batch(config_of, inputs, run, monkeypatch, task):
    """Rows keep their places, and each its own answer: in float32 the same, from other batches."""
    engine = replace(ENGINE, seed=1, batch_size=3)
    again = replace(config_of(task, engine=engine), rerun=1)
    batches = [], []

    def watch(opened, seen):
        for method in ("_score", "_answer"):
            known = getattr(opened.engine, method)
            watched = lambda batch, rest, known=known: seen.append(batch) or known(batch, rest)  # noqa: E731
            monkeypatch.setattr(opened.engine, method, watched)

    with open_session(config_of(task), inputs) as first, open_session(again, inputs) as second:
        watch(first, batches[0])
        watch(second, batches[1])
        rows, other = run(config_of(task), first)[1], run(again, second)[1]
    asked = [{prompt for batch in found for prompt in batch} for found in batches]
    assert asked[0] == asked[1] and len(asked[0]) > 4
    assert not set(map(frozenset, batches[0])) & set(map(frozenset, batches[1])), "no batch is the same"
    for row, same in zip(rows, other, strict=True):
        assert [row[name] for name in ("doc_id", "doc_digest", "prompt_digest")] == [
            same[name] for name in ("doc_id", "doc_digest", "prompt_digest")
        ]
        if task == "quiz_write":
            assert row["responses"] == same["responses"]
        else:
            assert flat(row["loglikelihoods"]) == pytest.approx(flat(same["loglikelihoods"]), abs=1e-4)


def test_in_an_open_engine_the_order_alone_is_another(run, config_of, session, monkeypatch):
    asked, score = [], session.engine.loglikelihood
    monkeypatch.setattr(session.engine, "loglikelihood", lambda requests: asked.append(requests) or score(requests))
    rows = [run(replace(config_of("quiz_choice"), rerun=rerun))[1] for rerun in (0, 1, 2)]
    assert sorted(map(repr, asked[0])) == sorted(map(repr, asked[1])) and asked[0] != asked[1] != asked[2] != asked[0]
    assert [[row["doc_id"] for row in each] for each in rows] == [list(range(NUM_DOCS))] * 3


def test_two_ranges_are_the_rows_of_the_whole(run, config_of):
    _, whole, facts = run(config_of("quiz_choice"))
    _, first, first_facts = run(config_of("quiz_choice", 0, 5))
    _, rest, _ = run(config_of("quiz_choice", 5, NUM_DOCS))
    for row, part in zip(whole, first + rest, strict=True):
        assert row.pop("loglikelihoods") == pytest.approx(part.pop("loglikelihoods"), abs=1e-4)
        for both in (row, part):
            both.pop("responses"), both.pop("filtered"), both.pop("brier_score,none")
        assert row == part
    assert facts == first_facts


def test_a_drawn_sample_keeps_the_numbers_and_prompts_that_its_documents_have(run, config_of):
    """Examples are drawn from one stream that all documents move on, those between as well."""
    rows = {row["doc_id"]: row for row in run(config_of("quiz_letter", num_fewshot=3))[1]}
    config = replace(config_of("quiz_letter", num_fewshot=3, stop=3), limit_seed=2)
    sample = run(config)[1]
    assert [row["doc_id"] for row in sample] == documents_of(NUM_DOCS, 0, 3, 2) != [0, 1, 2]
    for row in sample:  # a batch of others sums otherwise
        whole = rows[row["doc_id"]]
        assert row.pop("loglikelihoods") == pytest.approx(whole.pop("loglikelihoods"), abs=1e-4)
        for both in (row, whole):
            both.pop("responses"), both.pop("filtered")
        assert row == whole


def test_a_document_whose_prompt_or_score_fails_is_missing_and_the_shard_lives(run, config_of):
    metrics, rows, facts = run(config_of("quiz_code"))
    assert metrics["num_missing"] == 3
    errors = {row["doc_id"]: row["error"] for row in rows if row["error"] is not None}
    too_long = "not scored: TimedOut: too long"
    assert errors == {3: "KeyError: 'picture'", 5: "not scored: ValueError: no number", 7: too_long}
    assert [row["doc_id"] for row in rows if row["length,none"] is None] == [3, 5, 7]
    assert rows[3]["responses"] == []
    assert len(rows[5]["responses"]) == 1
    assert json.loads(rows[0]["words,none"]) == rows[0]["responses"][0].split()
    assert facts["metrics"]["length,none"]["aggregation"] == {"file": "code.py", "function": "longest"}


def test_a_score_that_reads_what_nobody_foresaw_is_refused(run, config_of, tmp_path, monkeypatch):
    (tmp_path / "words.txt").write_text("seven words")
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "words.txt"))
    with pytest.raises(DataError, match=r"^task quiz_peeks reads /.*/words.txt, which the plan did not know of"):
        run(config_of("quiz_peeks"))


def test_a_text_that_no_tokenizer_reads_costs_its_document(run, config_of):
    metrics, rows, _ = run(config_of("quiz_unreadable", apply_chat_template=False))
    assert metrics["num_missing"] == 1
    assert [row["doc_id"] for row in rows if row["error"] is not None] == [3]
    assert all(row["responses"] for row in rows if row["doc_id"] != 3)


def test_a_task_that_scores_nothing_fails_with_its_first_error(run, config_of):
    with pytest.raises(
        DataError, match=r"none of 11 documents could be scored; the first: not scored: ValueError: no number"
    ):
        run(config_of("quiz_broken"))


def test_prompts_that_do_not_fit_are_counted_as_truncated(run, config_of):
    metrics, rows, _ = run(config_of("quiz_choice", system_instruction="Answer slowly. " * 50))
    assert metrics["num_truncated"] == sum(row["truncated"] for row in rows) == NUM_DOCS
    assert metrics["num_prompt_tokens"] == sum(row["num_prompt_tokens"] for row in rows)
    assert max(row["num_prompt_tokens"] for row in rows) <= 4 * (ENGINE.max_model_len - 1)


def test_a_prompt_to_write_after_that_does_not_fit_is_counted_too(run, config_of, session):
    config = config_of("quiz_write", system_instruction="Answer slowly. " * 50)
    metrics, rows, _ = run(config)
    assert metrics["num_truncated"] == sum(row["truncated"] for row in rows) == NUM_DOCS
    room = ENGINE.max_model_len - 10  # max_gen_toks of the task
    assert {row["num_prompt_tokens"] for row in rows} == {2 * room}  # for two repeats
    assert all(row["error"] is None and len(row["responses"]) == 2 for row in rows)


def test_a_document_that_the_chat_template_refuses_is_missing_and_the_shard_lives(run, config_of, session, monkeypatch):
    own = session.model.tokenizer.chat_template
    refusing = "{% if 'Which 3' in messages[-1].content %}{{ raise_exception('no threes') }}{% endif %}" + own
    monkeypatch.setattr(session.model.tokenizer, "chat_template", refusing)
    metrics, rows, _ = run(config_of("quiz_write", num_fewshot=0, apply_chat_template=True))
    missing = [row["doc_id"] for row in rows if row["error"] is not None]
    assert missing == [3] and "no threes" in rows[3]["error"]
    assert metrics["num_missing"] == 1 and rows[3]["exact_match,first"] is None


def test_task_facts_hold_what_makes_two_results_comparable(run, config_of):
    _, rows, facts = run(config_of("quiz_write", 0, 2, gen_kwargs={"max_new_tokens": 6}))
    assert (facts["task"], facts["version"], facts["output_type"]) == ("quiz_write", 2.0, "generate_until")
    assert facts["num_docs"] == NUM_DOCS
    assert list(facts["metrics"]) == ["exact_match,first", "exact_match,lower"]
    of_two_answers = {"aggregation": {"name": "mean"}, "higher_is_better": True, "kind": "graded"}
    assert facts["metrics"]["exact_match,first"] == of_two_answers
    comparable = facts["comparable"]
    assert comparable["gen_kwargs"] == {"until": ["\n", "zq"], "max_new_tokens": 6}
    assert (comparable["num_fewshot"], comparable["engine"], comparable["platform"]) == (1, "transformers", "cpu")
    assert len(comparable["chat_template_digest"]) == 64
    assert all(len(row["responses"]) == 2 and row["num_output_tokens"] <= 12 for row in rows)


def test_overrides_of_a_group_reach_its_member(run, config_of):
    _, plain, _ = run(config_of("quiz_letter", 0, 2))
    _, changed, facts = run(config_of("quiz_letter", 0, 2, overrides={"num_fewshot": 1}))
    assert facts["comparable"]["num_fewshot"] == 1
    assert plain[0]["prompt_digest"] != changed[0]["prompt_digest"]
    assert plain[0]["doc_digest"] == changed[0]["doc_digest"]


def test_a_split_that_only_examples_would_need_may_be_missing(run, config_of):
    overrides = {"fewshot_split": "lessons", "training_split": "lessons", "num_fewshot": None}
    _, rows, _ = run(config_of("quiz_choice", 0, 2, overrides=overrides, num_fewshot=0))
    assert [row["error"] for row in rows] == [None, None]
    with pytest.raises(ConfigError, match="has 0 examples to draw from, fewer than num_fewshot=1"):
        run(config_of("quiz_choice", 0, 2, overrides=overrides, num_fewshot=1))


def test_rows_that_changed_under_the_same_path_are_read_anew(config_of, inputs, tmp_path, run):
    data = {f"data:{DATA_SET}": write_data_set(tmp_path / "harbour")}
    digests = []
    for prefix in ("Which", "What"):
        write_data_set(tmp_path / "harbour", prefix)
        with open_session(config_of("quiz_text"), inputs) as opened:
            digests.append([row["doc_digest"] for row in run(config_of("quiz_text"), opened, **data)[1]])
    assert not set(digests[0]) & set(digests[1])


@pytest.mark.parametrize(
    ("task", "changes", "error", "says"),
    [
        ("quiz_choice", {"num_fewshot": 6}, ConfigError, "5 examples to draw from, fewer than num_fewshot=6"),
        ("quiz_letters", {}, ConfigError, "unknown to lm-eval"),
        ("quizzes", {}, ConfigError, "is a group: evaluate its members"),
        ("quiz_choice", {"stop": 12}, DataError, "has 11 documents; 0 to 12 is outside"),
        ("quiz_write", {"gen_kwargs": {"max_gen_toks": 400}}, ConfigError, "leaves no room for a prompt"),
        ("quiz_write", {"overrides": {"generation_kwargs": {"colour": "red"}}}, ConfigError, "colour"),
        ("quiz_code", {"overrides": {"unsafe_code": True}}, ConfigError, "needs a sandbox"),
        ("quiz_choice", {"overrides": {"dataset_path": "quizzes/airport"}}, DataError, "quizzes/airport is not among"),
        ("quiz_choice", {"overrides": {"test_split": "exam"}}, DataError, "has no split 'exam'; it has train, test"),
        ("quiz_choice", {"overrides": {"num_fewshot": 0}, "num_fewshot": 2}, ConfigError, "fixed at 0 examples"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_on_one_line(run, config_of, task, changes, error, says):
    with pytest.raises(error, match=says) as caught:
        run(config_of(task, **changes))
    assert "\n" not in str(caught.value)


def test_another_size_than_planned_is_refused(run, config_of):
    with pytest.raises(DataError, match="has 11 documents, not 12 as planned"):
        run(replace(config_of("quiz_choice"), num_docs=12))


def test_a_tokenizer_without_chat_template_is_refused(run, config_of, session, monkeypatch):
    monkeypatch.setattr(session.model.tokenizer, "chat_template", None)
    with pytest.raises(ConfigError, match="apply_chat_template: false"):
        run(config_of("quiz_choice", system_instruction="not built before"))


def test_an_engine_that_dies_leaves_nothing_behind(session, config_of, inputs, tmp_path, monkeypatch):
    def die(requests):
        raise EngineError("the engine died")

    monkeypatch.setattr(session.engine, "loglikelihood", die)
    with pytest.raises(EngineError):
        evaluate(config_of("quiz_choice"), inputs, tmp_path, session)
    assert list(tmp_path.iterdir()) == []


def test_shards_of_one_engine_share_a_session_and_other_engines_do_not(config_of):
    key = session_key(config_of("quiz_choice"))
    assert key == session_key(config_of("quiz_write", 3, 5, num_fewshot=0))
    assert key != session_key(config_of("quiz_choice", engine=replace(ENGINE, max_model_len=64)))
    assert key != session_key(config_of("quiz_choice", engine=replace(ENGINE, dtype="bfloat16")))


@pytest.mark.parametrize("change", [{"dtype": "int3"}, {"max_model_len": 0}, {"batch_size": 0}])
def test_engine_settings_are_checked_when_they_are_made(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        EngineConfig(**change)


def test_ranges_and_shots_are_checked_when_they_are_made(config_of):
    with pytest.raises(ValueError, match="range 4 to 4 is empty"):
        config_of("quiz_choice", 4, 4)
    with pytest.raises(ValueError, match="num_fewshot"):
        PromptConfig(num_fewshot=-1)


def test_nltk_reads_its_sentence_model_from_the_installed_package(tmp_path):
    pytest.importorskip("punkt")
    import nltk

    from stages.evaluate.nltk_data import provide_nltk_data

    provide_nltk_data(tmp_path)
    assert nltk.sent_tokenize("Dr. Smith went home. He slept.") == ["Dr. Smith went home.", "He slept."]


def test_importing_evaluate_loads_nothing_heavy():
    import subprocess
    import sys

    heavy = "{'torch', 'vllm', 'lm_eval', 'transformers', 'datasets'}"
    code = f"import stages.evaluate.answer, stages.evaluate.score, sys; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "set()"


DATED = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"


def test_a_template_that_prints_the_date_prints_the_same_one_every_day(session, monkeypatch):
    monkeypatch.setattr(session.model.tokenizer, "chat_template", DATED)
    text = session.model.apply_chat_template([{"role": "user", "content": "Which?"}])
    assert text.startswith("26 Jul 2024<|im_start|>user")


def test_a_tokenizer_with_several_templates_uses_the_default_one(run, config_of, session, monkeypatch):
    own = session.model.tokenizer.chat_template
    monkeypatch.setattr(session.model.tokenizer, "chat_template", {"default": own, "tool_use": DATED})
    _, _, facts = run(config_of("quiz_write", stop=2, num_fewshot=0, apply_chat_template=True))
    assert facts["comparable"]["chat_template_digest"] == hashlib.sha256(own.encode()).hexdigest()


class WritingEngine:
    """vLLM's way of answering side by side: what was begun must be ended before the cache can be emptied."""

    scoring, facts = {}, {}

    def __init__(self):
        self.begun, self.closed = {}, False

    def begin(self, requests):
        names = [f"{len(self.begun) + index}" for index in range(len(requests))]
        self.begun |= dict.fromkeys(names, 3 + 5 * len(self.begun))  # steps that its answer takes
        return names

    def advance(self):
        assert any(self.begun.values()), "there is nothing to do"
        self.begun = {name: max(0, left - 1) for name, left in self.begun.items()}
        return {name: Generation("text", 1, "stop") for name, left in self.begun.items() if left == 0}

    def reset(self):
        if any(self.begun.values()):
            raise EngineError("earlier requests are still running")

    def loglikelihood(self, requests):
        return [Score(-1.0, False) for _ in requests]

    def generate(self, requests):
        return [Generation("text", 1, "stop") for _ in requests]

    def close(self):
        self.closed = True


def test_a_shard_that_was_begun_and_never_asked_for_harms_no_other(session, config_of, inputs, tmp_path):
    """Another driver may have published it meanwhile."""
    data = {DATA_SET: inputs[f"data:{DATA_SET}"]}
    overlapping = Session(
        session.model, WritingEngine(), inputs["checkpoint"], Here(session.model, tmp_path), overlaps=True
    )
    first, never, choice = (
        config_of("quiz_write", stop=2),
        config_of("quiz_write", start=2, stop=4),
        config_of("quiz_choice", stop=2),
    )
    for config in (first, never, choice):
        overlapping.announce(config, inputs["checkpoint"], data)
    for shard in overlapping._under_way.values():
        shard.built.result()
    assert len(overlapping.answered(first, data).documents) == 2
    assert len(overlapping.answered(choice, data).documents) == 2
    overlapping.close()


class Scoring(WritingEngine):
    """Remembers what it was given before that was asked for, and which thread made it ready."""

    def __init__(self):
        super().__init__()
        self.calls, self.started, self.made_ready = [], None, []
        self.is_one_ready = threading.Event()

    def ready(self, requests):
        self.made_ready.append(threading.current_thread())
        self.is_one_ready.set()
        return list(requests)

    def start(self, requests):
        self.reset()
        self.started = requests
        self.calls.append(("start", len(requests)))

    def reset(self):
        super().reset()
        if self.started is not None:
            self.calls.append(("dropped", len(self.started)))
        self.started = None

    def loglikelihood(self, requests):
        if len(self.made_ready) == 0:
            assert self.is_one_ready.wait(10), "the next is made ready while the engine is at this one"
        started, self.started = self.started, None
        self.calls.append(("had" if started == list(requests) else "asked", len(requests)))
        return super().loglikelihood(requests)


def test_the_engine_has_the_next_shard_before_the_last_one_is_written(session, config_of, inputs, tmp_path):
    """One of another driver's is dropped once; what has other weights waits for them."""
    data, checkpoint = {DATA_SET: inputs[f"data:{DATA_SET}"]}, inputs["checkpoint"]
    engine = Scoring()
    ahead = Session(session.model, engine, checkpoint, Here(session.model, tmp_path))
    first, second, never, last, other = (config_of("quiz_choice", start=n, stop=n + 1) for n in range(5))
    for config in (first, second, never, last):
        ahead.announce(config, checkpoint, data)
    ahead.announce(other, tmp_path, data)
    wait(shard.built for shard in ahead._under_way.values())
    (num,) = {len(ahead.answered(config, data).documents) for config in (first, second, last)}
    assert num == 1
    size = engine.calls[0][1]
    assert [name for name, _ in engine.calls] == ["asked", "start", "had", "start", "dropped", "asked"]
    assert {each for _, each in engine.calls} == {size}
    assert threading.current_thread() not in engine.made_ready, "the thread that the engine works in waits for it"
    ahead.close()


class Exchanging(WritingEngine):
    """And takes other weights while it has nothing to do."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def replace(self, checkpoint):
        self.reset()
        self.weights.append((checkpoint.name, len(self.begun)))


def test_what_follows_with_other_weights_is_built_before_and_begun_after_they_are_there(
    session, config_of, inputs, tmp_path
):
    """And what was begun with the first weights and never asked for does not answer for the second."""
    data = {DATA_SET: inputs[f"data:{DATA_SET}"]}
    other = shutil.copytree(inputs["checkpoint"], tmp_path / "other")
    engine = Exchanging()
    overlapping = Session(session.model, engine, inputs["checkpoint"], Here(session.model, tmp_path), overlaps=True)
    first, second = config_of("quiz_write", stop=2), config_of("quiz_write", start=2, stop=4)
    for checkpoint, config in ((inputs["checkpoint"], first), (inputs["checkpoint"], second), (other, second)):
        overlapping.announce(config, checkpoint, data)
    built = [shard.built for shard in overlapping._under_way.values()]
    wait(built)
    assert len(overlapping.answered(first, data).documents) == 2
    begun = len(engine.begun)
    assert begun == 8, "two shards of two documents, each answered twice"
    exchange({"checkpoint": other}, overlapping)
    assert engine.weights == [("other", begun)]
    assert len(overlapping.answered(second, data).documents) == 2
    assert len(engine.begun) == begun + 4, "asked again, though the first weights had answered it"
    overlapping.close()


def test_a_checkpoint_of_another_family_reaches_no_engine(session, config_of, inputs, tmp_path):
    other = shutil.copytree(inputs["checkpoint"], tmp_path / "other")
    (other / "tokenizer_config.json").write_text("{}")
    engine = Exchanging()
    kept = Session(session.model, engine, inputs["checkpoint"], Here(session.model, tmp_path))
    with pytest.raises(EngineError, match="another config, tokenizer or tensors"):
        exchange({"checkpoint": other}, kept)
    assert engine.weights == []
    kept.engine = WritingEngine()
    with pytest.raises(EngineError, match="keeps the weights"):
        exchange({"checkpoint": inputs["checkpoint"]}, kept)
    kept.close()


def test_transformers_loads_another_checkpoint_in_the_place_of_the_first(
    session, config_of, inputs, bytes_of, quantize_tiny, tmp_path
):
    """As it would have opened it; in a session whose tasks are built."""
    rounded = [quantize_tiny(algorithm=algorithm, scheme="W8A8") for algorithm in (Algorithm.rtn, Algorithm.gptq)]
    found = []
    config = config_of("quiz_choice", stop=4)
    for checkpoint in rounded:
        with open_session(config, inputs | {"checkpoint": checkpoint}) as fresh:
            found.append(bytes_of(config, fresh)["answers.parquet"])
    with open_session(config, inputs | {"checkpoint": rounded[0]}) as exchanged:
        assert bytes_of(config, exchanged)["answers.parquet"] == found[0]
        exchange({"checkpoint": rounded[1]}, exchanged)
        assert bytes_of(config, exchanged)["answers.parquet"] == found[1]
    assert found[0] != found[1]


def test_processes_beside_an_engine_build_what_a_thread_of_its_own_does(session, config_of, inputs, tmp_path):
    """And say what is wrong with a shard; one that dies costs its shard, and no more is asked of it."""
    data = {DATA_SET: inputs[f"data:{DATA_SET}"]}
    apart = Apart(inputs["checkpoint"], replace(ENGINE, num_cpus=2), tmp_path)
    here = Here(session.model, tmp_path)
    shards = [config_of("quiz_choice", 6, 9), config_of("quiz_write", num_fewshot=0), config_of("quiz_choice", 0, 3)]
    there = [apart.submit(config, data) for config in shards]
    assert [each.result() for each in there] == [here.submit(config, data).result() for config in shards]
    here.close()
    with pytest.raises(ConfigError, match="unknown to lm-eval"):
        apart.submit(config_of("no_such_task"), data).result()
    opened = Session(session.model, WritingEngine(), inputs["checkpoint"], apart)
    for process in psutil.Process().children():
        if "spawn_main" in " ".join(process.cmdline()):
            process.kill()
    with pytest.raises(EngineError, match="process that made its prompts died"):
        opened.answered(config_of("quiz_write"), data)
    opened.close()
    assert opened.engine.closed
