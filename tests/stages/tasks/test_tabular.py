"""Rows of scikit-learn's data sets as a classification task: the text, the splits, and the scores lm-eval gives."""

import hashlib
import json
from pathlib import Path

import pytest

from stages.tasks.tabular import tabular

pytestmark = pytest.mark.dear

TASKS = Path(__file__).parents[3] / "stages" / "tasks"
TABLES = ("iris", "wine", "breast_cancer")
each_table = pytest.mark.parametrize("table", TABLES)


def load_table(table):
    import sklearn.datasets

    return getattr(sklearn.datasets, f"load_{table}")()


@pytest.fixture(scope="module")
def load():
    """Load a task as a user of lm-eval would."""
    from lm_eval.tasks import TaskManager

    def load(name, **metadata):
        loaded = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata).load([name])
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(1234)
        return loaded

    return load


class TestRows:
    def test_a_row_reads_as_sentences_between_the_question_and_its_repetition(self):
        assert tabular.read_table("iris")[0] == {
            "row": 0,
            "text": "Predict the species: setosa || versicolor || virginica\n"
            "The sepal length (cm) is 5.1. The sepal width (cm) is 3.5. "
            "The petal length (cm) is 1.4. The petal width (cm) is 0.2.\n"
            "What is the species? setosa || versicolor || virginica\n"
            "Answer:",
            "choices": ["setosa", "versicolor", "virginica"],
            "label": 0,
        }

    @each_table
    def test_every_value_and_label_is_scikit_learns(self, table):
        data = load_table(table)
        rows = tabular.read_table(table)
        assert len(rows) == len(data.data)
        for row, values, label in zip(rows, data.data, data.target, strict=True):
            assert row["choices"][row["label"]] == data.target_names[label]
            features = row["text"].splitlines()[1].removesuffix(".").split(". ")
            for sentence, name, value in zip(features, data.feature_names, values, strict=True):
                column, _, number = sentence.removeprefix("The ").rpartition(" is ")
                assert column == name.replace("_", " ")
                assert float(number) == pytest.approx(value, rel=5e-3)
                assert len(number) <= 8 and "e" not in number

    @each_table
    def test_no_row_is_in_both_splits_and_none_is_lost(self, table):
        splits = tabular.rows(table=table)
        train, test = splits["train"], splits["test"]
        assert sorted([*train["row"], *test["row"]]) == list(range(len(load_table(table).data)))
        assert not set(train["text"]) & set(test["text"])

    @each_table
    def test_examples_are_balanced_whatever_their_number(self, table):
        train = tabular.rows(table=table)["train"]
        num_classes = len(train[0]["choices"])
        for first in range(0, len(train), num_classes):
            assert sorted(train["label"][first : first + num_classes]) == list(range(num_classes))

    @each_table
    @pytest.mark.parametrize("limit", [12, 40, 90])
    def test_the_first_test_rows_have_the_class_shares_of_all(self, table, limit):
        labels = list(tabular.rows(table=table)["test"]["label"])
        for label in set(labels):
            expected = limit * labels.count(label) / len(labels)
            assert labels[:limit].count(label) == pytest.approx(expected, abs=1)

    def test_the_seed_alone_decides(self):
        def order(**parameters):
            return list(tabular.rows(table="iris", **parameters)["test"]["row"])

        assert order() == order(seed=7, pretrained="model")  # an engine's arguments
        assert order() != order(split_seed=1)

    def test_splits_are_the_same_on_every_machine(self):
        splits = {table: tabular.rows(table=table) for table in TABLES}
        splits = {table: {name: list(split["row"]) for name, split in both.items()} for table, both in splits.items()}
        assert hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest() == GOLDEN_DIGEST

    def test_an_unknown_table_is_refused(self):
        with pytest.raises(ValueError, match="iris, wine, breast_cancer"):
            tabular.rows(table="digits")


GOLDEN_DIGEST = "2e3eb141e64eef654d4b2285d5de36308725c3c2758f1d96558f508c44bc2a7a"  # of both splits' row numbers


def chat_template(messages, add_generation_prompt=True):
    return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>" * add_generation_prompt


class TestTask:
    def test_the_group_holds_every_table(self, load):
        assert set(load("tabular")["tasks"]) == {f"tabular_{table}" for table in TABLES}

    @each_table
    def test_every_label_is_a_choice_in_plain_text(self, load, table):
        task = load(f"tabular_{table}")["tasks"][f"tabular_{table}"]
        task.build_all_requests(limit=3)
        labels = [str(name) for name in load_table(table).target_names]
        assert [instance.args[1] for instance in task.instances] == [f" {label}" for label in labels] * 3
        for instance in task.instances:
            prompt = instance.args[0]
            assert prompt.endswith(instance.doc["text"])
            assert prompt.count("Answer: ") == task.config.num_fewshot == prompt.count("\n\n")

    @each_table
    def test_every_label_is_a_choice_in_a_chat(self, load, table):
        task = load(f"tabular_{table}")["tasks"][f"tabular_{table}"]
        for multiturn in (True, False):
            task.build_all_requests(
                limit=2, apply_chat_template=True, fewshot_as_multiturn=multiturn, chat_template=chat_template
            )
            prompt, choice = task.instances[0].args
            assert prompt.endswith("Answer:<assistant>") and choice == load_table(table).target_names[0]
            num_turns = task.config.num_fewshot + 1 if multiturn else 1
            assert prompt.count("<user>") == prompt.count("<assistant>") == num_turns
            assert prompt.count("Predict the ") == task.config.num_fewshot + 1

    def test_every_prompt_has_the_same_examples(self, load):
        task = load("tabular_iris")["tasks"]["tabular_iris"]
        task.build_all_requests(limit=10)
        assert len({instance.args[0].rpartition("Predict")[0] for instance in task.instances}) == 1

    def test_known_log_likelihoods_give_known_scores(self, load):
        task = load("tabular_iris")["tasks"]["tabular_iris"]
        doc = next(doc for doc in task.eval_docs if doc["label"] == 1)  # versicolor, ten letters; setosa has six
        assert task.process_results(doc, [(-9.0, False), (-3.0, True), (-4.0, False)]) == {"acc": 1.0, "acc_norm": 1.0}
        assert task.process_results(doc, [(-3.0, False), (-4.0, True), (-9.0, False)]) == {"acc": 0.0, "acc_norm": 1.0}
        assert task.process_results(doc, [(-1.0, False), (-4.0, True), (-9.0, False)]) == {"acc": 0.0, "acc_norm": 0.0}

    def test_one_answer_for_all_scores_the_share_of_its_class_and_the_group_weighs_by_size(self, load):
        from lm_eval import evaluate
        from lm_eval.api.model import LM

        class AlwaysFirst(LM):
            """Prefers the first label, whatever the row."""

            def loglikelihood(self, requests, **_):
                return [(-float(request.idx), request.idx == 0) for request in requests]

            def generate_until(self, requests, **_):
                raise NotImplementedError

            loglikelihood_rolling = generate_until

        tasks = load("tabular")
        results = evaluate(AlwaysFirst(), tasks, bootstrap_iters=0)["results"]
        labels = {name: task.eval_docs["label"] for name, task in tasks["tasks"].items()}
        for name, column in labels.items():
            assert results[name]["acc,none"] == pytest.approx(column.count(0) / len(column))
        pooled = [label for column in labels.values() for label in column]
        assert results["tabular"]["acc,none"] == pytest.approx(pooled.count(0) / len(pooled))
