"""Where lm-eval's number is wrong ours is right; with ``harness_compat`` it is lm-eval's."""

import itertools
import json
from dataclasses import fields, replace

import pytest

from stages.errors import ConfigError
from stages.evaluate.answers import Answer, Answered
from stages.evaluate.artifact import read_leaf_facts, read_samples
from stages.evaluate.builders import Here
from stages.evaluate.building import build_task
from stages.evaluate.config import AnswerConfig, PromptConfig, ScoringConfig
from stages.evaluate.digests import digest, prompt_digest
from stages.evaluate.engines.harness_model import HarnessModel
from stages.evaluate.engines.protocol import Generation
from stages.evaluate.harness import BuiltTask, load_task
from stages.evaluate.reasoning import Reasoning
from stages.evaluate.scoring import score_documents
from stages.evaluate.session import Session
from tests.evaluation import evaluate
from tests.stages.evaluate.test_evaluate import row

pytestmark = pytest.mark.dear

HEAD = "{{ bos_token }}"
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}"
END = "{% if add_generation_prompt %}<assistant>{% endif %}"
REFUSAL = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
TEMPLATES = {
    "takes it": HEAD + TURNS + END,
    "refuses it": HEAD
    + "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + TURNS
    + END,
    "leaves it out": HEAD + TURNS.replace("messages %}", "messages if m.role != 'system' %}") + END,
}
OUTPUT = 'output_type: generate_until\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{gold}}"\n'
SPLITS = {  # how examples are drawn from the documents' own split, and whether lm-eval sees that they are
    "tests_alone": ("test", "test_split: test\n", False),
    "tests_named": ("test", "test_split: test\nfewshot_split: test\n", True),
    "validation": ("validation", "validation_split: validation\nfewshot_split: validation\n", False),
    "validation_unnamed": ("validation", "validation_split: validation\n", True),
    "the_first": (
        "validation",
        "validation_split: validation\nfewshot_config: {sampler: first_n, split: validation}\n",
        False,
    ),
}
BEGINNINGS = ["Here it is:\n```python\n", " two spaces ", "plain"]
FILTERS = "filter_list: [{name: own, filter: [{function: custom, filter_fn: !function code.count}]}]\n"
TASKS = {
    "rolling": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{question}}"\ntest_split: test\n',
    "plain": OUTPUT + "test_split: test\n",
    "stops": OUTPUT + 'test_split: test\ngeneration_kwargs: {until: ["Q:", "\\n\\n"], max_gen_toks: 9}\n',
    "described": OUTPUT + 'test_split: test\ndescription: "About boats."\n',
    "filtered": OUTPUT + "test_split: test\n" + FILTERS,
    "languages": OUTPUT + "test_split: test\nprocess_results: !function code.language\n",
    **{name: OUTPUT + text for name, (_, text, _) in SPLITS.items()},
    **{f"begun_{n}": OUTPUT + f"test_split: test\ngen_prefix: {json.dumps(b)}\n" for n, b in enumerate(BEGINNINGS)},
}
CODE = """
import langdetect
calls = []
def count(resps, docs):
    calls.append(len(resps))
    if any("bad" in texts[0] for texts in resps):
        raise ValueError("a bad text")
    return [texts[0] for texts in resps]
def language(doc, results):
    return {"language": langdetect.detect("dear friend, please go vote. best, sam")}
"""


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "code.py").write_text(CODE)
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: own/rows\n{text}")
    return folder


@pytest.fixture
def task_of(tasks_dir, tmp_path):
    """Loads a task anew, over a data set of ten rows in one split."""
    numbers = itertools.count()

    def load(name):
        data = tmp_path / "rows"
        data.mkdir(exist_ok=True)
        lines = "".join(json.dumps(row(number)) + "\n" for number in range(10))
        (data / f"{SPLITS.get(name, ['test'])[0]}.jsonl").write_text(lines)
        return load_task(name, {}, [str(tasks_dir)], {"own/rows": data}, tmp_path / f"read_{next(numbers)}")

    return load


@pytest.fixture
def model_of(tiny_model):
    """The tiny model's tokens under a chat template; with ``bos`` the tokenizer puts one before every text."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    def make(template=None, bos=False):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        if bos:
            special = [(tokenizer.bos_token, tokenizer.bos_token_id)]
            tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{tokenizer.bos_token} $A", special_tokens=special
            )
        tokenizer.chat_template = template or tokenizer.chat_template
        return HarnessModel(tokenizer, 300)

    return make


def built(task, prompt, model):
    template = model.chat.rendered_as_lm_eval if prompt.harness_compat else model.chat.rendered
    return BuiltTask(task, prompt, template if prompt.apply_chat_template else None).documents(range(10))


def texts(documents):
    assert [document.error for document in documents] == [None] * len(documents)
    return [document.instances[0].args[0] for document in documents]


def own_questions(documents):
    """How often the question of each document is in its prompt."""
    return [asked.count(each.doc["question"]) for asked, each in zip(texts(documents), documents, strict=True)]


@pytest.mark.parametrize("compat", [False, True])
def test_a_text_is_conditioned_on_one_bos_token(task_of, model_of, compat):
    model = model_of(bos=True)
    task = task_of("rolling")
    (document, *_) = BuiltTask(task, PromptConfig(apply_chat_template=False), None).documents(range(1))
    (request,) = model.encode(document.instances[0], harness_compat=compat).scores
    bos = model.tokenizer.bos_token_id
    assert request.context == (bos,)
    assert (request.continuation[0] == bos) is compat, "lm-eval asks how likely a second one is"
    assert model.tokenizer.decode(request.continuation[compat:]) == document.doc["question"]


@pytest.mark.parametrize("splits", SPLITS)
def test_no_document_is_its_own_example(task_of, model_of, splits):
    prompt = PromptConfig(num_fewshot=4, apply_chat_template=False)
    assert own_questions(built(task_of(splits), prompt, model_of())) == [1] * 10
    counts = own_questions(built(task_of(splits), replace(prompt, harness_compat=True), model_of()))
    assert (max(counts) == 1) is SPLITS[splits][2]


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_a_system_message_says_is_in_every_prompt(task_of, model_of, template):
    model = model_of(TEMPLATES[template])
    prompt = PromptConfig(num_fewshot=1, system_instruction="Say less.")
    for asked in texts(built(task_of("described"), prompt, model)):
        assert "Say less." in asked and "About boats." in asked
        assert ("<system>" in asked) is (template == "takes it") is model.chat.takes_system
        assert asked.index("Say less.") < asked.index("Which")
    compat = texts(built(task_of("described"), replace(prompt, harness_compat=True), model))
    assert all(("Say less." in asked) is model.chat.takes_system for asked in compat)


CHANGES = {
    "num_fewshot": 2,
    "apply_chat_template": False,
    "fewshot_as_multiturn": False,
    "system_instruction": "Say more.",
    "gen_kwargs": {"temperature": 0.5, "do_sample": True},
    "fewshot_seed": 7,
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_prompt_setting_changes_what_is_asked(task_of, model_of, template):
    # The others say how often something is asked, and what is read of the answer.
    others = {"harness_compat", "num_repeats", "reasoning_end", "chat_template_kwargs"}
    assert {field.name for field in fields(PromptConfig)} - set(CHANGES) == others
    model, prompt = model_of(TEMPLATES[template]), PromptConfig(num_fewshot=3, system_instruction="Say less.")

    def digests(asked):
        return [prompt_digest(each.instances) for each in built(task_of("plain"), asked, model)]

    before = digests(prompt)
    for name, value in CHANGES.items():
        assert all(map(str.__ne__, before, digests(replace(prompt, **{name: value})))), name


@pytest.mark.parametrize("number", range(len(BEGINNINGS)))
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_beginning_of_an_answer_keeps_its_white_space(task_of, model_of, number, template):
    for asked in texts(built(task_of(f"begun_{number}"), PromptConfig(), model_of(TEMPLATES[template]))):
        assert asked.endswith("<assistant>" + BEGINNINGS[number])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.7"), ("temperature", -1), ("temperature", float("nan")), ("temperature", True), ("top_p", 0),
        ("top_p", 1.5), ("top_k", 2.5), ("top_k", -2), ("min_p", 2), ("max_gen_toks", 0), ("max_tokens", "10"),
        ("until", [1]), ("until", 3), ("do_sample", "yes"), ("num_beams", 2), ("repetition_penalty", 0),
    ],
)  # fmt: skip
def test_a_generation_argument_that_cannot_be_is_refused_at_the_door(name, value):
    with pytest.raises(ValueError, match=f"gen_kwargs.{name} must be .*; got") as caught:
        PromptConfig(gen_kwargs={name: value})
    assert "\n" not in str(caught.value)


def test_arguments_that_can_be_are_taken():
    given = {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0.1, "until": "a", "max_tokens": 3, "do_sample": None}
    assert PromptConfig(gen_kwargs=given).gen_kwargs == {
        name: value for name, value in given.items() if value is not None
    }
    assert PromptConfig(gen_kwargs={"max_gen_toks": None}) == PromptConfig(), "null is the task's own"


def score(task, texts):
    """The samples of the task's first documents, each answered with these texts."""
    given = [
        Answered(
            doc_id=doc_id,
            doc_digest=digest(task.eval_docs[doc_id]),
            prompt_digest="",
            num_requests=1,
            answers=[Answer(text=text, finish_reason="stop", seed=seed) for seed, text in enumerate(each)],
        )
        for doc_id, each in enumerate(texts)
    ]
    return score_documents(task, given, ScoringConfig())


def test_filters_see_a_whole_shard_and_one_bad_text_costs_itself(task_of):
    task = task_of("filtered")
    samples = score(task, [[f"text {doc_id}"] for doc_id in range(10)])
    calls = task._filters[0].filters[0]().filter_fn.__globals__["calls"]
    assert calls == [10]
    assert [sample.error for sample in samples] == [None] * 10
    bad = score(task, [["bad" if doc_id == 3 else "text"] for doc_id in range(10)])
    assert [sample.doc_id for sample in bad if sample.error] == [3]
    assert bad[3].error == "not scored: ValueError: a bad text" and bad[3].metrics == {}


def test_what_is_scored_twice_scores_alike(task_of):
    task = task_of("languages")
    found = [score(task, [["x"]] * 10) for _ in range(8)]
    assert len({sample.metrics["language,none"] for samples in found for sample in samples}) == 1


NO_THOUGHTS = "<think>\\n\\n</think>\\n\\n"
ENDS_THOUGHTS = (
    "{% if enable_thinking is defined and not enable_thinking %}{{ '" + NO_THOUGHTS + "' }}{% endif %}{% endif %}"
)
THINKING = HEAD + TURNS + "{% if add_generation_prompt %}<assistant>" + ENDS_THOUGHTS


class Writer:
    """An engine that writes down what it is asked, and answers as a model that thinks if it may."""

    scoring, facts, arithmetic = {}, {"engine": "writer"}, {"method": "dense"}

    def __init__(self, tokenizer):
        self.tokenizer, self.asked = tokenizer, []

    def loglikelihood(self, requests):
        return []

    def generate(self, requests):
        self.asked += requests
        return [self._answer(self.tokenizer.decode(request.prompt)) for request in requests]

    def _answer(self, prompt):
        text = "16" if prompt.rstrip().endswith("</think>") else "<think>Q: not 3\n\n</think>16\n\nQ: 4"
        return Generation(text, 5, "stop")

    def reset(self):
        pass

    def close(self):
        pass


@pytest.mark.parametrize(("kwargs", "thinks"), [({}, True), ({"enable_thinking": False}, False)])
def test_a_model_is_told_whether_to_think_and_only_its_answer_is_read(
    tasks_dir, task_of, model_of, tmp_path, kwargs, thinks
):
    task_of("stops")  # writes the data
    model = model_of(THINKING)
    writer = Writer(model.tokenizer)
    session = Session(model, writer, tmp_path, Here(model, tmp_path / "work"))
    prompt = PromptConfig(chat_template_kwargs=kwargs)
    config = AnswerConfig(task="stops", stop=4, start=0, harness="h", include_paths=[str(tasks_dir)], prompt=prompt)
    out = tmp_path / "out"
    out.mkdir()
    evaluate(config, {"checkpoint": tmp_path, "data:own/rows": tmp_path / "rows"}, out, session)
    session.close()
    assert {request.stop for request in writer.asked} == {("<|im_end|>",) if thinks else ("Q:", "\n\n", "<|im_end|>")}
    for row_ in read_samples(out).to_pylist():
        assert row_["responses"] == ["16"]
        assert row_["thoughts"] == (["Q: not 3"] if thinks else None)
        assert row_["stopped_by"] == (["\n\n"] if thinks else [])
    (facts,) = read_leaf_facts(out).values()
    assert facts.comparable["reasoning_end"] == "</think>" and facts.comparable["chat_template_kwargs"] == kwargs


@pytest.mark.parametrize("thinks", [True, False])
def test_a_special_token_among_stop_strings_ends_a_turn_and_not_a_text(task_of, model_of, thinks):
    """Fine-tuned checkpoints whose own end token is another one end their turns there, those that think, too."""
    task, model = task_of("stops"), model_of(THINKING)
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]}, replace_extra_special_tokens=False)
    built = BuiltTask(task, PromptConfig(gen_kwargs={"until": ["\n\n", "<|turn|>"]}), model.apply_chat_template)
    (request,) = built.documents([0])[0].instances
    work = model.encode(request, reasoning=Reasoning(start="<think>", end="</think>") if thinks else None)
    assert ("<|turn|>" in work.generation.stop) and ("\n\n" in work.generation.stop) is not thinks
    for stopped_by, told in (("<|turn|>", None), ("\n\n", "\n\n")):
        (answer,) = model.assembled([work], iter(()), iter([Generation("16", 5, "stop", None, stopped_by)]))
        assert answer.stopped_by == told and list(answer.stop) == ["\n\n"]


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}])
def test_templates_may_mark_what_is_written_and_leave_loops(tasks_dir, task_of, model_of, tmp_path, kwargs):
    task_of("plain")
    template = (
        "{% for message in messages %}{% if loop.index > 9 %}{% break %}{% endif %}"
        "{% generation %}{{ message['content'] }}{% endgeneration %}{% endfor %}{{ enable_thinking }}"
    )
    prompt = PromptConfig(chat_template_kwargs=kwargs)
    config = AnswerConfig(task="plain", stop=4, start=0, harness="h", include_paths=[str(tasks_dir)], prompt=prompt)
    built = build_task(config, {"own/rows": tmp_path / "rows"}, model_of(template), tmp_path / "read")
    assert built.documents([0])[0].error is None


def test_what_the_template_does_not_read_is_refused(tasks_dir, task_of, model_of, tmp_path):
    task_of("plain")
    prompt = PromptConfig(chat_template_kwargs={"enable_thinkin": False})
    config = AnswerConfig(task="plain", stop=4, start=0, harness="h", include_paths=[str(tasks_dir)], prompt=prompt)
    with pytest.raises(ConfigError, match=r"reads no chat_template_kwargs\.enable_thinkin; it reads enable_thinking$"):
        build_task(config, {"own/rows": tmp_path / "rows"}, model_of(THINKING), tmp_path / "read")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"chat_template_kwargs": {"enable_thinking": True}, "apply_chat_template": False}, "need apply_chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "tokenize is set by the evaluation itself"),
        ({"chat_template_kwargs": {"enable_thinking": "false"}}, "the text 'false', .* write false without quotes"),
        ({"reasoning_end": ""}, "reasoning_end is empty"),
        ({"num_repeats": 0}, "num_repeats must be at least 1"),
    ],
)
def test_prompt_settings_that_cannot_be_are_refused_at_the_door(changes, says):
    with pytest.raises(ValueError, match=says):
        PromptConfig(**changes)
