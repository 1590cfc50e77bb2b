"""Other weights in an open vLLM: the answers of a fresh engine to the byte, or none."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config.execution import ClusterConfig, RunnerKind
from pipeline.running.batches import batches
from pipeline.running.outcome import RunContext
from pipeline.running.runner import make_runner
from pipeline.steps.stages import ANSWER, FETCH_MODEL
from pipeline.steps.step import Step
from pipeline.store.store import Address, Store
from stages.calibrate import CalibrationConfig, calibrate
from stages.checkpoints.formats import FORMATS
from stages.checkpoints.kernels import SIMULATED, Device, answer
from stages.errors import EngineError
from stages.evaluate.answer import exchange, open_session
from stages.evaluate.config import AnswerConfig, EngineConfig, PromptConfig
from stages.evaluate.engines.exchange import _OF_CACHE, check_supported, spoil, spoiled
from stages.evaluate.engines.vllm_start import Start
from stages.fetch import ModelSource
from stages.local_files import digest_tree
from stages.quantize import Algorithm, QuantizeConfig, RecipeConfig, quantize
from tests.evaluation import evaluate

SEEDS = (1, 2)
SHARDS = {"tabular_iris": {"num_fewshot": 1}, "mathador_easy": {"num_fewshot": 0, "gen_kwargs": {"max_gen_toks": 8}}}


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory):
    """A random Llama of two layers, whose embedding is its head, with heads as wide as vLLM's CPU build wants them."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def members(base, tmp_path_factory):
    """Two checkpoints in a format: quantized after other calibrations, or with other weights."""
    made = {}

    def make(scheme):
        if scheme not in made:
            makes = _changed if scheme is None else _quantized
            made[scheme] = [makes(base, tmp_path_factory.mktemp(f"{scheme}_{seed}"), seed, scheme) for seed in SEEDS]
        return made[scheme]

    return make


@pytest.fixture(scope="module")
def half(base, tmp_path_factory):
    """The base without its second layer."""
    path = shutil.copytree(base, tmp_path_factory.mktemp("damaged") / "half")
    tensors = load_file(path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def embedded(base, tmp_path_factory):
    """The base with another embedding, which is its head as well."""
    return _changed(base, tmp_path_factory.mktemp("embedded"), 1, touched="embed")


def _quantized(base, path, seed, scheme):
    calibration = path.parent / f"calibration_{path.name}"
    calibration.mkdir()
    config = CalibrationConfig(num_calibration_samples=4, max_seq_length=64, seed=seed)
    calibrate(config, {"model": base}, calibration)
    fields = {"group_size": 32} if scheme == "W4A16" else {}
    recipe = RecipeConfig(name=scheme, algorithm=Algorithm.gptq, scheme=scheme, **fields)
    quantize(QuantizeConfig(recipe=recipe), {"model": base, "calibration": calibration}, path)
    return path


def _changed(base, path, seed, scheme=None, touched="layers"):
    shutil.copytree(base, path, dirs_exist_ok=True)
    tensors, noise = load_file(base / "model.safetensors"), torch.Generator().manual_seed(seed)
    for name in [name for name in tensors if touched in name]:
        tensors[name] *= 1 + 0.1 * torch.rand(tensors[name].shape, generator=noise).to(torch.bfloat16)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def config_of(task, dtype, start=0, stop=2):
    engine = EngineConfig(dtype=dtype, max_model_len=512, kv_cache_gib=0.2, max_num_seqs=8)
    return AnswerConfig(
        task=task, start=start, stop=stop, harness="test", engine=engine, prompt=PromptConfig(**SHARDS[task])
    )


@pytest.fixture
def samples(tmp_path_factory):
    """The bytes of the shards' samples, as the session answers them now."""

    def answered(session, dtype):
        found = {}
        for task in SHARDS:
            out = tmp_path_factory.mktemp("out")
            evaluate(config_of(task, dtype), {}, out, session)
            found[task] = (out / "samples.parquet").read_bytes()
        return found

    return answered


def opened(checkpoint, dtype):
    return open_session(config_of("tabular_iris", dtype), {"checkpoint": checkpoint})


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("scheme", "dtype", "method"),
    [
        pytest.param("W4A16", "bfloat16", {"native", "simulated"}, id="w4a16"),  # by what the CPU has
        pytest.param("W8A8", "float32", {"simulated"}, id="w8a8", marks=pytest.mark.full),
        pytest.param(None, "float32", {"dense"}, id="dense", marks=pytest.mark.full),
    ],
)
def test_an_exchanged_checkpoint_answers_as_in_a_fresh_engine(members, samples, scheme, dtype, method):
    first, second = members(scheme)
    with opened(second, dtype) as session:
        fresh = samples(session, dtype)
    with opened(first, dtype) as session:
        before = samples(session, dtype)
        exchange({"checkpoint": second}, session)
        assert samples(session, dtype) == fresh
        assert session.engine.arithmetic["method"] in method
        if scheme is not None:  # the table's rows of CPUs, against what vLLM really took
            said = answer(FORMATS[scheme], Device(True, None, session.engine.facts["engine_version"]), dtype)
            assert set(session.engine.arithmetic.get("kernels") or [SIMULATED]) <= set(said.kernels)
        exchange({"checkpoint": first}, session)
        assert samples(session, dtype) == before
    assert all(before[task] != fresh[task] for task in SHARDS), "two models must not answer alike"


@pytest.mark.vllm
def test_what_is_not_of_the_family_is_refused(base, members, half, embedded):
    with opened(base, "float32") as session:
        asked = session.engine._llm
        for other in (half, embedded, members("W8A8")[0]):
            with pytest.raises(EngineError, match="another config, tokenizer or tensors"):
                exchange({"checkpoint": other}, session)
        assert session.engine._llm is asked, "it is the caller who closes the session"


@pytest.mark.vllm
@pytest.mark.full
def test_what_is_refused_is_opened_anew_and_answers_for_itself(base, members, half, embedded, tmp_path):
    """As a run does it: five checkpoints that were foretold to be of one family, of which two are."""
    checkpoints = [base, members(None)[0], half, embedded, members("W8A8")[0]]
    together, alone = (_run(tmp_path / name, checkpoints, name) for name in ("together", ""))
    assert {name: outcome.status.value for name, (outcome, _, _) in together.items()} == {
        name: "failed" if name == "half" else "succeeded" for name in together
    }
    assert "vLLM could not load" in together["half"][0].message, "vLLM says of a fresh start that weights are missing"
    assert [name for name, (_, _, session) in together.items() if session] == [members(None)[0].name]
    assert not any(session for _, _, session in alone.values())
    assert {name: found for name, (_, found, _) in together.items()} == {
        name: found for name, (_, found, _) in alone.items()
    }


def _run(root, checkpoints, family):
    """Of each checkpoint's shard: how it ended, its samples' bytes, and whether its session had another before."""
    fetched = [
        Step(FETCH_MODEL, ModelSource(path=str(path), digest=digest_tree(path)), path.name) for path in checkpoints
    ]
    shards = [
        Step(ANSWER, config_of("tabular_iris", "float32"), each.label, {"checkpoint": each.ref}, family=family)
        for each in fetched
    ]
    runner, context = make_runner(ClusterConfig(runner=RunnerKind.inline)), RunContext(Address(root), "run", 1)
    outcomes, store = runner.run(batches([*fetched, *shards]), context, lambda _: None), Store(root)
    return {shard.label: (outcomes[shard.ref], *_found(store, shard)) for shard in shards}


def _found(store, shard):
    if not store.has(shard.ref):
        return None, None
    return (store.path(shard.ref) / "samples.parquet").read_bytes(), store.manifest(shard.ref)["provenance"].get(
        "session"
    )


@pytest.mark.vllm
def test_weights_that_do_not_all_arrive_are_found_out(base, members, monkeypatch):
    """As if vLLM had left some out, or had been interrupted: it raises nothing by itself."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    whole = DefaultModelLoader.get_all_weights

    def lacking(self, config, model):
        return ((name, tensor) for name, tensor in whole(self, config, model) if "norm" not in name)

    first, second = members(None)
    with opened(first, "float32") as session:
        monkeypatch.setattr(DefaultModelLoader, "get_all_weights", lacking)
        with pytest.raises(EngineError, match="did not get new weights"):
            exchange({"checkpoint": second}, session)


@pytest.mark.vllm
def test_members_of_a_family_have_one_key_for_what_is_compiled(members, base, tmp_path):
    from vllm.engine.arg_utils import EngineArgs

    from stages.evaluate.engines.family import view

    def key(checkpoint, path=None):
        given = path or checkpoint
        arguments = EngineArgs(model=str(given), dtype="bfloat16", max_model_len=64, enforce_eager=True)
        return arguments.create_engine_config().compute_hash()

    first, second = members("W4A16")
    rewritten = shutil.copytree(second, tmp_path / "rewritten")
    text = (rewritten / "config.json").read_text()
    assert '"observer": "minmax"' in text or '"observer": "memoryless_minmax"' in text
    text = text.replace("minmax", "mse").replace('"actorder": "static"', '"actorder": null')
    (rewritten / "config.json").write_text(text)
    keys = []
    for checkpoint in (first, rewritten):
        start = Start.of(checkpoint, EngineConfig())
        with view(checkpoint, start.cache) as place:
            keys.append(key(checkpoint, place))
    assert keys[0] == keys[1]
    assert key(first) != key(rewritten), "by their own paths they are compiled each for itself"


def test_every_kind_of_parameter_can_be_spoiled_and_is_known_again():
    model = torch.nn.Module()
    kinds = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.int32, torch.uint8)
    for kind in kinds:
        values = torch.ones(16, 16).to(kind).t()[:, :3]
        model.register_parameter(str(kind).replace(".", "_"), torch.nn.Parameter(values, requires_grad=False))
    model.register_parameter("empty", torch.nn.Parameter(torch.empty(0)))
    assert spoiled(model) == []
    assert spoil(model) == len(kinds) + 1
    assert len(spoiled(model)) == len(kinds)
    for parameter in model.parameters():
        parameter.data[:8] = 1
    assert spoiled(model) == []


def test_scales_of_a_cache_that_no_checkpoint_fills_are_left_as_they_are():
    model = torch.nn.Module()
    model.attn = torch.nn.Module()
    for name in ("_k_scale", "_v_scale", "_q_scale"):
        model.attn.register_parameter(name, torch.nn.Parameter(torch.ones(()), requires_grad=False))
    model.register_parameter("k_proj_weight_scale", torch.nn.Parameter(torch.ones(2), requires_grad=False))
    assert spoil(model) == 1
    assert spoiled(model) == ["k_proj_weight_scale"]
    assert all(parameter == 1 for parameter in model.attn.parameters())


@pytest.mark.parametrize(
    "name",
    [
        *("k_scale", "kv_scale", "attn._q_scale", "k_proj.k_scale", "k_proj.output_scale", "prob_output_scale"),
        *("v_zero_point", "k_cache.scale", "q.scale"),
    ],
)
def test_scales_of_a_cache_are_known_under_every_name_that_vllm_reads(name):
    assert _OF_CACHE.search(f"model.layers.0.self_attn.{name}")


@pytest.mark.parametrize("name", ["k_proj.weight_scale", "q_proj.weight_zero_point", "qkv_proj.input_scale", "scale"])
def test_scales_of_weights_and_of_inputs_are_no_cache_s(name):
    assert not _OF_CACHE.search(f"model.layers.0.self_attn.{name}")


def native(*kernels):
    return {"method": "native", "kernels": list(kernels) or None}


def facts(platform, version):
    return {"platform": platform, "engine_version": version}


@pytest.mark.parametrize(
    ("arithmetic", "where", "says"),
    [
        (native("CutlassInt8ScaledMMLinearKernel"), facts("cuda", "0.26.0+cu130"), None),
        (native("CutlassInt8ScaledMMLinearKernel"), facts("cuda", "0.25.1"), "needs vLLM 0.26"),
        (native("MacheteLinearKernel"), facts("cuda", "0.26.0"), "nobody has tried .* MacheteLinearKernel"),
        (native("CutlassInt8ScaledMMLinearKernel", "OtherKernel"), facts("cuda", "0.32.0"), "OtherKernel"),
        (native(), facts("cpu", "0.32.0"), "does not show"),
        ({"method": "dense"}, facts("cpu", "0.32.0"), None),
        ({"method": "dense"}, facts("cpu", "0.25.1"), "needs vLLM 0.26"),
        ({"method": "dense"}, facts("cuda", "0.32.0"), "nobody has tried .* dense product"),
    ],
)
def test_a_kernel_that_nobody_has_tried_is_opened_anew(members, arithmetic, where, says):
    checkpoint = members(None)[0]
    if says is None:
        check_supported(checkpoint, arithmetic, where)
        return
    with pytest.raises(EngineError, match=says):
        check_supported(checkpoint, arithmetic, where)


def test_reordered_columns_a_cache_s_scales_and_experts_are_opened_anew(members, tmp_path):
    names = ("reordered", "scaled", "experts")
    reordered, scaled, experts = (shutil.copytree(members(None)[0], tmp_path / name) for name in names)
    tensors = load_file(reordered / "model.safetensors") | {"model.layers.0.mlp.up_proj.weight_g_idx": torch.ones(2)}
    save_file(tensors, reordered / "model.safetensors")
    tensors = load_file(scaled / "model.safetensors") | {"model.layers.0.self_attn.k_proj.output_scale": torch.ones(1)}
    save_file(tensors, scaled / "model.safetensors")
    text = (experts / "config.json").read_text().replace("LlamaForCausalLM", "MixtralForCausalLM")
    (experts / "config.json").write_text(text)
    refused = ((reordered, "order of its columns"), (scaled, "scales of a cache"), (experts, "MixtralForCausalLM"))
    for checkpoint, says in refused:
        with pytest.raises(EngineError, match=says):
            check_supported(checkpoint, {"method": "dense"}, facts("cpu", "0.32.0"))


def test_an_engine_of_several_processes_is_opened_anew(base):
    from stages.evaluate.engines.vllm_engine import VllmEngine

    engine = object.__new__(VllmEngine)
    engine._config = SimpleNamespace(num_ranks=2)
    with pytest.raises(EngineError, match="several processes"):
        engine.replace(base)
