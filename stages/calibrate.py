"""Choose the token sequences a quantizer calibrates on: random tokens, or rows of a data set as chats."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.checkpoints.chat import render_chat
from stages.documents import read_table, write_table
from stages.errors import DataError, one_line
from stages.fetch import DatasetSource
from stages.fields import execution, identity

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = 1
SEQUENCES = "calibration.parquet"
_LEAST_SHARE = 0.01  # of the tokens that num_calibration_samples of max_seq_length would be


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
    teaches: bool = execution(True)  # a quantizer, which needs many tokens; what is only compared on may be short

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
    """Write ``calibration.parquet`` (``input_ids``: list<int32>).

    Metrics ``num_samples``, ``num_tokens``, ``num_distinct`` (samples that are like no other), ``num_repeated`` and
    ``num_empty`` (rows of a data set that were passed over, as a sample that is taken has the same tokens, or as they
    have none).  Random samples are ``max_seq_length`` tokens long; rows of a data set are truncated to it, never padded
    or joined.
    Raises DataError when the data set lacks the split, a column, enough rows or enough tokens, and for a row without
    text.
    """
    import pyarrow as pa
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(inputs["model"])
    taken = _Taken()
    if config.method is CalibrationMethod.random_tokens:
        taken.samples = _draw_random_tokens(config, tokenizer)
    else:
        _read_samples(config, tokenizer, inputs["data"], taken)
        _check_enough(config, taken, _num_inputs(inputs["model"]))
    table = pa.table({"input_ids": pa.array(taken.samples, pa.list_(pa.int32()))})
    write_table(out / SEQUENCES, table)
    return {
        "num_samples": len(taken.samples),
        "num_tokens": taken.num_tokens,
        "num_distinct": len(set(map(tuple, taken.samples))),
        "num_repeated": taken.num_repeated,
        "num_empty": taken.num_empty,
    }


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


@dataclass(slots=True)
class _Taken:
    """The samples so far, and the rows of a data set that gave none."""

    samples: list[list[int]] = field(default_factory=list)
    seen: set[tuple[int, ...]] = field(default_factory=set)
    num_repeated: int = 0
    num_empty: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.samples))

    def add(self, sample: list[int]) -> None:
        """What was there before teaches a quantizer nothing."""
        if not sample:
            self.num_empty += 1
        elif tuple(sample) in self.seen:
            self.num_repeated += 1
        else:
            self.seen.add(tuple(sample))
            self.samples.append(sample)


def _read_samples(config: CalibrationConfig, tokenizer: Any, data_dir: Path, taken: _Taken) -> None:
    """The first rows of a seeded shuffle that hold any token, each once."""
    # datasets keys its cache by name and would serve old rows for changed files: it lives and dies with this step.
    with tempfile.TemporaryDirectory() as cache_dir:
        for text in _shuffled_texts(config, tokenizer, _load_rows(config, data_dir, cache_dir)):
            encoding = tokenizer(
                text,
                add_special_tokens=config.text_field is not None,
                truncation=True,
                max_length=config.max_seq_length,
            )
            taken.add(encoding["input_ids"])
            if len(taken.samples) == config.num_calibration_samples:
                return


def _check_enough(config: CalibrationConfig, taken: _Taken, num_inputs: int | None) -> None:
    """Rows as many as were asked for; of a quantizer also tokens, since second moments take as many as inputs."""
    few = _few_tokens(config, taken, num_inputs) if config.teaches else None
    if len(taken.samples) < config.num_calibration_samples:
        num_passed_over = taken.num_repeated + taken.num_empty
        others = f" ({taken.num_repeated} repeat others, {taken.num_empty} are empty)" if num_passed_over else ""
        advice = f"they hold {few}: take other data" if few else f"ask for at most {len(taken.samples)}"
        raise DataError(
            f"calibration: {_owner(config)} holds {len(taken.samples)} usable rows{others}, fewer than "
            f"num_calibration_samples={config.num_calibration_samples}; {advice}"
        )
    if few:
        raise DataError(
            f"calibration: {len(taken.samples)} rows of {_owner(config)} hold {few}: ask for more rows with "
            "num_calibration_samples, take longer texts, or lower max_seq_length to what they have"
        )


def _few_tokens(config: CalibrationConfig, taken: _Taken, num_inputs: int | None) -> str | None:
    """How many tokens there are and should be; None where they suffice."""
    found, asked = taken.num_tokens, config.num_calibration_samples * config.max_seq_length
    if num_inputs is not None and found < num_inputs:
        return f"{found} tokens, fewer than the {num_inputs} inputs of a layer"
    if found < math.ceil(_LEAST_SHARE * asked):
        return f"{found} tokens, fewer than {_LEAST_SHARE:.0%} of the {asked} asked for"
    return None


def _num_inputs(model_dir: Path) -> int | None:
    """Of a layer that reads the model's hidden state; None where the config does not say it."""
    from transformers import AutoConfig

    if not (model_dir / "config.json").is_file():
        return None
    size = getattr(AutoConfig.from_pretrained(model_dir).get_text_config(), "hidden_size", None)
    return size if isinstance(size, int) else None


def _load_rows(config: CalibrationConfig, data_dir: Path, cache_dir: str) -> "Dataset":
    from datasets import load_dataset

    try:
        rows: Dataset = load_dataset(str(data_dir), config.subset, split=config.split, cache_dir=cache_dir)
    except Exception as error:  # somebody's files, read by several libraries
        raise _unreadable(config, error) from error
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
        try:
            row = rows[index]
        except Exception as error:
            raise _unreadable(config, error) from error
        if _what_is_bad(config, row) is not None:
            _refuse_bad_rows(config, rows)
        yield _text(config, tokenizer, index, row)


def _unreadable(config: CalibrationConfig, error: Exception) -> DataError:
    found = error.__cause__ or error  # what a library wraps says more than its wrapping
    reason = "a file holds no row" if isinstance(found, StopIteration) else one_line(found)
    return DataError(f"calibration: {_owner(config)} cannot be read: {reason}; mend or leave out the file")


def _text(config: CalibrationConfig, tokenizer: Any, index: int, row: Mapping[str, Any]) -> str:
    if config.text_field is not None:
        return str(row[config.text_field])
    messages = _messages(config, row)
    try:
        return render_chat(tokenizer, messages, add_generation_prompt=messages[-1]["role"] != "assistant")
    except Exception as error:  # a template is code, and may refuse what it is given
        raise DataError(
            f"calibration: {_owner(config)}: the model's chat template takes no row {index} ({one_line(error)}): take "
            "the row out, or name a plain column with text_field"
        ) from error


def _refuse_bad_rows(config: CalibrationConfig, rows: "Dataset") -> None:
    """Name the first of them, wherever the shuffle came upon one."""
    bad = ((index, what) for index, row in enumerate(rows) if (what := _what_is_bad(config, row)))
    index, what = next(bad)
    raise DataError(
        f"calibration: {_owner(config)}: row {index} (from 0) has {what}: take such rows out of the data set, or name "
        "another column"
    )


def _what_is_bad(config: CalibrationConfig, row: Mapping[str, Any]) -> str | None:
    """What stands where text, or a list of messages with text, should; None of a row that can be used."""
    for name in (config.text_field, config.prompt_field, config.response_field):
        if name is not None and not isinstance(row[name], str):
            return f"{row[name]!r:.60} and no text in column {name}"
    messages = row[config.messages_field] if config.messages_field is not None else None
    if config.messages_field is not None and not _are_messages(messages):
        return f"{messages!r:.60} and no messages with role and content in column {config.messages_field}"
    return None


def _are_messages(messages: Any) -> bool:
    return isinstance(messages, list) and bool(messages) and all(map(_is_message, messages))


def _is_message(each: Any) -> bool:
    """A message without text may still call a tool."""
    if not isinstance(each, dict) or not isinstance(each.get("role"), str):
        return False
    return isinstance(each.get("content"), str | list) or bool(each.get("tool_calls"))


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
