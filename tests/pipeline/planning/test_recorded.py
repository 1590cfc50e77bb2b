"""Sweeps whose answers lm-eval has written down: what is planned, and what is refused before anything is read in."""

import json
import re
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.errors import UserError
from pipeline.planning.estimate import Estimator
from pipeline.planning.memory import bytes_to_write, gpu_memory
from pipeline.results.environment import environment
from stages.evaluate.recorded.artifact import read_run
from tests.pipeline.planning.test_endpoints import checked, evaluations
from tests.pipeline.planning.test_plan import by_stage

ROOT = Path(__file__).parents[3]
LEAVES = ("mathador_easy", "mathador_hard")
DATE = "2026-03-01T10-00-00.123456"


def write_run(folder: Path, leaves: tuple[str, ...] = ("mathador",), date: str = DATE, **said: object) -> Path:
    """What a plan looks at of a run: names of files, and what its results say."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "config": {"model": "hf", "model_args": f"pretrained=org/{folder.name},dtype=bfloat16"},
        "model_source": "hf",
        "lm_eval_version": "0.4.13",
        "transformers_version": "5.0",
        "max_length": 4096,
        "results": {leaf: {"score,none": 0.5} for leaf in leaves},
        "versions": dict.fromkeys(leaves, 1.0),
    }
    (folder / f"results_{date}.json").write_text(json.dumps(content | said))
    for leaf in leaves:
        (folder / f"samples_{leaf}_{date}.jsonl").write_text("{}\n")
    return folder


def one(folder: Path, *cli: str) -> list[str]:
    return ["suite=none", "+task@tasks.game=mathador", "engine=recorded", f"engine.samples={folder}", *cli]


def two(base: Path, trial: Path, *cli: str) -> list[str]:
    adjust = ", ".join(
        f"{{when: {{recipe: {recipe}}}, set: ['engine.samples={folder}']}}"
        for recipe, folder in (("bf16", base), ("w8a8_int", trial))
    )
    axes = ["+sweep=smoke", "sweep.axes.recipe=[bf16,w8a8_int]", "~tasks.tabular", "engine=recorded"]
    return [*axes, f"sweep.adjust=[{adjust}]", *cli]


def test_no_weights_are_fetched_or_quantized_and_no_gpu_is_held(tmp_path: Path) -> None:
    plan = checked(tmp_path, *two(write_run(tmp_path / "whole"), write_run(tmp_path / "quantized")))
    assert {step.stage.name for step in plan.steps.values()} == {"fetch_tokenizer", "answer", "score", "compare"}
    assert len(by_stage(plan, "fetch_tokenizer")) == 1
    assert {step.resources.num_gpus for step in plan.steps.values()} == {0}
    assert bytes_to_write(plan, plan.steps.values()) == 0
    assert {gpu_memory(each) for each in plan.trials.values()} == {None}
    assert set(environment(plan)["weights"]) == {"smollm2_135m (tokenizer)"}
    answers = {step.trial: step.ref for step in by_stage(plan, "answer")}
    assert len(set(answers.values())) == len(answers) == 2


def test_what_was_answered_is_identity_and_where_it_lies_is_not(tmp_path: Path) -> None:
    first = evaluations(checked(tmp_path, *one(write_run(tmp_path / "here"))))
    (tmp_path / "here").rename(tmp_path / "there")
    assert evaluations(checked(tmp_path, *one(tmp_path / "there"))) == first
    (tmp_path / "there" / f"samples_mathador_{DATE}.jsonl").write_text("{}\n{}\n")
    assert evaluations(checked(tmp_path, *one(tmp_path / "there"))).isdisjoint(first)


def refusal(tmp_path: Path, *cli: str) -> str:
    with pytest.raises(UserError) as caught:
        checked(tmp_path, *cli)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / f"results_{DATE}.json").unlink(), r"lies without the results_<date>\.json"),
        (lambda folder: (folder / f"samples_mathador_{DATE}.jsonl").unlink(), r"holds no samples_<task>_<date>\.jsonl"),
        (lambda folder: write_run(folder, date="2026-03-02T10-00-00"), "two files of samples, .*03-01T.*03-02T"),
        (lambda folder: write_run(folder, date="2026-03-02T10-00-00", max_length=9), "max_model_len is 4096 in"),
        (lambda folder: write_run(folder, ("other",), "2026-03-02T10-00-00", lm_eval_version="0.4.9"), "engine_ver"),
        (lambda folder: write_run(folder, results={"mathador": {"bypass,none": 999}}), "--predict_only"),
    ],
    ids=["no results", "no samples", "two files", "two settings", "two versions", "predict only"],
)  # fmt: skip
def test_a_run_that_cannot_be_a_trials_answers_is_refused_in_the_plan(tmp_path: Path, change, says: str) -> None:
    folder = write_run(tmp_path / "run")
    checked(tmp_path, *one(folder))
    change(folder)
    assert re.search(says, refusal(tmp_path, *one(folder)))


@pytest.mark.dear
def test_samples_must_be_said_and_be_there_and_be_of_the_task(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ("another",))
    assert "holds no samples of task mathador; it has another" in refusal(tmp_path, *one(folder))
    assert "is no directory with files in it" in refusal(tmp_path, *one(tmp_path / "nowhere"))
    unsaid = ["suite=none", "+task@tasks.game=mathador", "engine=recorded"]
    assert "say where, engine.samples=DIR" in refusal(tmp_path, *unsaid)
    code = ["tasks.game.task=humaneval", "++tasks.game.leaves=[humaneval]", "++tasks.game.num_docs.humaneval=164"]
    assert "runs code that the model wrote" in refusal(tmp_path, *one(folder, *code))


@pytest.mark.dear
def test_repeats_of_a_document_must_be_in_one_shard(tmp_path: Path) -> None:
    drawn = "++tasks.game.gen_kwargs={do_sample: true, temperature: 0.5}"
    repeated = one(write_run(tmp_path / "run"), drawn, "++tasks.game.num_repeats=4", "++tasks.game.shard_size=2")
    assert "tasks.game: task mathador asks for more answers to a document than its shard_size" in refusal(
        tmp_path, *repeated
    )
    checked(tmp_path, *repeated[:-1], "++tasks.game.shard_size=4")


@pytest.mark.dear
def test_what_cannot_be_compared_is_refused_in_the_plan(tmp_path: Path) -> None:
    base, trial = write_run(tmp_path / "whole"), write_run(tmp_path / "quantized")
    both = refusal(tmp_path, *two(base, base))
    assert re.search("bf16 and smollm2_135m/w8a8_int are both answered by hf org/whole .*sweep's adjust", both)
    again = refusal(tmp_path, *two(base, write_run(tmp_path / "again" / "whole", date="2026-03-02T10-00-00")))
    assert "are both answered by hf org/whole" in again
    write_run(trial, config={"model": "hf", "model_args": {"pretrained": "x", "dtype": "float16"}})
    assert re.search(
        'w8a8_int and its base were not asked alike: dtype is "float16" in .*w8a8_int and "bfloat16" in',
        refusal(tmp_path, *two(base, trial)),
    )
    alone = [
        "+sweep=smoke", "sweep.axes.recipe=[bf16,w8a8_int]", "~tasks.tabular",
        f"sweep.adjust=[{{when: {{recipe: w8a8_int}}, set: ['engine=recorded', 'engine.samples={write_run(trial)}']}}]",
    ]  # fmt: skip
    assert "is answered by engine recorded and its base smollm2_135m/bf16 by vllm" in refusal(tmp_path, *alone)


def test_what_may_differ_between_two_runs_names_the_checkpoint_or_says_how_fast(tmp_path: Path) -> None:
    def differs(model_args: object, **said: object) -> str:
        config = {"model": "hf", "model_args": model_args}
        other = read_run(write_run(tmp_path / "trial", config=config, **said))
        return read_run(write_run(tmp_path / "base")).differs_from(other, "base", "trial")

    same = {"pretrained": "x", "dtype": "bfloat16", "load_in_8bit": True, "bnb_4bit_quant_type": "nf4", "revision": "y"}
    assert differs(same | {"device_map": "auto", "trust_remote_code": True}) == ""
    assert differs("pretrained=x,dtype=bfloat16") == ""
    assert 'model_args is {} in base and {"add_bos_token": "True"}' in differs(same | {"add_bos_token": True})
    assert 'dtype is "bfloat16" in base and null in trial' in differs("pretrained=x")
    assert "engine_version is" in differs(same, model_source="vllm")
    assert "engine_version is" in differs(same, transformers_version="4.9")
    assert "max_model_len is 4096 in base and 2048 in trial" in differs(same, max_length=2048)


def test_no_secret_of_a_run_is_kept(tmp_path: Path) -> None:
    run = read_run(
        write_run(tmp_path, config={"model": "hf", "model_args": "pretrained=x,token=hf_abcdefghijklmnopqrst"})
    )
    assert "hf_abc" not in json.dumps([run.facts, run.arithmetic])


def test_how_long_reading_takes_is_not_known_of_this_machine(tmp_path: Path) -> None:
    plan = checked(tmp_path, *one(write_run(tmp_path / "run")))
    estimator = Estimator(plan, dict.fromkeys(plan.trials, "CPU"), {})
    assert set(estimator.batch_s(by_stage(plan, "answer"))) == {None}
    assert {device for _, device in estimator.grounds.unknown} == {"files"}


def test_settings_of_an_engine_that_is_not_there_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for cli, says in (
        (one(folder, "engine.dtype=bfloat16"), "engine.dtype is not for engine=recorded to set: leave it recorded"),
        (one(folder, "engine.on_gpu=true"), "engine.on_gpu is not for engine=recorded to set"),
        (one(folder, "engine.served_model=own"), "engine.served_model is of a server that runs elsewhere"),
        (["suite=none", "+task@tasks.game=mathador", "engine=vllm_cpu", "engine.samples=x"], "choose engine=recorded"),
    ):
        monkeypatch.setattr(sys, "argv", ["quantsweep", *cli, "mode=plan"])
        assert main() == 2
        printed = capfd.readouterr()
        assert says in printed.err and printed.err.count("\n") == 1


@pytest.mark.dear
def test_the_example_of_the_page_makes_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "stages" / "evaluate" / "README.md").read_text()
    (example,) = re.findall(r"^# DIR/sweep/brought\.yaml.*?\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "DIR" / "sweep").mkdir(parents=True)
    (tmp_path / "DIR" / "sweep" / "brought.yaml").write_text(example)
    for name in ("whole", "quantized"):
        write_run(tmp_path / "RUNS" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["quantsweep", "--config-dir=DIR", "+sweep=brought", "mode=plan"])
    code = main()
    printed = capfd.readouterr()
    assert (code, printed.err) == (0, "")
    assert re.search(r"^smollm2_135m/w8a8_int +smollm2_135m/bf16 +– +– +– +1,000 ", printed.out, re.MULTILINE)
    assert re.search(r"of answer on files; nothing like that was measured", printed.out)
