"""Choose the token sequences a quantizer calibrates on: random tokens, or rows of a data set as chats."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.checkpoints.chat import render_chat
from stages.documents import read_table, write_table
from stages.errors import DataError
from stages.fetch import DatasetSource
from stages.fields import identity

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = 1
SEQUENCES = "calibration.parquet"


class CalibrationMethod(Enum):
    """Where the tokens come from."""

    random_tokens = "random_tokens"
    dataset = "dataset"


@dataclass(kw_only=True, slots=True)
class CalibrationConfig:
    """What to calibrate on.  For a data set name the columns: text, prompt and response, or ready chat messages."""

    method: CalibrationMethod = identity(CalibrationMethod.random_tokens)
    dataset: DatasetSource | None = identity(None)
    subset: str | None = identity(None)  # the data set's configuration name
    split: str = identity("train")
    text_field: str | None = identity(None)
    prompt_field: str | None = identity(None)
    response_field: str | None = identity(None)
    messages_field: str | None = identity(None)
    num_calibration_samples: int = identity(512)
    max_seq_length: int = identity(2048)
    seed: int = identity(0)

    def __post_init__(self) -> None:
        if self.num_calibration_samples < 1 or self.max_seq_length < 1:
            raise ValueError("calibration: num_calibration_samples and max_seq_length must be at least 1")
        kinds = [self.text_field, self.prompt_field, self.messages_field]
        if self.method is CalibrationMethod.random_tokens:
            if self.dataset is not None or any(kinds):
                raise ValueError("calibration: random_tokens reads no data set; set method=dataset or drop the fields")
            return
        if self.dataset is None:
            raise ValueError("calibration: method=dataset needs dataset.repo_id")
        if sum(field is not None for field in kinds) != 1:
            raise ValueError("calibration: give exactly one of text_field, prompt_field, messages_field")
        if self.response_field is not None and self.prompt_field is None:
            raise ValueError("calibration: response_field needs prompt_field")


def calibrate(config: CalibrationConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``calibration.parquet`` (``input_ids``: list<int32>); metrics ``num_samples``, ``num_tokens``.

    Random samples are ``max_seq_length`` tokens long; rows of a data set are truncated to it, never padded or joined.
    Raises DataError when the data set lacks the split, a column or enough rows.
    """
    import pyarrow as pa
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(inputs["model"])
    if config.method is CalibrationMethod.random_tokens:
        samples = _draw_random_tokens(config, tokenizer)
    else:
        samples = _read_samples(config, tokenizer, inputs["data"])
    table = pa.table({"input_ids": pa.array(samples, pa.list_(pa.int32()))})
    write_table(out / SEQUENCES, table)
    return {"num_samples": len(samples), "num_tokens": sum(map(len, samples))}


def read_sequences(directory: Path) -> list[list[int]]:
    """The token sequences that ``calibrate`` wrote."""
    sequences: list[list[int]] = read_table(directory / SEQUENCES, ["input_ids"])["input_ids"].to_pylist()
    return sequences


def _draw_random_tokens(config: CalibrationConfig, tokenizer: Any) -> list[list[int]]:
    """Uniform over the vocabulary without special tokens."""
    import numpy as np

    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ordinary = sorted(set(tokenizer.get_vocab().values()) - special)
    shape = (config.num_calibration_samples, config.max_seq_length)
    samples: list[list[int]] = np.random.default_rng(config.seed).choice(ordinary, size=shape).tolist()
    return samples


def _read_samples(config: CalibrationConfig, tokenizer: Any, data_dir: Path) -> list[list[int]]:
    """The first rows of a seeded shuffle that hold any token."""
    samples: list[list[int]] = []
    # datasets keys its cache by name and would serve old rows for changed files: it lives and dies with this step.
    with tempfile.TemporaryDirectory() as cache_dir:
        for text in _shuffled_texts(config, tokenizer, _load_rows(config, data_dir, cache_dir)):
            encoding = tokenizer(
                text,
                add_special_tokens=config.text_field is not None,
                truncation=True,
                max_length=config.max_seq_length,
            )
            if encoding["input_ids"]:
                samples.append(encoding["input_ids"])
            if len(samples) == config.num_calibration_samples:
                return samples
    raise DataError(
        f"calibration: {_owner(config)} holds {len(samples)} usable rows, fewer than num_calibration_samples="
        f"{config.num_calibration_samples}; ask for at most {len(samples)}"
    )


def _load_rows(config: CalibrationConfig, data_dir: Path, cache_dir: str) -> "Dataset":
    from datasets import load_dataset

    try:
        rows: Dataset = load_dataset(str(data_dir), config.subset, split=config.split, cache_dir=cache_dir)
    except (ValueError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"calibration: {_owner(config)} cannot be read: {reason}") from error
    wanted = [config.text_field, config.prompt_field, config.response_field, config.messages_field]
    missing = [field for field in wanted if field is not None and field not in rows.column_names]
    if missing:
        raise DataError(
            f"calibration: {_owner(config)} has no column {missing[0]}; it has {', '.join(rows.column_names)}"
        )
    return rows


def _shuffled_texts(config: CalibrationConfig, tokenizer: Any, rows: "Dataset") -> Iterator[str]:
    import numpy as np

    if config.text_field is None and tokenizer.chat_template is None:
        raise DataError("calibration: the model has no chat template; calibrate on a plain column with text_field")
    for index in np.random.default_rng(config.seed).permutation(len(rows)).tolist():
        row = rows[index]
        if config.text_field is not None:
            yield row[config.text_field]
        else:
            messages = _messages(config, row)
            yield render_chat(tokenizer, messages, add_generation_prompt=messages[-1]["role"] != "assistant")


def _messages(config: CalibrationConfig, row: Mapping[str, Any]) -> list[dict[str, str]]:
    if config.messages_field is not None:
        messages: list[dict[str, str]] = row[config.messages_field]
        return messages
    messages = [{"role": "user", "content": row[config.prompt_field or ""]}]
    if config.response_field is not None:
        messages.append({"role": "assistant", "content": row[config.response_field]})
    return messages


def _owner(config: CalibrationConfig) -> str:
    name = config.dataset.repo_id if config.dataset else "data"
    return f"{name}/{config.subset or 'default'} split {config.split}"
