"""What a user gives vLLM beside what the evaluation sets."""

from pathlib import Path

import pytest

from stages.errors import ConfigError
from stages.evaluate.config import EngineConfig
from stages.evaluate.engines.vllm_start import Start, check_known, llm_arguments


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


@pytest.mark.dear
def test_what_is_no_argument_of_vllm_is_told_before_anything_is_loaded() -> None:
    check_known({"disable_custom_all_reduce": True, "compilation_config": {}})
    with pytest.raises(ConfigError, match=r"engine.vllm_args.block_sise is no .* did you mean block_size\?"):
        check_known({"block_sise": 16})
