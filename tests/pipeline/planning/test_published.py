"""A checkpoint that others have quantized is a trial like those that are quantized here, and makes nothing."""

import re
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.planning.memory import bytes_to_write, gpu_memory
from pipeline.planning.plan import Plan
from tests.pipeline.planning.test_plan import by_stage, planned
from tests.stages.checkpoints.written import AWQ, FP8, GPTQ, LLAMA, NVFP4A16, write_model, write_quantized

SHA = "0123456789abcdef0123456789abcdef01234567"
TASK = ["suite=none", "+task@tasks.game=mathador", "engine=transformers", "engine.max_model_len=256", "tracking=off"]
pytestmark = pytest.mark.dear


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A base, and checkpoints of it."""
    write_model(tmp_path / "base", LLAMA)
    for name, quantization in {"fp8": FP8, "nvfp4": NVFP4A16, "awq": AWQ, "gptq": GPTQ}.items():
        write_quantized(tmp_path / name, quantization)
    return tmp_path


def plan_of(places: Path, recipe: str, *cli: str, **listed: str) -> Plan:
    """With the checkpoints that the model's file lists, by their places."""
    base = f"model.source={{path: {places / 'base'}, package: null, package_version: null, file: null}}"
    base = base.replace("file: null", "file: null, rescale_seed: null")
    entries = ", ".join(f"{name}: {place}" for name, place in listed.items())
    published = f"+model.published={{{entries}}}"
    return planned(places, *TASK, base, "model.shape=null", f"recipe={recipe}", published, *cli)


def here(path: Path) -> str:
    return f"{{path: {path}}}"


def test_it_is_fetched_gated_and_compared_with_its_base_and_nothing_is_calibrated(places: Path) -> None:
    plan = plan_of(places, "published_fp8", fp8=here(places / "fp8"))
    base, published = plan.trials.values()
    assert base.trial.is_base and published.trial.base == base.trial.name
    assert {step.stage.name for step in plan.steps.values()} == {
        "fetch_model", "fetch_published", "observe", "gate", "answer", "score", "compare",
    }  # fmt: skip
    (fetched,) = by_stage(plan, "fetch_published")
    assert fetched.inputs == {"model": base.checkpoint}
    (gate,) = by_stage(plan, "gate")
    assert gate.inputs["checkpoint"] == published.checkpoint == fetched.ref
    assert all(gate.ref in plan.steps[ref].upstream for ref in published.shards)


def test_its_bytes_are_its_identity_and_its_name_and_place_are_not(places: Path) -> None:
    (places / "moved").symlink_to(places / "fp8")
    plans = [
        plan_of(places, "published_fp8", fp8=here(places / "fp8")),
        plan_of(places, "bf16", f"recipe.source.path={places / 'moved'}", "recipe.name=other"),
        plan_of(places, "published_fp8", fp8=here(places / "nvfp4")),
    ]
    one, same, other = (by_stage(plan, "fetch_published")[0].fingerprint for plan in plans)
    assert one == same != other


def test_memory_and_disk_are_those_of_its_own_bytes(places: Path) -> None:
    plan = plan_of(places, "published_fp8", fp8=here(places / "fp8"))
    base, published = plan.trials.values()
    tables = 2 * 2 * 384 * 64  # in BF16, as the norms
    memory = gpu_memory(published)
    assert memory is not None
    linears = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 128 * 64)
    blocks = linears // (32 * 32)
    assert memory.weights_gib * 2**30 == tables + linears + 4 * blocks + 2 * 64 * 5
    assert bytes_to_write(plan, plan.steps.values()) == round((memory.weights_gib + (base.model_gib or 0)) * 2**30)


@pytest.mark.parametrize(
    ("recipe", "cli", "listed", "message"),
    [
        ("published_fp8", [], {}, "has no published checkpoint 'fp8'; it lists none: add published.fp8"),
        ("published_fp8", [], {"awq": "awq"}, "no published checkpoint 'fp8'; it lists awq: add"),
        ("published_fp8", [], {"fp8": "base"}, "is not quantized: .*any other is a model"),
        ("published_fp8", [], {"fp8": "nowhere"}, "nowhere is not a directory"),
        ("published_awq", [], {"awq": "gptq"}, "engine=transformers reads no checkpoint in the form gptq.*vllm_gpu"),
        (
            "published_awq",
            ["engine=vllm_cpu"],
            {"awq": "gptq"},
            "engine=vllm_cpu reads no checkpoint in the form gptq in float32: choose engine=vllm_gpu",
        ),
        (
            "published_fp8",
            ["engine=vllm_cpu"],
            {"fp8": "fp8"},
            "the form fp8 in float32: choose engine=transformers or engine=vllm_gpu",
        ),
        ("published_fp8", ["recipe.algorithm=rtn"], {"fp8": "fp8"}, "is not quantized here: leave algorithm out"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    places: Path, recipe: str, cli: list[str], listed: dict[str, str], message: str
) -> None:
    entries = {name: here(places / place) for name, place in listed.items()}
    with pytest.raises((UserError, ValueError), match=message) as refused:
        plan_of(places, recipe, *cli, **entries)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_of_another_model_is_refused_by_its_sizes(places: Path) -> None:
    write_quantized(places / "wide", FP8, hidden_size=128)
    with pytest.raises(UserError, match="is no checkpoint of its base: hidden_size is 128 and the base's 64"):
        plan_of(places, "published_fp8", fp8=here(places / "wide"))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{repo_id: org/q, revision: main}", "revision must be the full 40-hex commit sha"),
        ("{repo_id: org/q}", "a hub repository needs revision"),
        (f"{{repo_id: org/q, revision: '{SHA}', path: /q}}", "it lies in one place"),
    ],
)
def test_a_place_that_may_move_is_none(places: Path, place: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        plan_of(places, "published_fp8", fp8=place)


def test_the_study_of_published_checkpoints_is_planned_from_what_its_files_declare(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a plan needs no network")

    monkeypatch.setattr("socket.socket.connect", connect)
    started = time.process_time()
    plan = planned(places, "+sweep=published_nvfp4")
    assert time.process_time() - started < 10
    assert len(plan.trials) == 16
    assert sum(trial.trial.is_base for trial in plan.trials.values()) == 4
    fetched = by_stage(plan, "fetch_published")
    assert len({(step.config.repo_id, step.config.revision) for step in fetched}) == 12
    assert all(re.fullmatch("[0-9a-f]{40}", step.config.revision) for step in fetched)
    first = plan.trials["qwen3_6_27b/published_nvfp4"]
    assert first.published is not None and first.published.source.repo_id == "unsloth/Qwen3.6-27B-NVFP4"
    assert first.published.source.revision == "890bdef7a42feba6d83b6e17a03315c694112f2a", "a later one holds FP8"
    sizes = {name: trial.checkpoint_gib for name, trial in plan.trials.items()}
    assert all(size is not None and 15 < size < 70 for size in sizes.values())
    for model in ("qwen3_6_27b", "gemma4_31b_it", "qwen3_6_35b_a3b", "gemma4_26b_a4b_it"):
        base, fp8, awq, nvfp4 = (
            sizes[f"{model}/{recipe}"] for recipe in ("bf16", "published_fp8", "published_awq", "published_nvfp4")
        )
        assert base and fp8 and awq and nvfp4
        assert base > fp8 > max(awq, nvfp4)
    documents = {slot: sum(facts.leaves.values()) for slot, facts in first.tasks.items()}
    assert documents == {"mmlu_pro": 12032, "gsm8k": 1319, "ifeval": 541}
    assert sum(plan.steps[ref].num_documents for ref in first.shards) == 2 * (700 + 600 + 541), "and once more"


def test_of_a_repository_what_is_declared_is_planned_with(places: Path) -> None:
    place = f"{{repo_id: org/q, revision: '{SHA}', method: fp8, bits: 8, size_gib: 2.5}}"
    _, published = plan_of(places, "published_fp8", fp8=place).trials.values()
    assert published.checkpoint_gib == 2.5
    assert published.num_bits == 8
