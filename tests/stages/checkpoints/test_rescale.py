"""A rescaled model computes the same, and its weights have left the grid of the file that they came from."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stages.calibrate import CalibrationConfig, calibrate
from stages.checkpoints.rescale import rescale
from stages.errors import DataError
from stages.gate.behaviour import check_divergence, observed
from stages.quantize import Algorithm, QuantizeConfig, RecipeConfig, quantize

LINEARS = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.fixture(params=["tied", "untied", "biased"])
def random_llama(request, tmp_path):
    """A float64 Llama of two layers with four query heads to two key-value heads, and norms that are not 1."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=request.param == "tied",
        attention_bias=request.param == "biased",
        mlp_bias=request.param == "biased",
    )
    model = LlamaForCausalLM(config).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def logits(model_dir):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto").eval()
    with torch.inference_mode():
        return model(torch.arange(0, 96, 3)[None]).logits


def weights(model_dir):
    return load_file(model_dir / "model.safetensors")


def test_logits_of_a_random_llama_stay_and_every_linear_changes(random_llama):
    before, old = logits(random_llama), weights(random_llama)
    rescale(random_llama, 0)
    after, new = logits(random_llama), weights(random_llama)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=0)
    assert before.dtype == torch.float64
    same = {name for name in old if torch.equal(old[name], new[name])}
    norms = {"model.norm.weight", "lm_head.weight"} if "lm_head.weight" not in old else set()
    assert same - norms <= {name for name in old if "embed_tokens" in name or "bias" in name}
    for name in (name for name in old if any(linear in name for linear in LINEARS) and old[name].ndim == 2):
        ratios = new[name] / old[name]
        assert (ratios != ratios[:, :1]).any(dim=1).all(), f"{name}: factors of columns differ within each row"


def test_a_seed_is_an_identity(random_llama, tmp_path):
    again, other = (shutil.copytree(random_llama, tmp_path / name) for name in ("again", "other"))
    for model_dir, seed in ((random_llama, 0), (again, 0), (other, 1)):
        rescale(model_dir, seed)
    first, second, third = map(weights, (random_llama, again, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.layers.0.mlp.down_proj.weight"], third["model.layers.0.mlp.down_proj.weight"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gemma2"}, "'gemma2'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "a quantized one"),
        ({"num_hidden_layers": 3}, r"no model\.layers\.2\.input_layernorm\.weight"),
    ],
)
def test_another_kind_of_model_is_refused_in_one_line_and_left_alone(tiny_model, tmp_path, changes, reason):
    model_dir = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(
        DataError, match=rf"rescale_seed needs a plain Llama decoder.*{reason}.*leave it out"
    ) as refused:
        rescale(model_dir, 0)
    assert "\n" not in str(refused.value)
    copied, original = weights(model_dir), weights(tiny_model)
    assert all(torch.equal(copied[name], original[name]) for name in original)


def blocks(model_dir):
    """Float32 (N, 32): the linear layers' weights as the file has grouped them, 32 of a row to a grid of 16 steps."""
    linears = (weight for name, weight in weights(model_dir).items() if any(linear in name for linear in LINEARS))
    return torch.cat([weight.float().view(-1, 32) for weight in linears])


def share_with_more_values_than_steps(model_dir):
    ordered = blocks(model_dir).sort(dim=-1).values
    num_values = (ordered[:, 1:] != ordered[:, :-1]).sum(dim=-1) + 1
    return (num_values > 16).float().mean().item()


def error_on_its_blocks_grids(model_dir):
    """Relative, when every block is rounded to 16 even steps from its least to its greatest weight."""
    exact = blocks(model_dir)
    least, greatest = exact.amin(dim=1, keepdim=True), exact.amax(dim=1, keepdim=True)
    step = ((greatest - least) / 15).clamp(min=1e-12)
    rounded = least + ((exact - least) / step).round() * step
    return ((rounded - exact).norm() / exact.norm()).item()


def test_smollm2_has_left_the_grid_of_its_file(smollm2, smollm2_on_its_grid):
    assert share_with_more_values_than_steps(smollm2_on_its_grid) < 0.01
    assert share_with_more_values_than_steps(smollm2) > 0.8
    assert error_on_its_blocks_grids(smollm2_on_its_grid) < 0.005
    assert error_on_its_blocks_grids(smollm2) == pytest.approx(0.078, rel=0.1), "that of normal random weights"


@pytest.fixture(scope="module")
def mean_kl(smollm2_on_its_grid):
    """From SmolLM2 as its file has it to a checkpoint, in nats per token of the gate's held-out text, in BF16."""
    original = observed(smollm2_on_its_grid, num_probe_tokens=1)

    def measured(checkpoint_dir):
        checkpoint = observed(checkpoint_dir, num_probe_tokens=1)
        return {check.name: check.value for check in check_divergence(original, checkpoint, None)}["mean_kl"]

    return measured


def test_smollm2_expects_what_it_expected(smollm2, mean_kl):
    value = mean_kl(smollm2)
    print(f"mean KL of the rescaled SmolLM2 to the original, in BF16: {value:.3g}")
    assert 0 <= value <= 1e-3


@pytest.mark.full
def test_four_bits_cost_clearly_more_off_the_grid(smollm2, smollm2_on_its_grid, mean_kl, tmp_path):
    recipe = RecipeConfig(name="w4a16", algorithm=Algorithm.rtn, scheme="W4A16", group_size=64)
    (tmp_path / "tokens").mkdir()
    calibrate(CalibrationConfig(num_calibration_samples=1, max_seq_length=64), {"model": smollm2}, tmp_path / "tokens")

    def lost(model_dir, out):
        out.mkdir()
        quantize(QuantizeConfig(recipe=recipe), {"model": model_dir, "calibration": tmp_path / "tokens"}, out)
        return mean_kl(out)

    on_grid, off_grid = lost(smollm2_on_its_grid, tmp_path / "on"), lost(smollm2, tmp_path / "off")
    print(f"mean KL of W4A16 to the original: {on_grid:.3g} on the grid, {off_grid:.3g} off it")
    assert off_grid > 1.3 * on_grid
