"""Our rules between text and tokens against lm-eval's own transformers adapter, on the same tiny model in float32."""

import json
import math
import re
import shutil
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance

from stages.errors import ConfigError, EngineError
from stages.evaluate.answers import response_of
from stages.evaluate.config import EngineConfig, EngineKind
from stages.evaluate.engines.protocol import GenerateRequest, ScoreRequest

WINDOW = 96  # tokens, prompt and output together
ENGINE = EngineConfig(kind=EngineKind.transformers, dtype="float32", max_model_len=WINDOW, batch_size=3)
PAIRS = [
    ("What is the sum of twelve and thirty?", " forty-two"),
    ("What is the sum of twelve and thirty?", " nine"),
    ("What is the sum of twelve and thirty?", " "),
    ("The context ends in spaces   ", "and moves them"),
    ("", "a text without context"),
    ("", "<|im_start|>begins with the prefix token itself"),
    ("<|im_start|>user\nWhich letter?<|im_end|>\n<|im_start|>assistant\n", "B"),
    ("<|im_start|>user\nWhich letter?<|im_end|>\n<|im_start|>assistant\n", "C"),
    ("byte-pair merges run across the bound", "ary of context and continuation"),
    ("Les élèves naïfs — 東京 🗼", " répondent: ça 🚀 ünïcödé"),
    ("special <|im_end|> tokens <|endoftext|> inside", " the <|im_start|> document"),
    ("a very long context " * 60, "scored at its end"),
]


@pytest.fixture(scope="module")
def engine(tiny_model):
    from stages.evaluate.session import open_engine

    opened = open_engine(tiny_model, ENGINE)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def model(tiny_model, engine):
    from transformers import AutoTokenizer

    from stages.evaluate.engines.harness_model import HarnessModel

    return HarnessModel(AutoTokenizer.from_pretrained(tiny_model), WINDOW, engine=engine)


@pytest.fixture(scope="module")
def reference(tiny_model):
    """lm-eval's adapter; its window does not count the last token, nor the one that vLLM must generate."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(tiny_model), dtype="float32", device="cpu", batch_size=4, max_length=WINDOW - 2)


def scoring(context, continuation):
    return Instance("loglikelihood", {}, (context, continuation), 0, ("task", 0, 1))


def rolling(text):
    return Instance("loglikelihood_rolling", {}, (text,), 0, ("task", 0, 1))


def writing(context, idx=0, **arguments):
    return Instance(
        "generate_until", {}, (context, {"until": [], "max_gen_toks": 12, **arguments}), idx, ("task", 0, 1)
    )


def assert_same_scores(found, expected):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    for (ours, _), (theirs, _) in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_loglikelihoods_equal_lm_evals_own_adapter(model, reference):
    requests = [scoring(*pair) for pair in PAIRS]
    assert_same_scores(model.loglikelihood(requests), reference.loglikelihood(requests, disable_tqdm=True))


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS.filter(str.strip), TEXTS.filter(bool))  # of blanks alone lm-eval leaves no context, and fails
def test_any_text_is_cut_into_the_tokens_lm_eval_cuts(model, reference, context, continuation):
    before, after = reference._encode_pair(context, continuation)
    parts = model.encode(scoring(context, continuation)).scores
    assert [token for part in parts for token in part.context + part.continuation] == (
        [*before, *after][-(WINDOW - 1) :] if after else []
    )
    assert [token for part in parts for token in part.continuation] == after[-(WINDOW - 2) :]


@pytest.mark.parametrize("text", ["short", "a text of several windows, " * 40, "naïve 東京 " * 30])
def test_whole_texts_score_as_in_lm_eval(model, reference, text):
    (found,) = model.loglikelihood_rolling([rolling(text)])
    (expected,) = reference.loglikelihood_rolling([rolling(text)], disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-3)


def test_windows_of_a_long_text_are_two_tokens_shorter_than_lm_evals_transformers_adapter_has_them(model, tiny_model):
    """As in its vLLM adapter.  A text that fits into one is scored alike."""
    from lm_eval.models.huggingface import HFLM

    whole = HFLM(str(tiny_model), dtype="float32", device="cpu", max_length=WINDOW)
    texts = [rolling("short"), rolling("a text of several windows, " * 40)]
    found = model.loglikelihood_rolling(texts)
    expected = whole.loglikelihood_rolling(texts, disable_tqdm=True)
    assert found[0] == pytest.approx(expected[0], abs=1e-3)
    assert found[1] != pytest.approx(expected[1], abs=1e-1)


def test_special_tokens_that_a_model_writes_stay_in_its_answer(model, engine, reference):
    import torch

    special = model.tokenizer.convert_tokens_to_ids("<|im_start|>")
    (text,) = model.generate_until([writing("one", max_gen_toks=4)])
    first = model.tokenizer.encode(text, add_special_tokens=False)[0]
    heads = [loaded.get_output_embeddings().weight for loaded in (engine._model, reference.model)]

    def exchange():
        with torch.no_grad():
            for weight in heads:
                weight[[first, special]] = weight[[special, first]]

    exchange()
    try:
        (ours,) = model.generate_until([writing("one", max_gen_toks=4)])
        (theirs,) = reference.generate_until([writing("one", max_gen_toks=4)], disable_tqdm=True)
    finally:
        exchange()
    assert ours.startswith("<|im_start|>")
    assert theirs == re.sub(r"<\|\w*\|>", "", ours), "lm-eval's transformers adapter drops them"


def test_greedy_texts_equal_lm_evals_own_adapter(model, reference):
    requests = [writing(context or "one", max_gen_toks=20, until=["\n\n", "zq"]) for context, _ in PAIRS[:-1]]
    assert model.generate_until(requests) == reference.generate_until(requests, disable_tqdm=True)


def test_text_ends_before_the_first_stop_string_even_if_it_spans_tokens(engine, model, reference):
    (whole,) = model.generate_until([writing("Which letter comes first?", max_gen_toks=24)])
    tokens = model.tok_encode(whole, add_special_tokens=False)
    spans = [whole[start : start + 3] for start in range(2, len(whole) - 3)]
    stop = next(span for span in spans if len(model.tok_encode(span, add_special_tokens=False)) > 1)
    request = writing("Which letter comes first?", max_gen_toks=24, until=[stop])
    (answer,) = model.answer(engine, [model.encode(request)])
    assert response_of(answer, None).value == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"
    assert answer.num_output_tokens < len(tokens)
    assert [response_of(answer, None).value] == reference.generate_until([request], disable_tqdm=True)


def test_an_answer_that_runs_out_of_tokens_says_so(engine, model):
    (answer,) = model.answer(engine, [model.encode(writing("Which letter comes first?", max_gen_toks=5))])
    assert (answer.num_output_tokens, answer.finish_reason, answer.truncated) == (5, "length", False)


@pytest.mark.parametrize(("context", "continuation"), [("any context", ""), ("", "")])
def test_a_continuation_without_a_token_is_no_choice_that_always_wins(model, context, continuation):
    with pytest.raises(ValueError, match="continuation is empty"):
        model.encode(scoring(context, continuation))


def test_what_does_not_fit_is_cut_on_the_left_and_flagged(model):
    long_prompt, long_choice = model.encode(writing("word " * 200)), model.encode(scoring("context", " tail" * 200))
    assert long_prompt.truncated
    assert len(long_prompt.generation.prompt) == WINDOW - 12
    assert long_choice.truncated
    (part,) = long_choice.scores
    assert (len(part.context), len(part.continuation)) == (1, WINDOW - 2)
    (score, _), _ = model.loglikelihood([scoring("context", " tail" * 200), scoring("a", "b")])
    assert math.isfinite(score)
    assert not model.encode(scoring("context", " tail")).truncated


def test_equal_requests_get_equal_answers_wherever_they_stand(model):
    requests = [scoring(*PAIRS[0]), scoring(*PAIRS[9]), scoring(*PAIRS[0])]
    first, _, last = model.loglikelihood(requests)
    assert first == last == model.loglikelihood([scoring(*PAIRS[0])])[0]


def test_choices_of_one_token_share_one_pass(model, engine, monkeypatch):
    passes = []
    monkeypatch.setattr(engine, "_logits", lambda *args, run=engine._logits: passes.append(args) or run(*args))
    model.loglikelihood([scoring("Which letter? Answer:", letter) for letter in "ABCD"])
    assert len(passes) == 1
    assert len(passes[0][0]) == 1


def test_sampling_repeats_with_its_seed_and_differs_between_repeats(engine, model):
    request = writing("Every evening", do_sample=True, temperature=1.5, max_gen_toks=20)
    first, second = (model.encode(request, repeat) for repeat in (0, 1))
    alone, beside = model.answer(engine, [first]), model.answer(engine, [second, first])
    assert alone[0] == beside[1]
    assert response_of(beside[0], None) != response_of(beside[1], None)


def test_no_temperature_means_greedy(model):
    plain, explicit = writing("Every evening"), writing("Every evening", do_sample=False, temperature=0.7)
    assert model.encode(plain).generation == model.encode(explicit).generation
    assert model.encode(plain).generation.sampling == ()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"num_beams": 4}, "num_beams"), ({"banana": 1}, "banana"), ({"max_gen_toks": 500}, "max_model_len=96")],
)
def test_generation_arguments_that_cannot_be_met_are_refused_by_name(model, arguments, named):
    with pytest.raises(ConfigError, match=named):
        model.encode(writing("a prompt", **arguments))


def test_a_chat_template_without_system_role_gets_no_system_message_in_lm_eval(model, monkeypatch):
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0]['content'] }}"
    )
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert model.chat.rendered_as_lm_eval(messages) == "hello"
    assert type(model)(model.tokenizer, 64).apply_chat_template(messages) == "be kind\n\nhello"


def test_a_directory_without_weights_is_an_engine_error_on_one_line(tmp_path):
    from stages.evaluate.session import open_engine

    with pytest.raises(EngineError, match="could not load") as caught:
        open_engine(tmp_path, ENGINE)
    assert "\n" not in str(caught.value)


def test_a_window_beyond_the_models_positions_is_refused(tiny_model):
    from stages.evaluate.session import open_engine

    with pytest.raises(ConfigError, match="512 positions"):
        open_engine(tiny_model, replace(ENGINE, max_model_len=513))


def test_what_the_model_cannot_compute_is_an_engine_error(engine):
    with pytest.raises(EngineError, match="failed on a batch"):
        engine.loglikelihood([ScoreRequest((1,), (10**9,)), ScoreRequest((10**9,), (1,))])
    with pytest.raises(EngineError, match="failed on a batch"):
        engine.generate([GenerateRequest((10**9,), 2)])


def test_a_compressed_checkpoint_answers_close_to_its_base(tiny_model, engine, model, tmp_path):
    from stages.evaluate.session import open_engine
    from stages.quantize import Algorithm, QuantizeConfig, RecipeConfig, quantize

    recipe = RecipeConfig(name="fp8", algorithm=Algorithm.rtn, scheme="FP8_DYNAMIC")
    quantize(QuantizeConfig(recipe=recipe, seed=0), {"model": tiny_model}, tmp_path)
    requests = [part for pair in PAIRS[:2] for part in model.encode(scoring(*pair)).scores]
    compressed = open_engine(tmp_path, ENGINE)
    found, base = compressed.loglikelihood(requests), engine.loglikelihood(requests)
    compressed.close()
    assert [score.logprob for score in found] == pytest.approx([score.logprob for score in base], rel=0.05)
    assert found != base


def test_logits_that_are_not_numbers_void_the_shard(engine, monkeypatch):
    monkeypatch.setattr(engine, "_logits", lambda batch, first, run=engine._logits: run(batch, first) * math.nan)
    with pytest.raises(EngineError, match="not numbers"):
        engine.loglikelihood([ScoreRequest((1, 2), (3,))])


def test_greedy_is_greedy_whatever_the_checkpoint_suggests(engine, tiny_model, tmp_path):
    """Chat models ship penalties in generation_config.json, which vLLM is not told of either."""
    from stages.evaluate.session import open_engine

    shutil.copytree(tiny_model, tmp_path / "model")
    suggested = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    suggested |= {"repetition_penalty": 1.8, "do_sample": True, "temperature": 2.0}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(suggested))
    other = open_engine(tmp_path / "model", ENGINE)
    request = GenerateRequest(prompt=(5, 6, 7, 8), max_tokens=24, stop=())
    assert other.generate([request]) == engine.generate([request])
    other.close()
