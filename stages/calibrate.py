"""Choose the token sequences a quantizer calibrates on: random tokens, or rows of a data set as chats."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from stages.fetch import DatasetSource
from stages.fields import identity

VERSION = 1


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
            raise ValueError(
                "calibration: num_calibration_samples and max_seq_length must be at least 1"
            )
        kinds = [self.text_field, self.prompt_field, self.messages_field]
        if self.method is CalibrationMethod.random_tokens:
            if self.dataset is not None or any(kinds):
                raise ValueError(
                    "calibration: random_tokens reads no data set; set method=dataset or drop the fields"
                )
            return
        if self.dataset is None:
            raise ValueError("calibration: method=dataset needs dataset.repo_id")
        if sum(field is not None for field in kinds) != 1:
            raise ValueError(
                "calibration: give exactly one of text_field, prompt_field, messages_field"
            )
        if self.response_field is not None and self.prompt_field is None:
            raise ValueError("calibration: response_field needs prompt_field")


def calibrate(
    config: CalibrationConfig, inputs: Mapping[str, Path], out: Path
) -> Mapping[str, float | None]:
    """Write ``calibration.parquet`` (``input_ids``: list<int32>); metrics ``num_samples``, ``num_tokens``."""
    raise NotImplementedError
