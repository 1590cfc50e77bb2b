"""vLLM's CPU build against plain transformers on SmolLM2, and that an engine leaves nothing behind."""

import json
import os
import sys
from concurrent.futures import wait
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from stages.errors import ConfigError, EngineError
from stages.evaluate.answer import answer, open_session
from stages.evaluate.builders import Here
from stages.evaluate.config import AnswerConfig, EngineConfig, EngineKind, PromptConfig
from stages.evaluate.engines.protocol import GenerateRequest, ScoreRequest
from stages.evaluate.session import Session, open_engine
from stages.serving.process import Server, free_port
from tests.evaluation import evaluate

pytestmark = pytest.mark.vllm

# float32: log-probabilities of two engines agree to five digits, and an AVX2 machine multiplies it three times faster.
ENGINE = EngineConfig(kind=EngineKind.vllm, dtype="float32", max_model_len=512, kv_cache_gib=0.5, max_num_seqs=16)
STORY = "The harbour master counted nine boats before noon. " * 16
LONGER = ["nine boats were counted before noon", "nine boats were counted after dark", "no boat came at all that day"]


def config_of(task, start, stop, kind=EngineKind.vllm, **prompt):
    engine = EngineConfig(kind=kind, dtype="float32", max_model_len=512, kv_cache_gib=0.5, max_num_seqs=16)
    return AnswerConfig(task=task, start=start, stop=stop, harness="test", engine=engine, prompt=PromptConfig(**prompt))


@pytest.fixture(scope="module")
def inputs(smollm2):
    return {"checkpoint": smollm2}


@pytest.fixture(scope="module")
def session(inputs):
    with open_session(config_of("tabular_iris", 0, 1), inputs) as opened:
        yield opened


@pytest.fixture(scope="module")
def transformers_engine(smollm2):
    from stages.evaluate.session import open_engine

    opened = open_engine(smollm2, config_of("tabular_iris", 0, 1, EngineKind.transformers).engine)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def score_requests(session):
    encode = session.model.tok_encode
    context = tuple(encode(f"{STORY}How many boats? Answer:"))
    labels = [ScoreRequest(context, (token,)) for token in encode(" nine ten two")]
    longer = [ScoreRequest(context, tuple(encode(f" {text}"))) for text in LONGER]
    short_context = [ScoreRequest(tuple(encode("Boats:")), tuple(encode(f" {text}"))) for text in LONGER]
    whole_text = [ScoreRequest((session.model.prefix_token_id,), tuple(encode(STORY)))]
    # A context that ends with a block, and continuations that part, or end, where one ends: the cache hides the most.
    story, size = tuple(encode(STORY * 2)), session.engine._block_size
    whole_blocks = [
        ScoreRequest(story[:size], story[size : 2 * size] + tuple(encode(text)))
        for text in (" nine boats", " ten boats", "")
    ]
    return [*labels, *longer, *short_context, *whole_text, *whole_blocks, longer[0]]


def test_no_prompt_is_asked_twice_and_no_context_computed_twice(session, score_requests, monkeypatch):
    asked, outputs, add, step = [], [], session.engine._queue.add, session.engine._step

    def counted(requests):
        asked.append(len(requests))
        return add(requests)

    def observed():
        found = step()
        outputs.extend(found.values())
        return found

    monkeypatch.setattr(session.engine._queue, "add", counted)
    monkeypatch.setattr(session.engine, "_step", observed)
    session.engine.reset()
    session.engine.loglikelihood(score_requests)
    assert len(asked) == 2 and asked[1] == 0
    computed = sum(len(output.prompt_token_ids) - (output.num_cached_tokens or 0) for output in outputs)
    contexts = {request.context for request in score_requests}
    continuations = sum(len(request.continuation) for request in set(score_requests))
    again = session.engine._block_size * len(outputs)  # the block in which the cached part ends
    whole_prompts = sum(len(request.context + request.continuation) for request in score_requests)
    assert computed <= sum(map(len, contexts)) + continuations + again < whole_prompts


def assert_same_scores(found, expected):
    assert [score.is_greedy for score in found] == [score.is_greedy for score in expected]
    assert [score.logprob for score in found] == pytest.approx([score.logprob for score in expected], abs=2e-3)


def test_log_probabilities_equal_those_of_transformers(session, transformers_engine, score_requests):
    session.engine.reset()
    found = session.engine.loglikelihood(score_requests)
    assert_same_scores(found, transformers_engine.loglikelihood(score_requests))


def test_prompts_that_are_already_cached_score_the_same(session, score_requests):
    session.engine.reset()
    first = session.engine.loglikelihood(score_requests)
    again = session.engine.loglikelihood(score_requests)
    assert_same_scores(again, first)


def test_greedy_text_equals_that_of_transformers(session, transformers_engine):
    chat = session.model.apply_chat_template
    questions = ["Name three colours.", "What is 2 + 2?", "Who wrote Hamlet? Réponds en français 🗼."]
    prompts = [chat([{"role": "user", "content": question}]) for question in questions]
    requests = [
        GenerateRequest(tuple(session.model.tok_encode(prompt)), 24, ("<|im_end|>", "\n\n")) for prompt in prompts
    ]
    session.engine.reset()
    found, expected = session.engine.generate(requests), transformers_engine.generate(requests)
    assert [(answer.text, answer.finish_reason) for answer in found] == [
        (answer.text, answer.finish_reason) for answer in expected
    ]
    assert all(1 <= answer.num_tokens <= 24 for answer in found)


def test_a_stop_string_split_over_tokens_ends_the_text_before_it(session):
    prompt = tuple(session.model.tok_encode("One two three four five six"))
    (whole,) = session.engine.generate([GenerateRequest(prompt, 12)])
    written = session.model.tok_encode(whole.text, add_special_tokens=False)
    pieces = [session.model.tokenizer.decode([token]) for token in written]
    first = next(index for index in range(2, len(pieces)) if min(map(len, pieces[index : index + 2])) > 1)
    stop = pieces[first][-1] + pieces[first + 1][0]
    (cut,) = session.engine.generate([GenerateRequest(prompt, 12, (stop,))])
    assert stop in whole.text
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"


def bytes_of(config, inputs, session, out):
    out.mkdir()
    evaluate(config, inputs, out, session)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_a_shard_has_the_same_bytes_alone_and_after_others_and_in_another_engine(inputs, session, tmp_path):
    choice = config_of("tabular_iris", 2, 5, num_fewshot=3)
    written = config_of("mathador", 1, 3, num_fewshot=1, gen_kwargs={"max_gen_toks": 12})
    bytes_of(config_of("tabular_wine", 0, 3, num_fewshot=1), inputs, session, tmp_path / "other")
    after = [bytes_of(config, inputs, session, tmp_path / f"after_{config.task}") for config in (choice, written)]
    again = [bytes_of(config, inputs, session, tmp_path / f"again_{config.task}") for config in (written, choice)]
    assert after == again[::-1]
    rows = pq.read_table(tmp_path / "after_tabular_iris" / "samples.parquet").to_pylist()
    assert [row["doc_id"] for row in rows] == [2, 3, 4]
    (facts,) = json.loads((tmp_path / "after_tabular_iris" / "task.json").read_text())["leaves"].values()
    assert facts["scoring"]["one_token"] == "logprob_token_ids"
    assert facts["comparable"]["platform"] == "cpu"
    assert facts["arithmetic"] == {"method": "dense"}


def test_an_engine_that_cannot_start_or_dies_is_an_engine_error_and_process_state_returns(tmp_path, monkeypatch):
    import torch

    from stages.evaluate.session import open_engine

    before, set_num_threads = dict(os.environ), torch.set_num_threads
    with pytest.raises(EngineError, match="could not load") as caught:
        open_engine(tmp_path, ENGINE)
    assert "\n" not in str(caught.value)
    assert dict(os.environ) == before
    assert torch.set_num_threads is set_num_threads


def test_scores_are_those_of_lm_evals_own_adapter(session, inputs, monkeypatch):
    """The adapter asks the same engine, one request for each choice, without the prefix cache."""
    from lm_eval.api.instance import Instance

    from stages.evaluate.engines.harness_model import HarnessModel
    from tests.benchmarks.scoring import adapter

    choices = [" nine", " eleven", " nine boats", " no boat at all came in that day"]
    pairs = [(f"{STORY[:length]}\nHow many boats? Answer:", choice) for length in (0, 60, 700) for choice in choices]
    pairs += [(f"{STORY[:60]}\nAnswer:", f"\n{letter}") for letter in "ABCD"]
    pairs += [("", "The harbour master counted."), ("Boats: ", "nine"), pairs[-1]]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    ours = HarnessModel(session.model.tokenizer, ENGINE.max_model_len, engine=session.engine)
    theirs = adapter(inputs["checkpoint"], session.engine._llm, ENGINE.dtype, ENGINE.max_model_len)
    session.engine.reset()
    expected = theirs.loglikelihood(requests)
    session.engine.reset()
    rows, step = [], session.engine._step

    def observed():
        outputs = step()
        rows.extend(len(output.prompt_logprobs) for output in outputs.values() if output.prompt_logprobs)
        return outputs

    monkeypatch.setattr(session.engine, "_step", observed)
    for (found, is_greedy), (logprob, theirs_greedy) in zip(ours.loglikelihood(requests), expected, strict=True):
        assert found == pytest.approx(logprob, abs=1e-3)
        assert is_greedy == theirs_greedy
    assert 0 < max(rows) < 16, "vLLM makes objects of what is scored alone, not of contexts of hundreds of tokens"


def test_shards_that_overlap_get_the_same_texts(session, inputs, tmp_path, monkeypatch):
    """And shards of choices among them, which meet the engine alone, and those that cannot be built or asked for."""
    written = {"num_fewshot": 0, "gen_kwargs": {"max_gen_toks": 16}}
    shards = [config_of("mathador_easy", start, start + 2, **written) for start in range(0, 8, 2)]
    shards[3:3] = [config_of("tabular_iris", start, start + 2) for start in (5, 7)]
    alone = [bytes_of(shard, inputs, session, tmp_path / f"alone{shard.start}") for shard in shards]
    engine, was_busy, started = session.engine, [], []
    begin, start = engine.begin, engine.start

    def observed(requests):
        was_busy.append(engine._llm.llm_engine.has_unfinished_requests())
        return begin(requests)

    monkeypatch.setattr(engine, "begin", observed)
    monkeypatch.setattr(engine, "start", lambda ready: started.append(len(ready.requests)) or start(ready))
    overlapping = Session(session.model, engine, inputs["checkpoint"], Here(session.model, tmp_path), overlaps=True)
    unknown = config_of("no_such_task", 0, 3)
    refused = config_of("mathador_easy", 0, 3, gen_kwargs={"do_sample": True, "temperature": 1.0})
    refused.prompt.gen_kwargs["min_p"] = 7  # as a task's own file may have it
    for shard in (shards[0], unknown, refused, *shards[1:]):
        overlapping.announce(shard, inputs["checkpoint"], {})
    wait(shard.built for shard in overlapping._under_way.values())
    at_once = [bytes_of(shard, inputs, overlapping, tmp_path / f"beside{shard.start}") for shard in shards]
    assert at_once == alone
    assert was_busy.count(True) >= 2, "the second and third shard are begun while the first is being written"
    assert started == [6, 6], "of three choices for each of two documents, before they were asked for"
    for shard, says in ((unknown, "unknown to lm-eval"), (refused, "min_p")):
        with pytest.raises(ConfigError, match=says):
            overlapping.answered(shard, {})


@pytest.fixture
def server(smollm2, tmp_path):
    """vLLM's own server, as a user would start it."""
    port = free_port()
    options = {"model": smollm2, "served-model-name": "own", "port": port, "host": "127.0.0.1", "dtype": "float32"}
    options |= {"max-model-len": 512, "max-num-seqs": 16, "kv-cache-memory-bytes": 2**29}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments, "--enforce-eager"]
    opened = Server(command, {"HF_HUB_OFFLINE": "1"}, tmp_path / "server.log", port)
    try:
        opened.wait_until_ready(300, "vLLM's server")
        yield opened
    finally:
        opened.stop()


def answers_of(config, inputs, session, out):
    """A shard's answers as they came, token by token, and how they were asked."""
    out.mkdir(parents=True)
    answer(config, inputs, out, session)
    return (out / "answers.parquet").read_bytes(), json.loads((out / "answers.json").read_text())


def test_a_servers_answers_are_those_of_the_engine_in_this_process_to_the_byte(session, inputs, server, tmp_path):
    """Asked in tokens, greedy and sampled, and in text; what is said of them differs."""
    greedy = config_of("mathador_easy", 1, 3, num_fewshot=0, gen_kwargs={"max_gen_toks": 12, "until": ["\n\n"]})
    drawn = {"max_gen_toks": 6, "do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    sampled = config_of("mathador", 0, 2, num_fewshot=0, apply_chat_template=False, gen_kwargs=drawn)
    expected = {
        shard.task: answers_of(shard, inputs, session, tmp_path / "here" / shard.task)[0] for shard in (greedy, sampled)
    }
    for prompt_format, shards in (("tokens", [greedy, sampled]), ("text", [sampled])):
        engine = EngineConfig(
            kind=EngineKind.endpoint, dtype="served", max_model_len=512, url=f"{server.url}/v1", served_model="own",
            prompt_format=prompt_format,
        )  # fmt: skip
        asked = [replace(shard, engine=engine) for shard in shards]
        opened = open_engine(inputs["checkpoint"], engine)
        there = Session(session.model, opened, inputs["checkpoint"], Here(session.model, tmp_path))
        found = [answers_of(shard, inputs, there, tmp_path / prompt_format / shard.task) for shard in asked]
        there.close()
        assert {
            shard.task: answers for shard, (answers, _) in zip(shards, found, strict=True)
        }.items() <= expected.items()
    _, facts = found[0]
    assert facts["arithmetic"]["method"] == "served"
    version = session.engine.facts["engine_version"]
    assert facts["comparable"]["engine"] == "endpoint" and facts["comparable"]["engine_version"] == f"vllm {version}"


def test_a_dead_engine_gives_no_score(session, score_requests, monkeypatch):
    from vllm.v1.engine.exceptions import EngineDeadError

    def die(*args, **options):
        raise EngineDeadError

    monkeypatch.setattr(session.engine._llm.llm_engine, "step", die)
    with pytest.raises(EngineError, match="died"):
        session.engine.loglikelihood(score_requests)


def test_another_engine_opens_after_the_first_is_closed(inputs, session, score_requests, tmp_path):
    """Last in this module: the engine of the others is closed here."""
    shard = config_of("tabular_iris", 2, 5, num_fewshot=3)
    before = bytes_of(shard, inputs, session, tmp_path / "before")
    session.engine.close()
    with open_session(shard, inputs) as other:
        assert bytes_of(shard, inputs, other, tmp_path / "alone") == before
