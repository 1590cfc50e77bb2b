"""A checkpoint of packed weights where vLLM has no kernel for them."""

import pytest

from stages.evaluate.config import EngineConfig, EngineKind
from stages.evaluate.engines.protocol import ScoreRequest
from stages.evaluate.session import open_engine
from stages.quantize import Algorithm, QuantizeConfig, RecipeConfig, quantize

pytestmark = pytest.mark.vllm

PREFIX, NEXT = (403, 1250, 284, 7042), (260, 28)


def logprobs(checkpoint, kind):
    """Of two tokens after a prefix, in float32, and what the engine says of its weights."""
    engine = open_engine(
        checkpoint, EngineConfig(kind=kind, dtype="float32", max_model_len=64, kv_cache_gib=0.1, max_num_seqs=4)
    )
    try:
        scores = engine.loglikelihood([ScoreRequest(PREFIX, (token,)) for token in NEXT])
        return [score.logprob for score in scores], engine.scoring.get("weights")
    finally:
        engine.close()


def test_packed_weights_answer_in_float32_whatever_this_process_ran_before(smollm2, tmp_path):
    """Once vLLM's kernels are loaded, on AVX512 there is one for packed weights; it takes no float32."""
    recipe = RecipeConfig(name="w4", algorithm=Algorithm.rtn, scheme="W4A16", group_size=64)
    quantize(QuantizeConfig(recipe=recipe), {"model": smollm2}, tmp_path)
    unquantized, note = logprobs(smollm2, EngineKind.vllm)
    assert note is None
    found, note = logprobs(tmp_path, EngineKind.vllm)
    assert "dequantized" in note
    expected, _ = logprobs(tmp_path, EngineKind.transformers)
    assert found == pytest.approx(expected, abs=0.03)  # the copy's weights are rounded to BF16
    assert expected != pytest.approx(unquantized, abs=0.06)
