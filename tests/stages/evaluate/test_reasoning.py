"""Where a model's thoughts end and its answer begins."""

from types import SimpleNamespace

import pytest

from stages.evaluate.answers import CUT_OFF, FINISHED, Answer, Response, response_of
from stages.evaluate.reasoning import AUTO, KNOWN_TAGS, Parts, Reasoning, find_reasoning, parted

THINK = Reasoning(start="<think>", end="</think>")
UNKNOWN_START = Reasoning(start=None, end="=====")


def tokenizer(template="", *tokens):
    return SimpleNamespace(get_chat_template=lambda: template, get_vocab=lambda: dict.fromkeys(tokens, 1))


@pytest.mark.parametrize(("start", "end"), KNOWN_TAGS)
def test_the_tags_of_a_chat_model_are_found(start, end):
    assert find_reasoning(AUTO, tokenizer("", end)) == Reasoning(start=start, end=end)
    assert find_reasoning(AUTO, tokenizer(f"{{{{ '{start}' }}}}")) == Reasoning(start=start, end=end)
    assert find_reasoning(end, tokenizer()) == Reasoning(start=start, end=end)
    assert find_reasoning(None, tokenizer("", end)) is None
    assert find_reasoning(AUTO, tokenizer("{{ messages }}", "think")) is None
    assert find_reasoning("=====", tokenizer()) == UNKNOWN_START


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [
        ("<user>Why?<assistant>\n", ""),
        ("<user>Why?<assistant>\n<think>\n", "<think>"),
        ("<user>Why?<assistant>\n<think>\n\n</think>\n\n", None),
        ("<assistant><think>x</think>y<user>Why?<assistant>", ""),
    ],
)
def test_a_prompt_has_begun_thoughts_ended_them_or_neither(prompt, opening):
    assert THINK.opening(prompt) == opening


@pytest.mark.parametrize(
    ("text", "opening", "was_cut", "parts"),
    [
        ("<think>\none\n\n</think>\n\n16", "", False, Parts("one", "16")),
        ("one</think>16", "<think>", False, Parts("one", "16")),
        ("a</think>b</think>16", "<think>", False, Parts("a</think>b", "16")),
        ("<think>\none", "", True, Parts("<think>\none", None)),
        ("one", "<think>", True, Parts("one", None)),
        ("one", "<think>", False, Parts("one", None)),
        ("16", "", False, Parts(None, "16")),
        ("16", "", True, Parts(None, "16")),
        ("one</think>16", None, False, Parts(None, "one</think>16")),
    ],
)
def test_thoughts_are_parted_from_the_answer(text, opening, was_cut, parts):
    assert parted(text, opening, was_cut, THINK) == parts


def test_where_no_beginning_is_known_a_text_that_was_cut_is_thoughts():
    assert parted("one ===== 16", "", False, UNKNOWN_START) == Parts("one", "16")
    assert parted("one", "", True, UNKNOWN_START) == Parts("one", None)
    assert parted("16", "", False, UNKNOWN_START) == Parts(None, "16")


def test_stop_strings_see_the_answer_alone():
    answer = Answer(
        text="<think>Q: one\n\n</think>16\n\nQ: next", finish_reason=CUT_OFF, stop=("Q:", "\n\n"), opening=""
    )
    assert response_of(answer, THINK) == Response(
        value="16", thoughts="Q: one", stopped_by="\n\n", is_cut=False, is_cut_in_thoughts=False
    )


def test_an_answer_that_never_came_is_empty_and_counted():
    answer = Answer(text="<think>one", finish_reason=CUT_OFF, opening="")
    assert response_of(answer, THINK) == Response(value="", thoughts="<think>one", is_cut=True, is_cut_in_thoughts=True)


def test_what_an_engine_stopped_at_is_told_and_what_ended_by_itself_is_not():
    assert (
        response_of(Answer(text="16", finish_reason=FINISHED, stopped_by="\n", stop=("\n",)), None).stopped_by == "\n"
    )
    found = response_of(Answer(text="16", finish_reason=FINISHED, stop=("\n",)), None)
    assert (found.stopped_by, found.is_cut) == (None, False)
    assert response_of(Answer(logprob=-1.0, is_greedy=True), None) == Response(value=(-1.0, True))
