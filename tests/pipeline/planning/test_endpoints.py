"""Sweeps that servers elsewhere answer: what is planned, what is not, and what is refused before anything is asked."""

import json
import re
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.errors import UserError
from pipeline.planning.endpoints import check_engines
from pipeline.planning.estimate import Estimator
from pipeline.planning.facts import resolve
from pipeline.planning.make_plan import make_plan
from pipeline.planning.memory import bytes_to_write, check_gpu_memory, gpu_memory
from pipeline.planning.plan import Plan
from pipeline.results.environment import environment
from tests.pipeline.planning.test_plan import by_stage, planned, remembered, trials_of

ROOT = Path(__file__).parents[3]
SERVER = ["engine=endpoint", "engine.url=http://host:8000/v1", "engine.served_model=own"]
ONE = ["suite=none", "+task@tasks.game=mathador", *SERVER]
TWO = ["+sweep=smoke", "sweep.axes.recipe=[bf16,w8a8_int]", *SERVER, "~tasks.tabular"]
EACH_ITS_OWN = (
    "sweep.adjust=[{when: {recipe: bf16}, set: ['engine.served_model=own']}, "
    "{when: {recipe: w8a8_int}, set: ['engine.served_model=quantized']}]"
)
LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
LLAMA |= {"num_attention_heads": 4, "vocab_size": 384}


def checked(tmp_path: Path, *cli: str) -> Plan:
    trials = trials_of(*cli)
    facts = resolve(trials, remembered())
    plan = make_plan("test", trials, facts)
    check_engines(plan, facts)
    check_gpu_memory(plan)
    return plan


def test_a_base_that_a_server_has_needs_its_tokenizer_alone_and_no_gpu(tmp_path: Path) -> None:
    plan = checked(tmp_path, *ONE)
    assert {step.stage.name for step in plan.steps.values()} == {"fetch_tokenizer", "answer", "score", "compare"}
    assert {step.resources.num_gpus for step in plan.steps.values()} == {0}
    assert {step.resources.num_cpus for step in plan.steps.values()} == {1}
    assert bytes_to_write(plan, plan.steps.values()) == 0
    (trial,) = plan.trials.values()
    assert gpu_memory(trial) is None
    assert set(environment(plan)["weights"]) == {"smollm2_135m (tokenizer)"}


@pytest.mark.dear
def test_what_a_recipe_makes_is_made_and_checked_here_and_served_by_the_user(tmp_path: Path) -> None:
    two = [text for text in TWO if "served_model" not in text]  # what is said on the command line is said of all
    plan = checked(tmp_path, *two, EACH_ITS_OWN)
    assert len(by_stage(plan, "fetch_model")) == len(by_stage(plan, "fetch_tokenizer")) == 1
    assert len(by_stage(plan, "quantize")) == len(by_stage(plan, "gate")) == 1
    in_process = planned(tmp_path, "+sweep=smoke", "sweep.axes.recipe=[bf16,w8a8_int]", "~tasks.tabular")
    assert by_stage(plan, "quantize")[0].ref == by_stage(in_process, "quantize")[0].ref
    asked = {step.trial: step.config.engine.served_model for step in by_stage(plan, "answer")}
    assert asked == {"smollm2_135m/bf16": "own", "smollm2_135m/w8a8_int": "quantized"}


def evaluations(plan: Plan) -> set[object]:
    return {step.ref for step in by_stage(plan, "answer")}


@pytest.mark.dear
def test_what_is_said_of_a_server_is_identity_and_where_it_is_is_not(tmp_path: Path) -> None:
    first = evaluations(checked(tmp_path, *ONE))
    same = ["engine.url=https://elsewhere/v1", "engine.api_key_env=OWN_KEY", "engine.max_num_seqs=4",
            "engine.retry_for_s=1", "engine.request_timeout_s=9"]  # fmt: skip
    assert evaluations(checked(tmp_path, *ONE, *same)) == first
    for other in ("engine.served_model=another", "+engine.server_flags.quantization=fp8", "engine.prompt_format=text",
                  "engine.dialect=openai", "engine.max_model_len=2048", "engine.seed=1"):  # fmt: skip
        assert evaluations(checked(tmp_path, *ONE, other)).isdisjoint(first), other


def tokenizer_only(tmp_path: Path, config: dict[str, object]) -> Path:
    path = tmp_path / "only_tokenizer"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    return path


LOCAL = "model.source={{path: {path}, package: null, package_version: null, file: null, rescale_seed: null}}"


@pytest.mark.dear
@pytest.mark.parametrize("config", [LLAMA, {"model_type": "unheard-of"}], ids=["a Llama", "what nobody knows here"])
def test_a_directory_without_weights_is_a_model_where_a_server_has_them(
    tmp_path: Path, config: dict[str, object]
) -> None:
    source = LOCAL.format(path=tokenizer_only(tmp_path, config))
    plan = checked(tmp_path, *ONE, source, "model.shape=null")
    assert by_stage(plan, "fetch_tokenizer")[0].config.digest is not None
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        planned(tmp_path, "suite=none", "+task@tasks.game=mathador", source)
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        planned(tmp_path, *ONE, source, "recipe=w8a8_int")


@pytest.mark.parametrize(
    ("cli", "says"),
    [
        (["suite=none", "+task@tasks.t=tabular", *SERVER], "task tabular_iris is scored by log-like.*take it out"),
        (["suite=none", "+task@tasks.w=wikitext", *SERVER], "task wikitext is scored by log-likelihoods"),
        (["suite=none", "+task@tasks.game=mathador", "engine=endpoint"], r"say which, engine\.url=http"),
        ([*ONE[:3], "engine.url=http://host/v1"], r"say which, engine\.served_model=ID"),
        (
            [*ONE, "engine.dialect=openai", "+tasks.game.gen_kwargs={do_sample: true, min_p: 0.1}"],
            r"tasks\.game\.gen_kwargs\.min_p is not of OpenAI's API: leave it out, or set engine\.dialect=vllm",
        ),
        (TWO, r"bf16 and smollm2_135m/w8a8_int are both answered by own at http://host:8000/v1.*adjust"),
        (
            ["+sweep=smoke", "sweep.axes.recipe=[bf16,w8a8_int]", "~tasks.tabular",
             "sweep.adjust=[{when: {recipe: w8a8_int}, set: ['engine=endpoint', 'engine.url=http://h/v1', "
             "'engine.served_model=own']}]"],
            "is answered by engine endpoint and its base smollm2_135m/bf16 by vllm, which cannot be compared",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_or_compared_is_refused_in_the_plan(tmp_path: Path, cli: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        checked(tmp_path, *cli)
    assert "\n" not in str(caught.value)


@pytest.mark.dear
def test_the_example_of_the_page_makes_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "stages" / "evaluate" / "README.md").read_text()
    (example,) = re.findall(r"^# DIR/sweep/served\.yaml.*?\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "DIR" / "sweep").mkdir(parents=True)
    (tmp_path / "DIR" / "sweep" / "served.yaml").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["quantsweep", "--config-dir=DIR", "+sweep=served", "mode=plan"])
    code = main()
    printed = capfd.readouterr()
    assert (code, printed.err) == (0, "")
    assert re.search(r"^smollm2_135m/w8a8_int +smollm2_135m/bf16 +– +– +– +1,000 ", printed.out, re.MULTILINE), (
        printed.out
    )
    assert re.search(r"of answer on an endpoint; nothing like that was measured", printed.out)


def test_how_long_a_server_takes_is_not_known_from_this_machine(tmp_path: Path) -> None:
    plan = checked(tmp_path, *ONE)
    steps = by_stage(plan, "answer")
    estimator = Estimator(plan, dict.fromkeys(plan.trials, "CPU"), {})
    assert set(estimator.batch_s(steps)) == {None}
    assert {device for _, device in estimator.grounds.unknown} == {"an endpoint"}
