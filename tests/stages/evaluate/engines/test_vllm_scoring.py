"""What the prefix cache hides of a continuation is asked for elsewhere: against a cache that behaves as vLLM's does."""

import math
import tracemalloc
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import EngineError
from stages.evaluate.engines.vllm_scoring import Job, Known, jobs

VOCABULARY = 3  # so few that continuations share beginnings, and contexts
tokens = st.integers(0, VOCABULARY - 1)
continuations = st.lists(st.lists(tokens, min_size=1, max_size=14).map(tuple), min_size=1, max_size=6, unique=True)


def logprob(prefix, token):
    """Of a made-up model; everything before counts."""
    weights = [1 + (hash((prefix, other)) % 97) for other in range(VOCABULARY)]
    return math.log(weights[token] / sum(weights))


class CachingModel:
    """Whole blocks of every prompt are cached; of cached tokens no log-probability comes back."""

    def __init__(self, block_size, pads):
        self.block_size, self.pads = block_size, pads
        self.cached, self.num_computed, self.num_context_logits = set(), 0, 0

    def __call__(self, job):
        prompt, size = job.prompt, self.block_size
        num_cached = 0
        while job.reads_cache and num_cached + size < len(prompt) and prompt[: num_cached + size] in self.cached:
            num_cached += size
        self.cached |= {prompt[:end] for end in range(size, len(prompt) + 1, size)}
        self.num_computed += len(prompt) - num_cached
        rows = [None] + [self.row(prompt[:index], prompt[index]) for index in range(1, len(prompt))]
        # What the older model runner pads with is whatever was in memory.
        padding = [None, *({token: SimpleNamespace(logprob=-0.5)} for token in prompt[1 : num_cached + 1])]
        visible = [*padding, *rows[num_cached + 1 :]] if self.pads else rows[num_cached + 1 :]
        if job.is_span and len(job.context) >= size:
            self.num_context_logits += max(0, len(job.context) - num_cached - size)
        greedy = max(range(VOCABULARY), key=lambda token: logprob(prompt, token))
        answer = SimpleNamespace(token_ids=[greedy], logprobs=[self.row(prompt, *job.labels)])
        return SimpleNamespace(
            prompt_logprobs=visible if job.is_span else None, num_cached_tokens=num_cached, outputs=[answer]
        )

    @staticmethod
    def row(prefix, *wanted):
        greedy = max(range(VOCABULARY), key=lambda token: logprob(prefix, token))
        return {token: SimpleNamespace(logprob=logprob(prefix, token)) for token in {*wanted, greedy}}


@given(st.lists(tokens, min_size=1, max_size=12).map(tuple), continuations, st.integers(2, 5), st.booleans())
def test_every_token_is_known_and_no_context_is_computed_twice(context, asked, block_size, pads):
    model, known = CachingModel(block_size, pads), Known()
    asked_of = list(jobs(context, asked, block_size))
    for job in asked_of:
        known.add(job, model(job))
    for continuation in asked:
        expected = [logprob(context + continuation[:index], token) for index, token in enumerate(continuation)]
        greedy = all(
            value == max(logprob(context + continuation[:index], token) for token in range(VOCABULARY))
            for index, value in enumerate(expected)
        )
        found = known.score(continuation)
        assert (found.logprob, found.is_greedy) == (pytest.approx(sum(expected)), greedy)
    assert model.num_context_logits == 0  # beyond the block in which the cached part ends
    # A request computes again at most the block in which the cached part ends, beside its own tokens.
    allowed = len(context) + sum(block_size + len(job.after) for job in asked_of)
    assert model.num_computed <= allowed


def test_what_is_not_shown_is_not_made_up():
    known = Known()
    context, continuation = (1, 2, 0, 1), (2, 0, 1)
    (job,) = jobs(context, [continuation], block_size=8)
    model = CachingModel(4, pads=False)
    model(Job(context))  # another context left this one in the cache
    known.add(job, model(job))
    assert known.score(continuation) is None
    uncached = Job(context, continuation, is_span=True, reads_cache=False)
    known.add(uncached, model(uncached))
    assert known.score(continuation).logprob == pytest.approx(
        sum(logprob(context + continuation[:index], token) for index, token in enumerate(continuation))
    )


def test_a_log_probability_that_is_no_number_is_an_error():
    output = CachingModel(4, pads=False)(Job((1, 2), labels=(0,)))
    output.outputs[0].logprobs[0][0].logprob = math.nan
    with pytest.raises(EngineError, match="not a number"):
        Known().add(Job((1, 2), labels=(0,)), output)


def test_more_labels_than_vllm_takes_are_asked_for_in_several_requests():
    asked = list(jobs((7, 8), [(label,) for label in range(300)], block_size=16))
    assert [len(job.labels) for job in asked] == [128, 128, 44]
    assert {label for job in asked for label in job.labels} == set(range(300))


def test_letters_after_a_line_break_are_asked_for_at_two_places():
    """As a chat template's last line makes of a choice; four requests of their own would be twice the work."""
    asked = list(jobs((7, 8, 9), [(1, letter) for letter in (2, 3, 4, 5)], block_size=16))
    assert [(job.after, job.labels, job.is_span) for job in asked] == [((), (1,), False), ((1,), (2, 3, 4, 5), False)]
    whole = list(jobs((7, 8, 9), [(1, 2, 3, letter) for letter in (4, 5, 6)], block_size=2))
    assert [job.is_span for job in whole].count(True) == 3, "as many places as texts, and one more"


def test_a_long_text_is_asked_for_in_one_request_at_once():
    """Windows of a perplexity share a context of one token, and nothing else."""
    windows = [tuple(range(start, start + 30_000)) for start in range(4)]
    tracemalloc.start()
    asked = list(jobs((7,), windows, block_size=16))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [len(job.after) for job in asked] == [30_000] * 4
    assert peak < 20e6, "memory must be linear in the tokens; all beginnings of all windows took 1 GB"
