"""What lm-eval writes of a run with ``--log_samples``: which files there are, and what they say of how it was made."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from stages.errors import ConfigError, DataError, one_line, redacted
from stages.evaluate.differences import differences
from stages.local_files import digest_files

IMPORTED = "imported"  # the method of an arithmetic that somebody else's program used
_SECRET = re.compile(r"((hf|auth|api|access)_)?token|(.*_)?(key|password|secret|auth|header)s?", re.IGNORECASE)
_DATE = r"\d{4}-\d\d-\d\dT[\d.-]+"
_SAMPLES = re.compile(rf"samples_(?P<task>.+)_(?P<date>{_DATE})\.jsonl")
# Of a model's arguments those in which a trial and its base differ: what the checkpoint is, and how it is stored.
_CHECKPOINT_ARGS = (
    "pretrained", "revision", "subfolder", "peft", "delta", "tokenizer", "tokenizer_revision", "model", "path",
    "engine", "base_url", "gguf_file", "autogptq", "gptqmodel", "quantization", "quantization_config", "load_in_4bit",
    "load_in_8bit",
)  # fmt: skip
# And those that say where and how fast it was asked.
_EXECUTION_ARGS = (
    "device", "device_map", "batch_size", "max_batch_size", "trust_remote_code", "parallelize", "num_concurrent",
    "max_retries", "timeout", "gpu_memory_utilization", "data_parallel_size", "max_num_seqs",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """The samples of one model; ``samples`` and ``results`` by task, where a task has several files all of them."""

    directory: Path
    samples: Mapping[str, Sequence[Path]]
    results: Mapping[Path, Mapping[str, Any]]  # by samples file, of those that have one
    facts: Mapping[str, Any]  # what must be alike in two trials that are compared
    arithmetic: Mapping[str, Any]

    @property
    def checkpoint(self) -> str:
        """What was asked, in words."""
        named = self.arithmetic["model_args"].get("pretrained")
        return " ".join(filter(None, (self.arithmetic["model"], named)))

    @property
    def scoring(self) -> Mapping[str, str]:
        """How log-likelihoods were found nobody here knows."""
        return {}

    def file_of(self, task: str) -> Path:
        """Its samples.  Raises ConfigError where there are none or several, or where they cannot be scored."""
        files = self.samples.get(task, ())
        if not files:
            raise ConfigError(
                f"engine.samples={self.directory} holds no samples of task {task}; it has {self._some_tasks()}: run "
                "lm_eval on it with --log_samples, or take the task out"
            )
        if len(files) > 1:
            names = " and ".join(str(file.relative_to(self.directory)) for file in files)
            raise ConfigError(
                f"task {task} has two files of samples, {names}: take all but one out of {self.directory}"
            )
        self._check_has_results(files[0])
        if any(name.startswith("bypass,") for name in self._said(files[0], "results", task) or {}):
            raise ConfigError(
                f"{files[0].name} is of a run with --predict_only, which has no scores to be held against: run lm_eval "
                "without it"
            )
        return files[0]

    def check_version(self, task: str, version: Any) -> None:
        """Raise ConfigError where another version of the task was asked than ours."""
        file = self.file_of(task)
        found = self._said(file, "versions", task)
        if json.dumps(found) != json.dumps(version):
            raise ConfigError(
                f"task {task} is version {json.dumps(version)} here, and {file.name} holds answers to version "
                f"{json.dumps(found)}: run lm_eval's on the same version"
            )

    def differs_from(self, other: "RecordedRun", name: str, other_name: str) -> str:
        """In what the two were not asked alike; empty where they can be compared."""
        return differences(self.facts, other.facts, name, other_name)

    def _said(self, file: Path, part: str, task: str) -> Any:
        found = self.results[file].get(part)
        return found.get(task) if isinstance(found, dict) else None

    def _check_has_results(self, file: Path) -> None:
        if file not in self.results:
            raise ConfigError(
                f"{file.name} lies without the results_<date>.json of its run, which says how it was made: put it "
                "beside"
            )

    def _some_tasks(self) -> str:
        return ", ".join(sorted(self.samples)[:10])


def read_run(directory: Path, digest: str | None = None) -> RecordedRun:
    """What lies below ``directory``, all of one model asked in one way.

    Raises ConfigError for what cannot be taken as a trial's answers, DataError for what cannot be read, or is not what
    ``digest`` says.
    """
    samples = _samples(directory)
    if digest is not None and digest_files([str(directory)]) != digest:
        raise DataError(f"engine.samples={directory} holds other files than when it was planned; plan again")
    places = {file: place for files in samples.values() for file in files if (place := _results_of(file)) is not None}
    results = {place: _read(place) for place in dict.fromkeys(places.values())}
    facts, arithmetic = _one_model(results)
    return RecordedRun(directory, samples, {file: results[place] for file, place in places.items()}, facts, arithmetic)


def repeats_apart(task: str) -> str:
    """Why the repeats of a document cannot be in several shards, in one line."""
    return (
        f"task {task} asks for more answers to a document than its shard_size: of answers that were recorded nobody "
        "can tell which is which in two shards; raise shard_size of its task slot to num_repeats"
    )


def _samples(directory: Path) -> dict[str, list[Path]]:
    found = [
        (match["task"], file)
        for file in sorted(directory.rglob("samples_*.jsonl"))
        if (match := _SAMPLES.fullmatch(file.name))
    ]
    if not found:
        raise ConfigError(
            f"engine.samples={directory} holds no samples_<task>_<date>.jsonl: run lm_eval with --log_samples and "
            "--output_path, and name that directory"
        )
    return {task: [file for _, file in each] for task, each in groupby(sorted(found), key=lambda item: item[0])}


def _results_of(samples: Path) -> Path | None:
    """The results of the same run: they are written a moment before, with the same date."""
    match = _SAMPLES.fullmatch(samples.name)
    assert match is not None
    return next(iter(sorted(samples.parent.glob(f"*_{match['date']}.json"))), None)


def _read(place: Path) -> dict[str, Any]:
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{place.name} cannot be read ({one_line(error)})") from None
    if not isinstance(content, dict) or _model_of(content) is None or not content.get("lm_eval_version"):
        raise DataError(
            f"{place.name} does not say which model was asked with which lm-eval: it is none of its results"
        )
    return content


def _one_model(results: Mapping[Path, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the model was asked, and what it was; ConfigError where two runs say two things."""
    said = {place: (_facts(content), _arithmetic(content)) for place, content in results.items()}
    first = next(iter(said), None)
    for place, (facts, arithmetic) in said.items():
        assert first is not None
        known = {**said[first][0], **said[first][1]}
        if found := differences(known, {**facts, **arithmetic}, first.name, place.name):
            raise ConfigError(f"{place.parent} holds answers of two models, or of one asked in two ways: {found}")
    return said[first] if first is not None else ({}, {})


def _model_of(content: Mapping[str, Any]) -> str | None:
    """The adapter's name; that of an object that was given to lm-eval, which says its checkpoint, is not known."""
    source, config = content.get("model_source"), content.get("config")
    named = source or (config.get("model") if isinstance(config, dict) else None)
    return named and ("CUSTOM" if "/" in str(named) else str(named))


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(_arguments(content))
    versions = [f"lm_eval {content['lm_eval_version']}", str(_model_of(content))]
    if transformers := content.get("transformers_version"):
        versions.append(f"transformers {transformers}")
    silent = ("dtype", *_CHECKPOINT_ARGS, *_EXECUTION_ARGS)
    return {
        "engine": "lm-eval",
        "engine_version": ", ".join(versions),
        "platform": "lm-eval",
        "dtype": arguments.get("dtype"),
        "max_model_len": content.get("max_length"),
        "model_args": {name: value for name, value in sorted(arguments.items()) if _plain(name) not in silent},
    }


def _plain(name: str) -> str:
    """Every setting of bitsandbytes says how a checkpoint is stored."""
    return "quantization" if name.startswith("bnb_") else name


def _arithmetic(content: Mapping[str, Any]) -> dict[str, Any]:
    config = content.get("config") or {}
    said = {name: config.get(name) for name in ("model_dtype", "model_revision", "model_sha")}
    return {
        "method": IMPORTED,
        "model": redacted(str(config.get("model") or _model_of(content))),
        "model_args": dict(sorted(_arguments(content))),
        **{name: str(value) for name, value in said.items() if value},
    }


def _arguments(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A mapping, or ``name=value,...``; what looks like a secret is left out."""
    given = (content.get("config") or {}).get("model_args") or {}
    pairs = given.items() if isinstance(given, dict) else (part.partition("=")[::2] for part in str(given).split(","))
    for name, value in pairs:
        if redacted(text := f"{name}={value}") == text and not _SECRET.fullmatch(str(name)):
            yield str(name).strip(), str(value)
