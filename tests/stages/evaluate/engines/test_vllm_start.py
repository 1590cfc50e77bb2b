"""What a user gives vLLM beside what the evaluation sets."""

from dataclasses import fields
from pathlib import Path

import pytest

from stages.evaluate.config import EngineConfig
from stages.evaluate.engines.vllm_start import Start, llm_arguments
from stages.evaluate.vllm_args import _known_here


def test_own_arguments_reach_vllm_as_they_are() -> None:
    own = {"disable_custom_all_reduce": True, "block_size": 16}
    start = Start(EngineConfig(vllm_args=own), 0.9, None)
    assert llm_arguments(Path("model"), start, is_cpu=True).items() >= own.items()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("max_model_len", "is engine.max_model_len: set that"),
        ("max-model-len", "is no engine argument of vLLM: write it like max_num_seqs"),
        ("-tp", "is no engine argument"),
        ("logprobs_mode", "is what the evaluation rests on"),
        ("skip_tokenizer_init", "is what the evaluation rests on"),
        ("model_weights", "is the checkpoint of the trial"),
        ("data_parallel_size", "is of GPUs that no plan counts"),
        ("port", "is of the server"),
        ("hf_token", "is a secret"),
    ],
)
def test_what_is_set_elsewhere_or_would_change_what_answers_mean_is_refused(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"engine.vllm_args.{name} {says}"):
        EngineConfig(vllm_args={name: 1})


@pytest.mark.parametrize("given", ["false", "False", " true "])
def test_a_text_that_spells_true_or_false_is_refused_however_deep(given: str) -> None:
    with pytest.raises(ValueError, match=r"engine.vllm_args.compilation_config.fuse is the text .* without quotes"):
        EngineConfig(vllm_args={"compilation_config": {"fuse": given}})


def test_what_is_no_argument_of_vllm_is_told_without_loading_it() -> None:
    assert EngineConfig().unknown_argument is None
    known = {"disable_custom_all_reduce": True, "compilation_config": {"level": "none"}}
    assert EngineConfig(vllm_args=known).unknown_argument is None
    found = EngineConfig(vllm_args=known | {"block_sise": 16}).unknown_argument
    assert found == "engine.vllm_args.block_sise is no engine argument of this vLLM; did you mean block_size?"


@pytest.mark.dear
def test_the_arguments_that_are_known_are_vllm_s_own() -> None:
    from vllm.engine.arg_utils import EngineArgs

    assert _known_here() == {field.name for field in fields(EngineArgs)}


def test_where_no_vllm_is_nothing_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.evaluate.vllm_args._known_here", frozenset)
    assert EngineConfig(vllm_args={"block_sise": 16}).unknown_argument is None
