"""Samples that lm-eval itself wrote, brought in: its own scores come out, and what is not comparable is refused."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.errors import ConfigError, DataError
from stages.evaluate.answer import answer, open_session
from stages.evaluate.config import AnswerConfig, EngineConfig, EngineKind, PromptConfig
from stages.evaluate.recorded.artifact import read_run
from stages.evaluate.recorded.session import RecordedSession
from stages.local_files import digest_files
from tests.evaluation import evaluate
from tests.lm_eval_run import NAMES, PROMPT, run_lm_eval, write_tasks
from tests.stages.evaluate.test_evaluate import DATA_SET, ENGINE, NUM_DOCS, write_data_set

pytestmark = pytest.mark.dear


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("data") / "harbour")


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), DATA_SET)


@pytest.fixture(scope="module")
def lm_evals(tiny_model, data_dir, tmp_path_factory):
    """What lm-eval leaves of all four tasks, written by itself, and its samples as they were before."""
    folder, out = write_tasks(tmp_path_factory.mktemp("reference"), str(data_dir)), tmp_path_factory.mktemp("recorded")
    return out, run_lm_eval(tiny_model, folder, out, ENGINE.max_model_len - 2)


@pytest.fixture(scope="module")
def run_dir(lm_evals):
    return lm_evals[0]


@pytest.fixture
def copied(run_dir, tmp_path):
    return Path(shutil.copytree(run_dir, tmp_path / "copied"))


@pytest.fixture(scope="module")
def inputs(tiny_model, data_dir, tmp_path_factory):
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tokenizer)
    return {"checkpoint": tokenizer, f"data:{DATA_SET}": data_dir}


@pytest.fixture(scope="module")
def config_of(tasks_dir, run_dir):
    def make(task, samples=run_dir, start=0, stop=NUM_DOCS, engine=None, repeat_stop=None, digest=None, **prompt):
        recorded = EngineConfig(kind=EngineKind.recorded, dtype="recorded", samples=str(samples), samples_digest=digest)
        return AnswerConfig(
            task=task, start=start, stop=stop, num_docs=NUM_DOCS, harness="test", include_paths=[str(tasks_dir)],
            engine=engine or recorded, repeat_stop=repeat_stop, prompt=PromptConfig(**PROMPT | prompt),
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def session(config_of, inputs):
    with open_session(config_of("quiz_choice"), inputs) as opened:
        yield opened


@pytest.fixture(scope="module")
def asking(config_of, inputs, tiny_model):
    """An engine in this process, with the checkpoint that lm-eval asked."""
    with open_session(config_of("quiz_choice", engine=ENGINE), inputs | {"checkpoint": tiny_model}) as opened:
        yield opened


@pytest.fixture
def scored(inputs, tmp_path_factory):
    def run(config, opened):
        out = tmp_path_factory.mktemp("out")
        metrics = evaluate(config, inputs, out, opened)
        (facts,) = json.loads((out / "task.json").read_text())["leaves"].values()
        return metrics, pq.read_table(out / "samples.parquet").to_pylist(), facts

    return run


def samples_of(folder, task):
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    return path


def results_of(folder):
    (path,) = folder.rglob("results_*.json")
    return path


def flat(value):
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0):
        return [number for item in list(value) for number in flat(item)]
    return [float(value)]


@pytest.mark.parametrize("task", NAMES)
def test_scores_are_lm_evals_own_and_those_of_an_engine_here(scored, config_of, lm_evals, session, asking, task):
    metrics, rows, facts = scored(config_of(task), session)
    _, asked, others_facts = scored(config_of(task, engine=ENGINE), asking)
    samples = lm_evals[1][task]
    assert len(samples) == NUM_DOCS * len({sample["filter"] for sample in samples})
    for sample in samples:
        ours, engines = rows[sample["doc_id"]], asked[sample["doc_id"]]
        for metric in sample["metrics"]:
            name = f"{metric},{sample['filter']}"
            found, others = (flat(json.loads(str(row[name]))) for row in (ours, engines))
            assert found == pytest.approx(flat(sample[metric]), abs=1e-9, rel=1e-9)
            assert found == pytest.approx(others, abs=1e-4)
        assert (ours["doc_digest"], ours["prompt_digest"]) == (engines["doc_digest"], engines["prompt_digest"])
    assert facts["metrics"] == others_facts["metrics"]
    unknown = ("num_prompt_tokens", "num_output_tokens", "truncated", "cut", "cut_in_thoughts", "finish_reason")
    assert {row[name] for row in rows for name in unknown} == {None}
    assert {metrics[name] for name in ("num_truncated", "num_prompt_tokens", "num_output_tokens")} == {None}
    assert (metrics["num_documents"], metrics["num_missing"]) == (NUM_DOCS, 0)


def test_what_is_said_of_the_run_is_what_its_results_file_says(scored, config_of, session, tiny_model):
    from importlib.metadata import version

    _, _, facts = scored(config_of("quiz_letter"), session)
    said = facts["comparable"]
    assert said["engine"] == said["platform"] == "lm-eval"
    assert said["engine_version"].startswith(f"lm_eval {version('lm_eval')}, hf, transformers ")
    assert (said["dtype"], said["max_model_len"]) == ("float32", ENGINE.max_model_len - 2)
    assert said["model_args"] == {"max_length": str(ENGINE.max_model_len - 2)}
    assert facts["arithmetic"]["method"] == "imported"
    assert facts["arithmetic"]["model_args"]["pretrained"] == str(tiny_model)
    assert facts["scoring"] == {}


def test_a_part_is_taken_of_a_run_that_answered_more(scored, config_of, session):
    _, rows, _ = scored(config_of("quiz_write", start=3, stop=6), session)
    assert [row["doc_id"] for row in rows] == [3, 4, 5]
    assert {len(row["responses"]) for row in rows} == {2}


def change_lines(task, change):
    """Samples with every line changed in place; ``change`` may return what stands there instead, a list of lines."""

    def apply(folder):
        path = samples_of(folder, task)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        changed = []
        for line in lines:
            got = change(line)
            changed += got if isinstance(got, list) else [line]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))

    return apply


def of_document(number, change):
    """``change`` for that document's lines alone."""
    return lambda line: change(line) if line["doc_id"] == number else None


def set_to(*path, value):
    """What a place deep in a line is set to."""

    def change(line):
        for name in path[:-1]:
            line = line[name]
        line[path[-1]] = value

    return change


def change_results(**parts):
    def apply(folder):
        path = results_of(folder)
        content = json.loads(path.read_text())
        for name, part in parts.items():
            content[name] = {**content[name], **part} if isinstance(part, dict) else part
        path.write_text(json.dumps(content))

    return apply


def second_run(**parts):
    """The same again, an hour later, with other results."""

    def apply(folder):
        for path in [results_of(folder), samples_of(folder, "quiz_text")]:
            later = path.with_name(path.name.replace("_20", "_30"))
            later.write_text(path.read_text())
        (later,) = folder.rglob("results_30*")
        later.write_text(json.dumps(json.loads(later.read_text()) | parts))

    return apply


REFUSED = {
    "no results": ("quiz_write", lambda folder: results_of(folder).unlink(), r"lies without the results_<date>\.json"),
    "results of nothing": ("quiz_write", change_results(config={"model": None}, model_source=None), "which model"),
    "damaged results": ("quiz_write", lambda folder: results_of(folder).write_text("{"), r"results_.* cannot be read"),
    "no samples": ("quiz_write", lambda folder: samples_of(folder, "quiz_write").unlink(),
                   "holds no samples of task quiz_write; it has quiz_choice, quiz_letter, quiz_text"),
    "another version": ("quiz_write", change_results(versions={"quiz_write": 1.0}),
                        r"task quiz_write is version 2\.0 here, and samples_quiz_write.* to version 1\.0"),
    "only predicted": ("quiz_write", change_results(results={"quiz_write": {"bypass,first": 999}}), "--predict_only"),
    "missing": ("quiz_write", change_lines("quiz_write", of_document(4, lambda line: [])), "lacks document 4"),
    "double": ("quiz_write", change_lines("quiz_write", of_document(4, lambda line: [line, line])),
               "has document 4 twice"),
    "unknown": ("quiz_write", change_lines("quiz_write", of_document(4, set_to("doc_id", value=NUM_DOCS))),
                f"has document {NUM_DOCS}, and the task has {NUM_DOCS}"),
    "another document": ("quiz_choice", change_lines("quiz_choice", of_document(4, set_to("doc", "gold", value=3))),
                         r"document 4: it is another document there \(gold differs\)"),
    "another choice": ("quiz_choice", change_lines("quiz_choice", of_document(
        4, set_to("arguments", "gen_args_2", "arg_1", value=" no boot"))), "document 4: its prompt is another; from"),
    "fewer choices": ("quiz_choice", change_lines("quiz_choice", of_document(
        4, lambda line: line["arguments"].pop("gen_args_3") and None)), "document 4: 3 requests were made of it there"),
    "other gen_kwargs": ("quiz_write", change_lines("quiz_write", of_document(
        4, set_to("arguments", "gen_args_0", "arg_1", "max_gen_toks", value=11))),
        "document 4: it was asked with other gen_kwargs: max_gen_toks is 11 in the samples and 10 in the task slot"),
    "other repeats": ("quiz_write", change_lines("quiz_write", of_document(4, set_to("resps", value=[["a"]]))),
                      "document 4: it was answered 1 times there, and 2 answers are asked for"),
    "two runs mixed": ("quiz_write", change_lines("quiz_write", lambda line: line["filter"] == "lower" and
                       line.update(resps=[["a", "b"]])), "document 0: its filters were given different responses"),
    "no number": ("quiz_text", change_lines("quiz_text", set_to("resps", value=[["nan"]])), "'nan' is no log-lik"),
    "no sample": ("quiz_text", lambda folder: samples_of(folder, "quiz_text").write_text("{}\n"), "no sample of lm"),
    "two files": ("quiz_text", second_run(), "two files of samples, .*quiz_text_20.* and .*quiz_text_30"),
    "two models": ("quiz_write", second_run(lm_eval_version="0.4.12"), "answers of two models.*engine_version is"),
    "nothing": ("quiz_text", shutil.rmtree, "holds no samples_<task>_<date>.jsonl: run lm_eval with --log_samples"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_are_no_answers_to_what_is_asked_is_refused_in_a_line(config_of, session, inputs, copied, tmp_path, name):
    task, change, says = REFUSED[name]
    change(copied)
    with pytest.raises((ConfigError, DataError), match=says) as caught:
        opened = RecordedSession(session.model, read_run(copied), tmp_path)
        answer(config_of(task, copied), inputs, tmp_path, opened)
    assert "\n" not in str(caught.value) and not (tmp_path / "answers.json").exists()


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ({"num_fewshot": 0}, r"document 0: its prompt is another; from character \d+ on it is '.+' in the samples and"),
        ({"apply_chat_template": False}, "document 0: its prompt is another"),
        ({"system_instruction": "Be kind."}, "document 0: its prompt is another"),
        ({"num_repeats": 3}, "answered 2 times there, and 3 answers are asked for here: set num_repeats: 2"),
        ({"gen_kwargs": {"do_sample": True, "temperature": 0.5}}, "other gen_kwargs: do_sample is .*; temperature is"),
        ({"repeat_stop": 1}, "raise shard_size of its task slot to num_repeats"),
    ],
)
def test_a_task_slot_that_asks_otherwise_is_refused(config_of, session, inputs, tmp_path, prompt, says):
    with pytest.raises((ConfigError, DataError), match=says):
        answer(config_of("quiz_write", **prompt), inputs, tmp_path, session)


def test_samples_that_changed_since_the_plan_are_refused(config_of, inputs, copied):
    config = config_of("quiz_text", copied, digest=digest_files([str(copied)]))
    with open_session(config, inputs):
        pass
    samples_of(copied, "quiz_letter").unlink()
    with pytest.raises(DataError, match="holds other files than when it was planned; plan again"):
        with open_session(config, inputs):
            raise AssertionError("it was opened")


def test_a_second_bos_that_lm_eval_asked_for_is_refused_where_numbers_are_to_be_right(
    scored, config_of, session, monkeypatch
):
    bos = session.model.prefix_token_id
    monkeypatch.setattr(session.model, "tok_encode", lambda text, **_: [bos, 5])
    with pytest.raises(ConfigError, match=r"BOS before every text.*harness_compat: true"):
        scored(config_of("quiz_text"), session)
    _, rows, _ = scored(config_of("quiz_text", harness_compat=True), session)
    assert len(rows) == NUM_DOCS


def test_thoughts_in_recorded_texts_are_no_part_of_the_answer_and_nobody_says_they_were_cut(
    scored, config_of, session, copied, tmp_path, inputs
):
    change_lines("quiz_write", set_to("resps", value=[["<think>a boat</think> no", "<think>never"]]))(copied)
    opened = RecordedSession(session.model, read_run(copied), tmp_path)
    _, rows, _ = scored(config_of("quiz_write", copied, reasoning_end="</think>"), opened)
    assert rows[0]["responses"] == ["no", ""]
    assert rows[0]["thoughts"] == ["a boat", "<think>never"]
    assert (rows[0]["cut"], rows[0]["cut_in_thoughts"]) == (None, None)
