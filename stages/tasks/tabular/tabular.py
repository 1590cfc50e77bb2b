"""Rows of scikit-learn's bundled data sets as text, to be classified by a language model.

The serialisation is that of TabuLa (arXiv 2406.12031): the target and its labels, a sentence per feature, the question
with the labels again.  The data are real and come with scikit-learn, so nothing is downloaded.
"""

import random
from typing import Any

TARGETS = {"iris": "species", "wine": "cultivar", "breast_cancer": "diagnosis"}


def rows(*, table: str, split_seed: int = 0, num_train_per_class: int = 10, **_: Any) -> dict[str, Any]:
    """The splits ``train`` and ``test`` as data sets, for lm-eval's ``custom_dataset``; no row is in both.

    The first n rows of ``train``, the few-shot examples, are balanced over the classes; the first n rows of ``test``
    have about the class shares of the table.  Unknown names are the model's arguments, which lm-eval passes too; the
    seed is not called ``seed`` because an engine's own seed is among them.
    """
    from datasets import Dataset

    if table not in TARGETS:
        raise ValueError(f"tabular: table must be one of {', '.join(TARGETS)}; got {table!r}")
    by_class: dict[int, list[dict[str, Any]]] = {}
    for row in shuffle(read_table(table), split_seed):
        by_class.setdefault(row["label"], []).append(row)
    train = interleave([of_class[:num_train_per_class] for of_class in by_class.values()])
    seen = {row["text"] for row in train}  # by text: iris has one row twice
    test = interleave([[row for row in of_class if row["text"] not in seen] for of_class in by_class.values()])
    return {"train": Dataset.from_list(train), "test": Dataset.from_list(test)}


def shuffle(table_rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """A random order; Python promises the sequence of ``random()`` to every version, and that of no other method."""
    rng = random.Random(f"tabular {seed}")
    return sorted(table_rows, key=lambda _: rng.random())


def interleave(classes: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All rows, each class spread evenly and in its own order."""
    placed = [((rank + 0.5) / len(members), row) for members in classes for rank, row in enumerate(members)]
    return [row for _, row in sorted(placed, key=lambda place: (place[0], place[1]["label"]))]


def read_table(table: str) -> list[dict[str, Any]]:
    """All rows in scikit-learn's order: ``row`` (its index there), ``text``, ``choices`` and ``label`` (an index)."""
    import sklearn.datasets

    data = getattr(sklearn.datasets, f"load_{table}")()
    choices = [str(name) for name in data.target_names]
    columns = [str(name).replace("_", " ") for name in data.feature_names]
    return [
        {"row": index, "text": serialise(TARGETS[table], choices, columns, values), "choices": choices, "label": label}
        for index, (values, label) in enumerate(zip(data.data.tolist(), data.target.tolist(), strict=True))
    ]


def serialise(target: str, choices: list[str], columns: list[str], values: list[float]) -> str:
    """The question about one row; numbers are rounded to three significant digits, to spare tokens."""
    labels = " || ".join(choices)
    features = " ".join(
        f"The {column} is {float(f'{value:.3g}'):g}." for column, value in zip(columns, values, strict=True)
    )
    return f"Predict the {target}: {labels}\n{features}\nWhat is the {target}? {labels}\nAnswer:"
