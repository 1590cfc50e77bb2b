"""The plan: pure, ordered, shared where things are the same."""

import copy
import dataclasses
import functools
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pipeline.config.schema import Config, register
from pipeline.config.sweep import Trial, expand
from pipeline.errors import UserError
from pipeline.planning.facts import resolve
from pipeline.planning.make_plan import make_plan
from pipeline.planning.memory import GpuMemory, check_gpu_memory, gpu_memory
from pipeline.planning.plan import Plan
from pipeline.planning.shards import ranges
from pipeline.steps.step import Step
from tests.stages.checkpoints.written import LLAMA, TENSORS, write_model


def trials_of(*cli: str) -> list[Trial]:
    return copy.deepcopy(_composed(cli))


@functools.cache
def _composed(cli: tuple[str, ...]) -> list[Trial]:
    """Composing takes Hydra a second, and many tests begin with the same sweep."""
    register()
    with initialize_config_module(version_base="1.3", config_module="conf"):
        config = OmegaConf.to_object(compose("config", overrides=list(cli)))
        assert isinstance(config, Config)
        return expand(cli, config)


@functools.cache
def remembered() -> Path:
    """What lm-eval says of tasks is asked once for all tests of a process."""
    return Path(tempfile.mkdtemp(prefix="plans_"))


def planned(tmp_path: Path, *cli: str) -> Plan:
    trials = trials_of(*cli)
    return make_plan("test", trials, resolve(trials, remembered()))


def by_stage(plan: Plan, stage: str) -> list[Step]:
    return [step for step in plan.steps.values() if step.stage.name == stage]


@pytest.mark.dear
def test_small_engines_share_a_gpu_and_what_they_answer_is_the_same(tmp_path: Path) -> None:
    whole = planned(tmp_path, "+sweep=smoke", "engine=vllm_gpu")
    shared = planned(tmp_path, "+sweep=smoke", "engine=vllm_gpu", "engine.gpus_per_rank=0.25", "engine.kv_cache_gib=8")
    assert {step.resources.num_gpus for step in by_stage(shared, "answer")} == {0.25}
    assert {step.resources.num_gpus for step in by_stage(shared, "quantize")} == {1}, "its memory is not limited"
    assert shared.fingerprint == whole.fingerprint


@pytest.mark.dear
def test_what_shares_a_gpu_must_fit_its_part_of_it(tmp_path: Path) -> None:
    share = ["engine=vllm_gpu", "engine.gpus_per_rank=0.1", "engine.kv_cache_gib=0.5"]
    check_gpu_memory(planned(tmp_path, "+sweep=smoke", *share, "engine.gpu_memory_gib=80"))
    with pytest.raises(UserError, match=r"can use 0 of 4: raise"):
        check_gpu_memory(planned(tmp_path, "+sweep=smoke", *share, "engine.gpu_memory_gib=4"))


@given(st.integers(1, 5000), st.integers(1, 700))
def test_shards_cover_every_document_once(num_docs: int, shard_size: int) -> None:
    shards = ranges(num_docs, shard_size)
    assert [document for start, stop in shards for document in range(start, stop)] == list(range(num_docs))
    assert all(0 < stop - start <= shard_size for start, stop in shards)


def test_planning_touches_nothing(tmp_path: Path) -> None:
    """Neither files, nor the clock's locale, nor the network: an audit hook would see an open or a connect."""
    trials = trials_of("+sweep=smoke")
    facts = resolve(trials, remembered())
    seen: list[str] = []
    watching = True

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if watching and (event.startswith(("open", "socket", "subprocess", "os."))):
            seen.append(event)

    make_plan("warm", trials, facts)  # the stage modules are imported here
    sys.addaudithook(hook)
    one = make_plan("test", trials, facts)
    watching = False
    assert seen == []
    assert one.fingerprint == make_plan("test", trials, facts).fingerprint


def test_every_step_comes_after_what_it_needs(tmp_path: Path) -> None:
    seen = set()
    for step in planned(tmp_path, "+sweep=smoke").steps.values():
        assert set(step.upstream) <= seen, step.label
        seen.add(step.ref)


def test_what_is_the_same_is_done_once(tmp_path: Path) -> None:
    plan = planned(tmp_path, "+sweep=smoke")
    assert len(by_stage(plan, "fetch_model")) == 1
    assert len(by_stage(plan, "calibrate")) == 1
    assert len(by_stage(plan, "quantize")) == 3
    assert len(by_stage(plan, "gate")) == 3


def test_an_evaluation_waits_for_the_gate_but_is_not_made_wrong_by_a_new_threshold(tmp_path: Path) -> None:
    plan = planned(tmp_path, "+sweep=smoke")
    stricter = planned(tmp_path, "+sweep=smoke", "gate.max_mean_kl=0.5")
    quantized = [step for step in by_stage(plan, "answer") if "bf16" not in step.trial]
    assert all(step.after and step.after[0].stage == "gate" for step in quantized)
    assert {s.ref for s in by_stage(plan, "gate")}.isdisjoint(s.ref for s in by_stage(stricter, "gate"))
    assert {s.ref for s in by_stage(plan, "answer")} == {s.ref for s in by_stage(stricter, "answer")}


@pytest.mark.dear
def test_a_changed_field_makes_exactly_the_dependent_steps_new(tmp_path: Path) -> None:
    before = planned(tmp_path, "+sweep=smoke")
    after = planned(tmp_path, "+sweep=smoke", "recipe.group_size=32")
    new = {step.stage.name for ref, step in after.steps.items() if ref not in before.steps}
    assert new == {"quantize", "gate", "answer", "score", "compare"}
    assert {step.trial for ref, step in after.steps.items() if ref not in before.steps} == {"smollm2_135m/w4a16_int"}


def test_where_it_runs_does_not_change_what_it_is(tmp_path: Path) -> None:
    before = planned(tmp_path, "+sweep=smoke")
    after = planned(tmp_path, "+sweep=smoke", "engine.num_cpus=7", "engine.kv_cache_gib=9", "cluster=existing")
    assert before.fingerprint == after.fingerprint


@pytest.mark.dear
def test_a_group_size_that_does_not_fit_is_refused_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"group_size 128 does not divide .*q_proj.*: 16, 32, 64"):
        planned(tmp_path, "+sweep=smoke", "recipe.group_size=128")


@pytest.mark.dear
def test_the_study_has_half_a_million_evaluations(tmp_path: Path) -> None:
    plan = planned(tmp_path, "+sweep=llama31")
    assert plan.num_evaluations >= 500_000
    per_trial = dict.fromkeys(plan.trials, 0)
    for step in by_stage(plan, "answer"):
        per_trial[step.trial] += 0 if step.config.rerun else step.num_documents
    assert len(set(per_trial.values())) == 1, "every trial answers the same documents, some of them twice"


def test_a_limit_counts_documents_of_every_leaf(tmp_path: Path) -> None:
    plan = planned(tmp_path, "+sweep=smoke", "tasks.tabular.limit=7")
    documents = [s.num_documents for s in by_stage(plan, "answer") if s.config.task.startswith("tabular_")]
    assert set(documents) == {7}


@pytest.mark.dear
def test_a_limit_draws_the_same_sample_for_all_trials_and_no_limit_draws_none(tmp_path: Path) -> None:
    def asked(*changed: str) -> dict[str, set[int | None]]:
        plan = planned(tmp_path, "+sweep=smoke", "tasks.tabular.limit=130", *changed)
        found: dict[str, set[int | None]] = {}
        for step in by_stage(plan, "answer"):
            found.setdefault(step.config.task, set()).add(step.config.limit_seed)
        return found

    drawn = ["tasks.tabular.limit_order=random"]
    assert asked() == {"mathador": {None}, "tabular_iris": {None}, "tabular_wine": {None}}
    assert asked(*drawn) == {"mathador": {None}, "tabular_iris": {None}, "tabular_wine": {0}}, "iris has no more"
    assert asked(*drawn, "tasks.tabular.limit_seed=7")["tabular_wine"] == {7}
    assert asked(*drawn, "tasks.tabular.limit=null")["tabular_wine"] == {None}


def test_comparisons_pair_a_trial_with_its_base(tmp_path: Path) -> None:
    plan = planned(tmp_path, "+sweep=smoke")
    for step in by_stage(plan, "compare"):
        roles = {name.split("/")[0] for name in step.inputs}
        assert roles == ({"trial"} if step.trial.endswith("/bf16") else {"trial", "base"})


@pytest.mark.dear
def test_a_local_model_is_known_by_its_bytes(tmp_path: Path) -> None:
    def plan(fill: bytes) -> Plan:
        model = tmp_path / "model"
        model.mkdir(exist_ok=True)
        header = b'{"model.layers.0.norm.weight": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}'
        (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + fill)
        (model / "tokenizer.json").write_text("{}")
        (model / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": true}')
        source = f"model.source={{path: {model}, package: null, package_version: null, file: null}}"
        return planned(tmp_path, "recipe=bf16", source, "model.shape=null")

    first = plan(b"11")
    assert plan(b"11").fingerprint == first.fingerprint
    assert plan(b"22").fingerprint != first.fingerprint


def local(path: Path, config: Mapping[str, object] = LLAMA, tensors: Mapping[str, tuple[int, ...]] = TENSORS) -> str:
    """The model of a sweep, as a directory of headers."""
    found = write_model(path / "local", config, tensors)
    return f"model.source={{path: {found}, package: null, package_version: null, file: null, rescale_seed: null}}"


@pytest.mark.parametrize(
    ("config", "dropped", "cli", "message"),
    [
        ({}, "lm_head.weight", [], "lm_head.weight is missing and the model does not tie it"),
        pytest.param(
            {},
            "model.layers.1.mlp.up_proj.weight",
            [],
            "local: model.layers.1.mlp.up_proj.weight is missing",
            marks=pytest.mark.full,  # a process that imports torch is asked
        ),
        ({"model_type": "x_custom"}, "", [], "no class for a language model of model_type 'x_custom'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "", [], "is quantized already .gptq."),
        ({}, "", ["engine.max_model_len=1024"], "engine.max_model_len=1024 is more than the 512 positions"),
        (
            {},
            "",
            ["recipe=w8a8_int", "calibration.max_seq_length=1024"],
            "calibration.max_seq_length=1024 is more than the 512 positions",
        ),
        (
            {"tie_word_embeddings": True},
            "lm_head.weight",
            ["recipe=w8a8_fp", "recipe.ignore=[]"],
            "keep lm_head in ignore, this model ties it to its embeddings",
        ),
        (
            {},
            "",
            ["recipe=w4a16_int", "recipe.group_size=128", "calibration.max_seq_length=512"],
            r"group_size 128 does not divide mlp.gate_proj \(64 inputs\), .*; group sizes that fit: 16, 32, 64",
        ),
    ],
)
@pytest.mark.dear
def test_what_a_local_model_cannot_have_is_refused_in_the_plan(
    tmp_path: Path, config: dict[str, object], dropped: str, cli: list[str], message: str
) -> None:
    tensors = {name: shape for name, shape in TENSORS.items() if name != dropped}
    source = local(tmp_path, LLAMA | config, tensors)
    fits = ["engine.max_model_len=512", "model.shape=null"]
    with pytest.raises(UserError, match=message) as refused:
        planned(tmp_path, "suite=none", "+task@tasks.game=mathador", source, *fits, *cli)
    assert "\n" not in str(refused.value)


@pytest.mark.dear
def test_memory_of_a_local_model_needs_no_shape_and_is_not_known_where_its_config_does_not_say_it(
    tmp_path: Path,
) -> None:
    def planned_memory(config: Mapping[str, object]) -> GpuMemory | None:
        cli = ["suite=none", "+task@tasks.game=mathador", "recipe=bf16", "engine.max_model_len=256", "model.shape=null"]
        (trial,) = planned(tmp_path, *cli, local(tmp_path, config)).trials.values()
        return gpu_memory(trial)

    known = planned_memory(LLAMA)
    assert known is not None
    assert known.weights_gib * 2**30 == 2 * sum(math.prod(shape) for shape in TENSORS.values())
    assert known.context_gib * 2**30 == 2 * (2 * 2 * 2 * 16) * 256
    unknown = planned_memory({"model_type": "llama", "tie_word_embeddings": False})
    assert unknown is not None
    assert (unknown.weights_gib, unknown.context_gib) == (known.weights_gib, None)
    assert unknown.per_gpu_gib == known.weights_gib, "the floor of what is known"


@pytest.mark.dear
def test_what_is_unusual_about_a_local_model_is_noted_beside_its_results(tmp_path: Path) -> None:
    cli = ["suite=none", "+task@tasks.game=mathador", "recipe=bf16", "engine.max_model_len=256", "model.shape=null"]
    source = local(tmp_path)
    write_model(tmp_path / "local", dtype="F32")
    (trial,) = planned(tmp_path, *cli, source, "model.note=Mine.").trials.values()
    assert trial.trial.config.model.note == (
        "Mine. The base's weights are stored in FP32: its size, and every ratio, is against that."
    )


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.dear
def test_planning_imports_no_model_library() -> None:
    code = (
        "import sys; from pipeline.__main__ import main; sys.argv[1:] = ['+sweep=llama31', 'mode=plan']; main();"
        "print([name for name in ('torch', 'vllm', 'llmcompressor', 'lm_eval', 'transformers', 'datasets', 'ray')"
        " if name in sys.modules])"
    )
    assert run_python(code).splitlines()[-1] == "[]"


def test_steps_survive_the_way_to_a_worker(tmp_path: Path) -> None:
    import pickle

    steps: Sequence[Step] = list(planned(tmp_path, "+sweep=smoke").steps.values())
    for step in steps:
        arrived = pickle.loads(pickle.dumps(step))
        assert arrived.ref == step.ref
        assert dataclasses.asdict(arrived.config) == dataclasses.asdict(step.config)


@pytest.mark.dear
def test_baselines_reach_the_comparison_of_the_leaves_that_are_evaluated(tmp_path: Path) -> None:
    cli = ["suite=none", "+task@tasks.t=tabular", "tasks.t.leaves=[tabular_iris]"]
    baselines = "++tasks.t.leaf_baselines={tabular_iris: 0.5, tabular_wine: 0.25}"
    (comparison,) = by_stage(planned(tmp_path, *cli, baselines), "compare")
    assert comparison.config.leaf_baselines == {"tabular_iris": 0.5}
    (plain,) = by_stage(planned(tmp_path, *cli), "compare")
    assert plain.fingerprint != comparison.fingerprint
    with pytest.raises(UserError, match=r"tasks\.t\.leaf_baselines lacks tabular_iris"):
        planned(tmp_path, *cli, "++tasks.t.leaf_baselines={tabular_wine: 0.25}")


@pytest.mark.dear
def test_margins_are_part_of_a_comparison_and_clusters_of_a_score(tmp_path: Path) -> None:
    cli = ["suite=none", "+task@tasks.t=tabular"]
    plain, own, group = (
        planned(tmp_path, *cli, *more)
        for more in ((), ("tasks.t.margin_points=1",), ("tasks.t.cluster=story", "compare.margin_points=1"))
    )
    margins = [by_stage(plan, "compare")[0].config.margin_points for plan in (plain, own, group)]
    assert margins == [2.0, 1.0, 1.0]
    assert [step.config.cluster for step in by_stage(group, "score")] == ["story"]
    for stage, is_same in (("answer", True), ("score", True), ("compare", False)):
        refs = [[step.ref for step in by_stage(plan, stage)] for plan in (plain, own)]
        assert (refs[0] == refs[1]) is is_same
    assert by_stage(plain, "score")[0].fingerprint != by_stage(group, "score")[0].fingerprint


@pytest.mark.dear
def test_drift_compares_each_quantized_checkpoint_with_its_base_on_one_text(tmp_path: Path) -> None:
    plan = planned(tmp_path, "+sweep=smoke", "drift=wikitext", "drift.text.num_calibration_samples=4")
    drifts = by_stage(plan, "drift")
    assert len(drifts) == 3
    assert {step.inputs["base"] for step in drifts} == {by_stage(plan, "fetch_model")[0].ref}
    assert {step.inputs["checkpoint"] for step in drifts} == {step.ref for step in by_stage(plan, "quantize")}
    assert len({step.inputs["text"] for step in drifts}) == 1
    assert ["drift" not in trial.steps for trial in plan.trials.values()] == [True, False, False, False]
    assert by_stage(planned(tmp_path, "+sweep=smoke"), "drift") == []


@pytest.mark.dear
def test_what_a_cpu_simulates_is_evaluated_anew_and_nothing_else(tmp_path: Path) -> None:
    """Results on GPUs, of the base and of transformers are those of stores that knew no simulation."""

    def simulations(*overrides: str) -> dict[str, int | None]:
        plan = planned(tmp_path, "+sweep=smoke", *overrides)
        return {step.trial.rpartition("/")[2]: step.config.simulation for step in by_stage(plan, "answer")}

    assert simulations() == {"bf16": None, "w8a8_fp": 1, "w8a8_int": 1, "w4a16_int": 1}
    assert set(simulations("engine=vllm_gpu").values()) == {None}
    assert set(simulations("engine=transformers").values()) == {None}


@pytest.mark.dear
def test_what_a_gpu_cannot_multiply_is_another_result_and_nothing_else(tmp_path: Path) -> None:
    """FP8 on an A100 is weights alone; other formats, and GPUs that have the products, give what they always did."""

    def answers(*overrides: str) -> dict[str, tuple[str | None, str]]:
        plan = planned(tmp_path, "+sweep=smoke", "engine=vllm_gpu", *overrides)
        steps = [step for step in by_stage(plan, "answer") if step.config.task == "mathador"]
        return {step.trial.rpartition("/")[2]: (step.config.effective, step.fingerprint) for step in steps}

    unknown, old, new = answers(), answers("gpu=a100"), answers("gpu=h100")
    assert unknown == new and not any(effective for effective, _ in new.values())
    assert {recipe: effective for recipe, (effective, _) in old.items() if effective} == {"w8a8_fp": "W8A16"}
    assert {recipe for recipe in new if old[recipe] != new[recipe]} == {"w8a8_fp"}


@pytest.mark.dear
def test_other_metrics_score_again_and_ask_again_only_where_they_need_more_answers(tmp_path: Path) -> None:
    metric = "++tasks.{}.overrides.metric_list=[{{metric: {}, aggregation: mean, higher_is_better: true}}]"
    plain = planned(tmp_path, "+sweep=smoke")
    for slot, name, asked_again in (("mathador", "exact_match", False), ("tabular", "acc_mutual_info", True)):
        changed = planned(tmp_path, "+sweep=smoke", metric.format(slot, name))
        new = {step.stage.name for ref, step in changed.steps.items() if ref not in plain.steps}
        assert new == {"score", "compare"} | ({"answer"} if asked_again else set())
