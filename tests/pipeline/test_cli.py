"""The command line: bad input gives one line that names the fix, exit code 2, and nothing is started."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.modes import MODES
from tests.stages.checkpoints.written import LLAMA, write_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> object:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        code = main()
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return call


def model_dir(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


LONG = LLAMA | {"max_position_embeddings": 8192}
LOCAL = "model.source={{path: {path}, package: null, package_version: null, file: null}}"
BAD_INPUT = {
    "unknown sweep": (["+sweep=nope"], r"unknown option 'sweep/nope'; there are: .*smoke"),
    "INT8 on Blackwell": (
        ["+sweep=smoke", "engine=vllm_gpu", "gpu=b200"],
        r"/w8a8_int \(W8A8\) does not run on gpu=b200 \(compute capability 10\): .*linear_backend: triton.*H100",
    ),
    "groups that ranks split": (  # the sizes of Qwen2-72B
        [
            "+task@tasks.game=mathador",
            "suite=none",
            "recipe=w4a16_int",
            "recipe.group_size=128",
            "engine=vllm_gpu",
            "gpu=h100",
            "engine.tensor_parallel_size=8",
            "model.shape.hidden_size=8192",
            "model.shape.head_dim=128",
            "model.shape.intermediate_size=29568",
            "model.shape.num_attention_heads=64",
            "model.shape.num_key_value_heads=8",
        ],
        r"mlp.down_proj has 29568 inputs, 3696 on each of 8 GPUs, no multiple of group 128; set "
        r"engine.tensor_parallel_size=1, or recipe.group_size=16, or recipe.ignore with re:\.\*down_proj",
    ),
    "emulation that was not chosen": (
        ["+sweep=smoke", "engine=vllm_gpu", "engine.vllm_args={linear_backend: emulation}"],
        r"engine.vllm_args.linear_backend=emulation .*set engine.allow_emulation=true",
    ),
    "unknown option": (["recipe=nope"], r"unknown option 'recipe/nope'; there are: .*bf16"),
    "misspelt key": (["recipe.grup_size=3"], r"unknown key 'recipe.grup_size'"),
    "misspelt key with ++": (["++recipe.grup_size=3"], r"unknown key 'grup_size' in RecipeConfig"),
    "misspelt top-level key with ++": (["++cluter.address=x"], r"unknown key 'cluter'"),
    "no start": (["+sweep=smoke_profile", "server.num_starts=0"], r"server.num_starts must be at least 1; got 0"),
    "a share of nothing": (["+sweep=smoke_profile", "+mixes.m={short: 0}"], r"mixes.m.short must be a positive share"),
    "no batch at all": (["max_parallel=0"], r"max_parallel must be at least 1"),
    "a file and a class": (
        ["mode=resubmit", "failures.from=f.json", "failures.class=oom"],
        r"failures.from takes every step of its file|f.json",
    ),
    "wrong type": (["engine.max_model_len=long"], r"engine.max_model_len.*|.*'long'"),
    "bad value": (["engine.max_model_len=0"], r"engine.max_model_len must be at least 1"),
    "overridden axis": (["+sweep=smoke", "recipe=bf16"], r"sweep\.axes\.recipe"),
    "same trial twice": (["+sweep=smoke", "sweep.axes.recipe=[bf16,bf16]"], r"same trial"),
    "group size": (["+sweep=smoke", "recipe.group_size=128"], r"group_size 128 does not divide.*fit"),
    "no such mirror": (["+sweep=smoke_academic", "data.mirror=nowhere"], r"data\.mirror=nowhere is not a directory"),
    "short revision": (
        ["model=llama31_8b", 'model.source.revision="0e9e39f"'],
        r"revision must be the full 40-hex",
    ),
    "a task on the command line": (
        ["+tasks.extra={task: piqa}"],
        r"extra: a command line adds no entry with settings; put it into a sweep's file",
    ),
    "no key at all": (["smoke"], r"'smoke' is no KEY=VALUE; a sweep is chosen with \+sweep=NAME"),
    "a list without brackets": (["+sweep=smoke", "only=tabular"], r"only takes a list: only=\[\.\.\.\]"),
    "an axis that is no key": (["+sweep=smoke", "+sweep.axes.recipee=[a]"], r"axis 'recipee' is no key of the config"),
    "member that a group lacks": (
        ["+sweep=smoke", "tasks.tabular.leaves=[tabular_iriss]"],
        r"no member 'tabular_iriss'",
    ),
    "no tasks": (["suite=none"], r"no tasks"),
    "unknown mode": (["mode=fly"], r"mode=fly: there are run, resubmit, .*gc"),
    "a model that does not fit its GPUs": (
        ["+sweep=llama31", "mode=plan", "sweep.axes.recipe=[bf16]", "engine.gpu_memory_gib=24"],
        r"llama31_\d+b/bf16 needs \d+ GiB on each of \d+ GPUs, which can use 22 of 24.*tensor_parallel_size",
    ),
    "a cache that holds no context": (
        ["+sweep=llama31", "mode=plan", "sweep.axes.recipe=[bf16]", "engine.kv_cache_gib=0.5"],
        r"llama31_8b/bf16 needs 1.00 GiB on each GPU for the keys and values of one context of 8192 tokens",
    ),
    "a cache that does not fit its GPU": (
        [
            "+sweep=llama31",
            "mode=plan",
            "sweep.axes.recipe=[bf16]",
            "engine.kv_cache_gib=60",
            "engine.gpu_memory_gib=80",
        ],
        r"llama31_8b/bf16 needs 75 GiB on each of 1 GPUs, which can use 72 of 80",
    ),
    "a share that is not one": (
        ["+sweep=smoke", "+cluster.stages.answer.num_cps=1"],
        r"memory_gib, num_cpus, num_gpus",
    ),
    "a share of an unknown stage": (
        ["+sweep=smoke", "+cluster.stages.anser.num_cpus=1"],
        r"cluster.stages has no stage 'anser': there are fetch_model, .*answer",
    ),
    "a share of the report, which the driver makes": (
        ["+sweep=smoke", "+cluster.stages.report.num_cpus=1"],
        r"cluster.stages has no stage 'report'",
    ),
    "a limit of an unknown stage": (
        ["+sweep=smoke", "++cluster.timeout_s.anser=5"],
        r"cluster.timeout_s has no stage 'anser': there are default, ",
    ),
    "a limit of no time": (
        ["+sweep=smoke", "++cluster.timeout_s.answer=0"],
        r"timeout_s.answer must be more than 0",
    ),
    "a share that is no number": (
        ["+sweep=smoke", "+cluster.stages.answer.num_cpus=two"],
        r"cluster.stages.answer.num_cpus must be a number, 0 or more; got 'two'",
    ),
    "a patience of less than nothing": (
        ["+sweep=smoke", "cluster.wait_for_nodes_s=-1"],
        r"cluster.wait_for_nodes_s must be 0 or more",
    ),
    "an unknown key among the failures": (
        ["+sweep=smoke", "mode=resubmit", "+failures.clas=oom"],
        r"failures has no 'clas': there are class, step, export, from",
    ),
    "a resubmission that is a run": (["+sweep=smoke", "failures.class=oom"], r"failures\.class.*mode=resubmit"),
    "an export of nothing": (["+sweep=smoke", "mode=plan", "failures.export=x"], r"failures\.export.*mode=status"),
    "fewer reruns than none": (["+sweep=smoke", "base_reruns=-1"], r"base_reruns must be at least 0; got -1"),
    "reruns of nothing": (["+sweep=smoke", "rerun_documents=0"], r"rerun_documents must be at least 1; got 0"),
    "reruns of what was recorded": (
        ["+sweep=smoke", "base_reruns=1", "engine=recorded"],
        r"base_reruns=1 asks again, and engine=recorded has answers that were given before: leave it at 0",
    ),
    "a limit of nothing": (["+sweep=smoke", "tasks.mathador.limit=-1"], r"task mathador: limit must be at least 1"),
    "a shard of nothing": (["+sweep=smoke", "tasks.mathador.shard_size=0"], r"shard_size must be at least 1"),
    "tries of which one is scored": (
        ["+sweep=smoke", "tasks.mathador.harness_compat=true", "tasks.mathador.pass_at=[1]"],
        r"pass_at needs several answers to a document, and harness_compat scores one: leave it out",
    ),
    "a vote of one": (
        ["+sweep=smoke", "tasks.mathador.majority=true", "tasks.mathador.num_repeats=1"],
        r"majority needs several answers to a document, and there is one: leave it out",
    ),
    "a confidence in per cent": (["+sweep=smoke", "compare.confidence=95"], r"compare.confidence must lie between"),
    "no margin at all": (
        ["+sweep=smoke", "compare.margin_points=0"],
        r"compare.margin_points must lie between 0 and 100",
    ),
    "a task's margin that is wider than the wide one": (
        ["+sweep=smoke", "tasks.mathador.margin_points=7"],
        r"tasks.mathador.wide_margin_points=5 is narrower than margin_points=7: raise it",
    ),
    "an axis without values": (["+sweep=smoke", "sweep.axes.recipe=[]"], r"axis recipe has no values"),
    "a budget of nothing": (["+sweep=smoke", "budget.gpu_hours=-1"], r"budget.gpu_hours must be more than 0"),
    "a budget of dollars for a GPU nobody named": (
        ["+sweep=smoke", "budget.usd=5"],
        r"budget.usd=5 needs the price of a GPU, and gpu=none has none that is paid: say which GPU, gpu=h100",
    ),
    "a budget of dollars without a price": (["+sweep=smoke", "gpu=h200", "budget.usd=5"], r"gpu=h200 has none that"),
    "an unknown generation argument": (
        ["+sweep=smoke", "+tasks.tabular.gen_kwargs.max_gen_tok=5"],
        r"gen_kwargs max_gen_tok are unknown; there are .*max_gen_toks",
    ),
    "a wrong type deep inside": (
        ["+sweep=smoke", "tasks.mathador.limit=abc"],
        r"error: tasks.mathador.limit: Value 'abc'",
    ),
    "a sweep without its plus": (["sweep=smoke"], r"a sweep is chosen with \+sweep=NAME"),
    "a suite beside the sweep's own tasks": (
        ["+sweep=smoke", "suite=leaderboard_v2"],
        r"tasks.mathador has settings but names no task.*use a sweep without it",
    ),
    "a suite that lost a task": (
        ["+sweep=leaderboards", "~tasks.winogrande"],
        r"suites.leaderboard_v1 names winogrande, but the sweep's tasks are",
    ),
    "a normalized suite of a raw task": (
        ["+sweep=leaderboards", "tasks.ifeval.random_baseline=null"],
        r"suites.leaderboard_v2 averages normalized scores, but ifeval says not what guessing scores",
    ),
    "a gate of another task": (
        ["+sweep=smoke", "+suites={both: {tasks: [mathador, tabular], gate: [arc]}}"],
        r"suites.both.gate names arc, but the suite is of mathador, tabular",
    ),
    "a suite's margin that is no distance": (
        ["+sweep=smoke", "+suites={both: {tasks: [mathador], margin_points: 0}}"],
        r"suites.both.margin_points must lie between 0 and 100; got 0",
    ),
    "a cluster that is not there": (
        ["+sweep=smoke", "cluster=existing", "cluster.address=127.0.0.1:1"],
        r"cluster.address=127.0.0.1:1: no Ray cluster there",
    ),
    "a cluster's dashboard": (
        ["+sweep=smoke", "cluster=existing", "cluster.address=http://127.0.0.1:8265"],
        r"cluster.address=http://127.0.0.1:8265 is no HOST:PORT: give what `ray start --head` prints",
    ),
    "cores for a cluster that has its own": (
        ["+sweep=smoke", "cluster=existing", "cluster.num_cpus=4"],
        r"cluster.num_cpus is for a Ray of this machine's own",
    ),
    "a cluster without its port": (
        ["+sweep=smoke", "cluster=existing", "cluster.address=127.0.0.1"],
        r"cluster.address=127.0.0.1 is no HOST:PORT",
    ),
    "a key of an earlier version": (
        ["allow_drift=true"],
        r"error: allow_drift is called allow_changed_environment now",
    ),
    "one that is added": (["++allow_drift=true"], r"error: allow_drift is called allow_changed_environment now"),
    "a sweep without a name": (["sweep.name="], r"sweep.name is empty: give it a name"),
    "a name of spaces": (["recipe.name=' '"], r"recipe.name is empty"),
    "a name that no file can have": (
        [f"sweep.name={'a' * 230}"],
        r"sweep.name: a+\.\.\. has 230 characters: use at most",
    ),
    "a long name of a model": ([f"model.name={'a' * 230}"], r"model.name: .* has 230 characters"),
    "a long name of a task": ([f"+task@tasks.{'a' * 230}=tabular"], r"tasks: .* has 230 characters"),
    "a name of two lines": (["model.name='a\tb'"], r"model.name: 'a\\tb' has control characters"),
    "a store that no file system can hold": (["mode=plan", f"store.root={'a' * 300}"], r"File name too long: a+"),
    "a value with a password": (["tracking.uri=http://me:sesame@x#y"], r"^error: 'tracking.uri=http://\*\*\*@x#y'"),
    "an interpolation of nothing": (["store.root=${x}"], r"store.root: \$\{x\} stands for a key that there is not"),
    "no file of a group": (["model=null"], r"a group .* takes the names of files; got NoneType"),
    "an axis of numbers over files": (
        ["+sweep=smoke", "sweep.axes.recipe=[1]"],
        r"unknown option 'recipe/1'; there are: bf16",
    ),
    "a file that is called like a number": (["recipe=405"], r"takes the names of files; got int: .*model='\"405\"'"),
    "no key": (["+@x=y"], r"'\+@x=y' is no KEY=VALUE"),
    "an adjustment that is none": (
        ["+sweep=smoke", "sweep.adjust=[{when: {recipe: bf16}, set: [nope]}]"],
        r"'nope' is no KEY=VALUE",
    ),
    "an adjustment of Hydra": (
        ["+sweep=smoke", "sweep.adjust=[{when: {recipe: bf16}, set: ['hydra.run.dir=/x']}]"],
        r"'hydra.run.dir=/x' is about Hydra itself",
    ),
    "a model of no size": (["model.shape.hidden_size=0"], r"model.shape.hidden_size must be at least 1; got 0"),
    "more than all memory": (["engine.gpu_memory_utilization=7"], r"engine.gpu_memory_utilization must be a share"),
    "more than one GPU a rank": (
        ["engine=vllm_gpu", "engine.gpus_per_rank=2"],
        r"gpus_per_rank=2 must be a part of one",
    ),
    "a shared GPU for two ranks": (
        ["engine=vllm_gpu", "engine.gpus_per_rank=0.5", "engine.tensor_parallel_size=2"],
        r"engine.gpus_per_rank=0.5: an engine of 2 ranks needs each GPU for itself",
    ),
    "a shared GPU without a cache's size": (
        ["engine=vllm_gpu", "engine.gpus_per_rank=0.5"],
        r"engine.gpus_per_rank=0.5: .* give engine.kv_cache_gib",
    ),
    "a server on a part of a GPU": (
        ["+sweep=smoke_profile", "engine=vllm_gpu", "gpu=h100", "engine.gpus_per_rank=0.5", "engine.kv_cache_gib=8"],
        r"engine.gpus_per_rank=0.5: a server is measured on whole GPUs",
    ),
    "vLLM's argument with a place of its own": (
        ["engine.vllm_args={max_model_len: 512}"],
        r"engine.vllm_args.max_model_len is engine.max_model_len: set that",
    ),
    "an argument that vLLM does not know": (
        ["+sweep=smoke", "engine.vllm_args={block_sise: 32}"],
        r"engine.vllm_args.block_sise is no engine argument of this vLLM; did you mean block_size\?",
    ),
    "a text for what is true or false": (
        [
            "+sweep=smoke",
            "tasks.mathador.apply_chat_template=true",
            "tasks.mathador.chat_template_kwargs={enable_thinking: 'false'}",
        ],
        r"mathador.*chat_template_kwargs.enable_thinking is the text 'false', which counts as true: write false",
    ),
    "vLLM's argument for another engine": (
        ["engine=transformers", "engine.vllm_args={block_size: 32}"],
        r"engine.vllm_args are vLLM's, and this engine is transformers",
    ),
    "a cache of nothing": (["engine.kv_cache_gib=0"], r"engine.kv_cache_gib must be more than 0"),
    "no probe": (["gate.num_probe_tokens=0"], r"gate.num_probe_tokens must be at least 1"),
    "a budget that is no number": (["budget.gpu_hours=nan"], r"budget.gpu_hours must be more than 0"),
    "dollars that are no number": (["gpu=h100", "budget.usd=nan"], r"budget.usd must be more than 0"),
    "a cluster without GPUs": (["cluster.num_gpus=0"], r"cluster.num_gpus must be at least 1"),
    "a store that is nowhere": (["+sweep=smoke", "store.root="], r"store\.root is empty \(an unset variable\?\)"),
    "a sweep without a name to collect for": (["+sweep=smoke", "mode=gc", "sweep.name="], r"sweep\.name is empty"),
    "an export to nowhere": (["+sweep=smoke", "mode=status", "failures.export="], r"failures\.export is empty"),
    "a bucket without a name": (
        ["+sweep=smoke", "mode=status", "store.root=s3://"],
        r"store\.root=s3:// names no bucket",
    ),
    "a bucket with credentials": (
        ["+sweep=smoke", "mode=status", "store.root='s3://me:sesame@bucket/x'"],
        r"^error: store\.root=s3://\*\*\*@bucket holds credentials",
    ),
    "a directory of nothing": (["--config-dir=", "+sweep=smoke"], r"--config-dir is empty \(an unset variable\?\)"),
    "failures from nowhere": (["mode=plan", "failures.from="], r"failures\.from= is empty"),
    "no such file of failures": (["mode=resubmit", "failures.from=none.json"], r"none\.json: there is no such file"),
}


def test_help_is_the_project_s_own_page_whatever_else_is_asked(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("+sweep=nope", "--help")
    assert (code, err) == (0, "")
    for mode in MODES:
        assert re.search(rf"^  {mode} +[A-Z].*\w", out, re.MULTILINE), f"mode={mode} and what it does"
    assert re.search(r"^  sweep +leaderboards, .*\bsmoke\b", out, re.MULTILINE), "the files of conf/sweep"
    assert "_schema" not in out
    assert max(map(len, out.splitlines())) <= 110
    assert run("-h") == (0, out, "")
    assert run() == (0, out, ""), "no argument asks for no work"


def test_help_lists_the_files_of_ones_own(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "DIR" / "recipe").mkdir(parents=True)
    (tmp_path / "DIR" / "recipe" / "w3.yaml").write_text("")
    for option in (["--config-dir=DIR"], ["--config-dir", "DIR"], ["-cd", "DIR"]):
        code, out, _ = run(*option, "--help")
        assert code == 0
        assert re.search(r"^the same, of .*/DIR:\n  recipe +w3$", out, re.MULTILINE)
    assert "w3" not in run("--help")[1]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("store.root=elsewhere", "sets store.root=elsewhere, which is no part of a sweep"),
        ("/cluster=existing", "sets /cluster=existing, which is no part of a sweep"),
        ("--config-dir=DIR", "sets --config-dir=DIR, which is no part of a sweep"),
        ("+hydra.callbacks.a={_target_: os.getcwd}", "is about Hydra itself"),
    ],
)
def test_a_file_of_failures_says_nothing_but_a_sweep(run, tmp_path: Path, override: str, says: str) -> None:  # type: ignore[no-untyped-def]
    content = {"version": 1, "sweep": "smoke", "steps": [], "environment": {}, "overrides": ["+sweep=smoke", override]}
    (tmp_path / "failed.json").write_text(json.dumps(content))
    code, _, err = run("mode=resubmit", "failures.from=failed.json")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["failed.json"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"version": 1, "steps": [{}], "environment": {}, "overrides": []}'])
def test_a_file_of_failures_that_is_damaged_is_named(run, tmp_path: Path, content: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "failed.json").write_text(content)
    code, _, err = run("mode=resubmit", "failures.from=failed.json")
    assert (code, err) == (
        2,
        "error: failures.from=failed.json is not a file that failures.export= of this version wrote, or was changed "
        "since: write it again with mode=status failures.export=FILE\n",
    )


@pytest.mark.dear
def test_a_plan_says_what_it_will_take_and_what_of_that_is_not_known(run) -> None:  # type: ignore[no-untyped-def]
    """Two H100 that are not here; a GPU nobody has measured; a cluster of a size that nobody said."""
    gpus = ["+sweep=smoke", "mode=plan", "engine=vllm_gpu", "store.root=nowhere"]
    _, out, _ = run(*gpus, "gpu=h100", "cluster.num_gpus=2")
    assert re.search(
        r"^expected: 0\.\d+ GPU-hours, \d+ min on 2 GPUs, \d+\.\d\d \$ for GPUs while "
        r"steps hold them \(\d+\.\d\d for 2 all the time\), 0\.7 GiB of weights to write$",
        out,
        re.MULTILINE,
    )
    assert re.search(r"^answer +12 +0 +\d+ min +0\.\d+$", out, re.MULTILINE)
    assert "scaled from 8.03 to 0.135 billion parameters: " in out
    _, out, _ = run(*gpus, "gpu=a100", "cluster=existing")
    assert "not known: 12 steps of answer on A100; nothing like that was measured" in out
    assert re.search(r"^answer +12 +0 +not known +–$", out, re.MULTILINE)
    assert "duration not known before the cluster is (say how many GPUs it has, cluster.num_gpus=N)" in out
    _, out, _ = run(*gpus, "gpu=h100", "cluster.num_gpus=2", "engine.tensor_parallel_size=3")
    assert "duration not known: a step needs 3 GPUs and there are 2" in out
    assert "ranks share the work of answer without loss" in out
    assert "dollars not known" in run(*gpus, "gpu=h100", "gpu.prices=[]")[1]


@pytest.mark.dear
def test_every_example_of_the_help_is_a_command_that_plans(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "DIR" / "sweep").mkdir(parents=True)
    (tmp_path / "DIR" / "sweep" / "mine.yaml").write_text("# @package _global_\nsweep: {name: mine}\n")
    _, page, _ = run("--help")
    examples = re.findall(r"^  quantsweep (.+?)  ", page, re.MULTILINE)
    assert len(examples) == 5
    for example in examples:
        arguments = [text for text in example.split() if not text.startswith(("mode=", "store.root="))]
        code, _, err = run(*arguments, "mode=plan")
        assert (code, err) == (0, ""), example


def test_version_is_the_installed_release(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert run("--version") == (0, f"quantsweep {metadata.version('quantsweep')}\n", "")
    monkeypatch.setattr(metadata, "version", not_installed)
    code, out, _ = run("--version")
    assert (code, out) == (
        0,
        "quantsweep, not installed: its release is unknown; install the checkout, as uv run does\n",
    )


def not_installed(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_answering_imports_no_heavy_library(option: str) -> None:
    heavy = ("torch", "vllm", "transformers", "llmcompressor", "lm_eval", "ray", "mlflow", "datasets", "pandas")
    code = (
        "import sys; from pipeline.__main__ import main\n"
        f"sys.argv = ['quantsweep', '{option}']; assert main() == 0\n"
        f"assert not set({heavy}) & set(sys.modules), set({heavy}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


DEAR = {  # planned first, or asked of Ray
    "a cluster that is not there",
    "group size",
    "a model that does not fit its GPUs",
    "a cache that holds no context",
    "a cache that does not fit its GPU",
    "a cluster without its port",
    "a cluster's dashboard",
    "member that a group lacks",
    "no such mirror",
    "a suite that lost a task",
    "a suite's margin that is no distance",
    "a task's margin that is wider than the wide one",
    "a gate of another task",
    "a normalized suite of a raw task",
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.dear] if name in DEAR else [])
        for name, case in BAD_INPUT.items()
    ],
)
def test_bad_input(run, arguments: list[str], expected: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(*arguments)
    assert code == 2, err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert re.search(expected, err), err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(("written", "read"), [("off", "False"), ("405", "405"), ("1e3", "1000")])
def test_an_option_that_yaml_takes_for_another_thing_is_named(run, tmp_path: Path, written: str, read: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "sweep").mkdir()
    text = f"# @package _global_\ndefaults:\n  - override /tracking: {written}\nsweep: {{name: mine}}\n"
    (tmp_path / "sweep" / "mine.yaml").write_text(text)
    code, out, err = run(f"--config-dir={tmp_path}", "+sweep=mine", "mode=plan")
    assert code == 2 and len(err.strip().splitlines()) == 1 and "Traceback" not in out
    assert re.match(rf"error: sweep/mine: YAML reads the option of /tracking in its defaults as {read}.*in quotes", err)


@pytest.mark.dear
@pytest.mark.parametrize(
    "given", ["model.source.path={path}", "model.source={{path: {path}}}", "model.source.repo_id=me/mine"]
)
def test_a_model_s_place_given_alone_takes_that_of_the_default_model(run, tmp_path: Path, given: str) -> None:  # type: ignore[no-untyped-def]
    """Its name becomes the model's; neither the default's package nor its shape are left."""
    path = write_model(tmp_path / "mine", LONG)
    more = ["+sweep=smoke", "mode=plan", "gpu=h100", f"model.source.revision='{'a' * 40}'"]
    code, out, err = run(given.format(path=path), *more[: 4 if "repo_id" in given else 3])
    assert code == 0, err
    assert "mine/w8a8_fp" in out and "smollm2" not in out.partition("measured")[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=smollm2_135m", "model.source.path=MINE"],
        ["model=llama31_8b", "model.source.path=MINE"],
        ["model.source.path=MINE", "model.source.repo_id=a/b", f"model.source.revision='{'a' * 40}'"],
        ["+sweep=llama31", "sweep.axes.model=[llama31_8b]", "+sweep.axes.model.source.path=[MINE]"],
    ],
)
def test_two_places_of_a_model_are_refused_with_both(run, tmp_path: Path, arguments: list[str]) -> None:  # type: ignore[no-untyped-def]
    path = model_dir(tmp_path / "mine")
    code, _, err = run(*(text.replace("MINE", str(path)) for text in arguments), "mode=plan")
    assert code == 2 and len(err.strip().splitlines()) == 1
    if "sweep" not in arguments[0]:
        assert re.search(rf"path={path} .*are given; give exactly one of repo_id, path, package", err), err


@pytest.mark.dear
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "nowhere"])
def test_object_storage_that_does_not_answer_is_named_in_one_line(  # type: ignore[no-untyped-def]
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "sesame"}
    for name, value in {**environment, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = run("+sweep=smoke", "mode=status", "store.root=s3://bucket/x", f"store.cache={tmp_path}")
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert re.match(r"error: store\.root cannot be reached \(.*\): check the bucket's name", err)


def test_a_file_that_is_no_text_is_named(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "DIR" / "recipe").mkdir(parents=True)
    (tmp_path / "DIR" / "recipe" / "odd.yaml").write_bytes(b"\xff\xfe")
    code, _, err = run("--config-dir=DIR", "+sweep=smoke", "mode=plan", "sweep.axes.recipe=[bf16,odd]")
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert re.search(r"recipe/odd\.yaml, is no text in UTF-8", err)


@pytest.mark.dear
def test_before_a_cluster_is_refused_nothing_is_said_to_run(run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("+sweep=smoke", "cluster=existing", "cluster.address=127.0.0.1:1")
    assert (code, out) == (2, "")


@pytest.mark.dear
def test_a_mirror_that_lacks_a_data_set_is_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mirror").mkdir()
    code, _, err = run("+sweep=smoke_academic", f"data.mirror={tmp_path / 'mirror'}")
    assert code == 2
    assert "lacks the data set" in err
    assert len(err.strip().splitlines()) == 1


def test_a_model_directory_without_safetensors_is_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("recipe=bf16", LOCAL.format(path=model_dir(tmp_path / "model")))
    assert code == 2
    assert "safetensors" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("mode", ["run", "resubmit"])
def test_a_home_that_cannot_be_made_is_refused(run, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HOME", "/dev/null/home")
    code, _, err = run("+sweep=smoke", f"mode={mode}")
    assert code == 2
    assert err.startswith("error: the home directory /dev/null/home cannot be written (Not a directory): set HOME to a")
    assert len(err.splitlines()) == 1


def test_an_error_that_nobody_foresaw_shows_no_secret(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def expand(*_: object) -> None:
        raise RuntimeError("http://me:sesame@host is odd")

    monkeypatch.setattr("pipeline.__main__.expand", expand)
    code, _, err = run("+sweep=smoke", "mode=plan")
    assert code == 1
    assert "RuntimeError: http://***@host is odd" in err
    assert "sesame" not in err


def test_a_store_that_cannot_be_written_is_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    code, _, err = run("+sweep=smoke", f"store.root={tmp_path / 'file' / 'store'}")
    assert code == 2
    assert "store.root=DIR" in err


def test_a_plan_says_what_would_run_and_leaves_nothing(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("+sweep=smoke", "mode=plan")
    assert code == 0
    for expected in ("smollm2_135m/w4a16_int", "4 trials", "evaluations", "GiB/GPU"):
        assert expected in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.dear
@pytest.mark.parametrize("mode", ["plan", "why", "status", "gc"])
def test_looking_at_a_model_of_ones_own_leaves_nothing_in_an_empty_directory(run, tmp_path: Path, mode: str) -> None:  # type: ignore[no-untyped-def]
    model = write_model(tmp_path / "model", LONG)
    code, _, err = run("recipe=bf16", LOCAL.format(path=model), f"mode={mode}")
    assert (code, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.dear
def test_a_plan_counts_the_steps_that_only_would_take(run) -> None:  # type: ignore[no-untyped-def]
    def to_run(*arguments: str) -> dict[str, int]:
        _, out, _ = run("+sweep=smoke", "mode=plan", *arguments)
        return {stage: int(number) for stage, number in re.findall(r"^(\w+) +(\d+) +0 ", out, re.MULTILINE)}

    whole, part = to_run(), to_run("only=[*/bf16,tabular]")
    assert whole["quantize"] == 3
    assert (part["quantize"], part["fetch_model"], part["compare"]) == (0, 1, 1)
    assert 0 < part["answer"] < whole["answer"] / 4
    _, out, _ = run("+sweep=smoke", "mode=plan", "only=[*/bf16,tabular]")
    assert re.search(r"smollm2_135m/bf16 .* 32 +20 +–$", out, re.MULTILINE), "documents in all, and to run"
    assert re.search(r"smollm2_135m/w8a8_fp .* 32 +0 +simulated$", out, re.MULTILINE)
    assert "128 evaluations (20 to run)" in out


@pytest.mark.dear
def test_why_on_an_empty_store(run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("+sweep=smoke", "mode=why")
    assert code == 0
    assert "nothing like it is in the store" in out


@pytest.mark.parametrize(
    ("adjustment", "says"),
    [
        ("{recipee: w8a8_fp}", r"adjusts where recipee is 'w8a8_fp', but that is no axis; its axes are recipe"),
        ("{recipe: w8a8_fpp}", r"adjusts where recipe is 'w8a8_fpp', but conf/recipe/ has no such file.*w8a8_fp"),
        ("[", r"a config file is not YAML: .*mine.yaml"),
    ],
)
def test_a_mistake_in_a_sweep_of_ones_own_is_refused(run, tmp_path: Path, adjustment: str, says: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "own" / "sweep").mkdir(parents=True)
    (tmp_path / "own" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /suite: none\n"
        "sweep:\n  name: mine\n  axes:\n    recipe: [bf16, w8a8_fp]\n"
        f"  adjust:\n    - when: {adjustment}\n      set: [calibration.num_calibration_samples=4]\n"
        "tasks:\n  iris: {task: tabular_iris, limit: 5}\n"
    )
    code, _, err = run(f"--config-dir={tmp_path / 'own'}", "+sweep=mine", "mode=plan")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert re.search(says, err), err


@pytest.mark.dear
@pytest.mark.parametrize(
    ("head", "tasks", "says"),
    [
        ("", "iris: {task: tabular_iris}", r"a sweep's file must begin with '# @package _global_'"),
        ("# @package _global_", "x: {task: tabular_irs}", r"unknown task 'tabular_irs': did you mean 'tabular_iris'"),
        ("# @package _global_", "x: {task: qqqq}", r"unknown task 'qqqq': .*data.task_paths=\[DIR\]"),
        (
            "# @package _global_",
            "'a (b)': {task: tabular_iris}",
            r"tasks: 'a \(b\)' is part of file names and of MLflow's",
        ),
        (
            "# @package _global_",
            "x: {task: tabular_iris, metric: accc}",
            r"task tabular_iris has no metric 'accc'; it has 'acc,none' and 'acc_norm,none'",
        ),
        (
            "# @package _global_",
            "x: {task: tabular_iris, num_fewshot: 31}",
            r"task tabular_iris has 30 examples to draw from, fewer than num_fewshot=31: lower it",
        ),
    ],
)
def test_mistakes_in_tasks_of_ones_own_are_found_before_anything_runs(run, tmp_path, head, tasks, says) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "own" / "sweep").mkdir(parents=True)
    (tmp_path / "own" / "sweep" / "mine.yaml").write_text(
        f"{head}\ndefaults:\n  - override /suite: none\nsweep: {{name: mine}}\ntasks:\n  {tasks}\n"
    )
    code, _, err = run(f"--config-dir={tmp_path / 'own'}", "+sweep=mine", "mode=plan")
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert re.search(says, err), err


@pytest.mark.dear
def test_a_metric_that_a_task_s_own_code_may_report_is_not_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "own" / "sweep").mkdir(parents=True)
    (tmp_path / "own" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /suite: none\nsweep: {name: mine}\n"
        "tasks:\n  x: {task: mathador, metric: 'unlisted,none'}\n"
    )
    code, _, err = run(f"--config-dir={tmp_path / 'own'}", "+sweep=mine", "mode=plan")
    assert code == 0, err


@pytest.mark.dear
def test_an_adjustment_for_a_value_that_was_taken_out_of_its_axis_is_no_mistake(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("+sweep=smoke", "sweep.axes.recipe=[bf16,w8a8_fp]", "mode=plan")
    assert code == 0, err
    assert "2 trials" in out


@pytest.mark.dear
def test_a_field_that_the_base_recipe_cannot_have_reaches_the_others(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("+sweep=smoke", "recipe.smoothing_strength=0.7", "sweep.axes.recipe=[w8a8_int]", "mode=plan")
    assert code == 0, err
    assert "2 trials" in out


@pytest.mark.dear
def test_a_plan_names_the_data_that_a_calibration_lacks(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mirror").mkdir()
    code, out, err = run("+sweep=smoke", "calibration=open_platypus", f"data.mirror={tmp_path / 'mirror'}", "mode=plan")
    assert code == 0, err
    assert "missing data set garage-bAInd/Open-Platypus: no results for the calibration of smollm2_135m/" in out


@pytest.mark.dear
def test_a_sweep_of_ones_own(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "own" / "sweep").mkdir(parents=True)
    (tmp_path / "own" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /suite: none\n"
        "sweep:\n  name: mine\n  axes:\n    recipe: [bf16, w8a8_fp]\n"
        "tasks:\n  iris: {task: tabular_iris, limit: 5}\n"
    )
    code, out, err = run(f"--config-dir={tmp_path / 'own'}", "+sweep=mine", "mode=plan")
    assert code == 0, err
    assert "10 evaluations" in out


@pytest.mark.parametrize(
    "text, expected",
    [
        ("# @package _global_\nsweep: {name: mine, axess: {}}\n", r"unknown key 'axess'"),
        ("tasks: {}\n", r"key 'tasks' is out of place: the file must begin with '# @package _global_'"),
        ("# @package _global_\nallow_drift: true\n", r"allow_drift is called allow_changed_environment now"),
    ],
)
def test_a_wrong_key_in_a_sweep_s_file_is_told_from_a_missing_first_line(  # type: ignore[no-untyped-def]
    run, tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "own" / "sweep").mkdir(parents=True)
    (tmp_path / "own" / "sweep" / "mine.yaml").write_text(text)
    code, _, err = run(f"--config-dir={tmp_path / 'own'}", "+sweep=mine", "mode=plan")
    assert (code, len(err.splitlines())) == (2, 1)
    assert re.search(expected, err), err


def test_a_mode_that_needs_no_plan_makes_none(run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("mode=gc", "suite=none")  # what no plan could be made of
    assert (code, out) == (0, "nothing to remove: sweeps refer to every artifact that holds nothing else\n")


@pytest.mark.dear
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("{num_repeats: 3}", "tasks.game: mathador is greedy, so all 3 answers to a document would be one"),
        ("{num_repeats: 3, gen_kwargs: {temperature: 0}}", "mathador is greedy, so all 3 answers"),
        ("{pass_at: [1]}", "tasks.game: pass_at needs several answers to a document: set num_repeats"),
        ("{majority: true}", "tasks.game: majority needs several answers to a document: set num_repeats"),
        ("{gen_kwargs: {max_gen_toks: 4096}}", "may write 4096 tokens, and engine.max_model_len=2048 leaves no room"),
    ],
)
def test_answers_that_cannot_be_asked_so_are_refused_in_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, settings: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "sweep").mkdir(parents=True)
    head = "# @package _global_\ndefaults: [override /suite: none]\nengine: {max_model_len: 2048}\n"
    text = f"{head}tasks: {{game: {settings.replace('{', '{task: mathador, num_docs: {mathador: 30}, ', 1)}}}\n"
    (tmp_path / "own" / "sweep" / "x.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["pipeline", "--config-dir=own", "+sweep=x", "mode=plan"])
    assert main() == 2
    assert says in capsys.readouterr().err


def test_choices_are_not_repeated_and_a_template_on_disk_is_read_before_the_run(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place, text in (
        ("model/own", f"defaults: [model_schema, _self_]\nname: own\nsource: {{path: {tiny_model}}}\n"),
        ("sweep/x", "# @package _global_\ndefaults: [override /model: own, override /suite: none]\n"),
    ):
        (tmp_path / "own" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / f"{place}.yaml").write_text(text)
    slot = "+tasks={choices: {task: tabular_iris, num_docs: {tabular_iris: 30}}}"
    for setting, says in (
        ("num_repeats=3", "tasks.choices: tabular_iris scores given texts, so all 3 answers"),
        (
            "chat_template_kwargs={enable_thinkin: false}",
            "the chat template of own reads no 'enable_thinkin'; it reads",
        ),
    ):
        fitting = "engine.max_model_len=512"
        arguments = ["--config-dir=own", "+sweep=x", slot, f"tasks.choices.{setting}", fitting, "mode=plan"]
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        assert main() == 2
        assert says in capsys.readouterr().err
