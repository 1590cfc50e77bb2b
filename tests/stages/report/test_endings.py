"""How answers ended, in words."""

from dataclasses import asdict

from stages.compare.artifact import Numbers
from stages.report.endings import endings


def said(**numbers):
    return list(endings(asdict(Numbers(**{"n": 10, "num_missing": 0} | numbers))))


def test_nothing_is_said_of_answers_that_ended_by_themselves():
    assert said(num_truncated=0, num_cut=0, num_stopped=1, base_n=10, base_num_missing=0, base_num_cut=0) == []
    assert said() == []


def test_cut_answers_are_counted_beside_the_base_s_with_the_score_of_the_others():
    (line,) = said(
        num_cut=6, num_cut_in_thoughts=4, finished_score=0.75,
        base_n=9, base_num_missing=1, base_num_cut=0, base_num_cut_in_thoughts=0, base_finished_score=0.5,
    )  # fmt: skip
    assert line == (
        "answers cut at the limit of tokens: 6 of 10 (60 %), base 0 of 10 (0 %) (in its thoughts 4 of 10 (40 %), base "
        "0 of 10 (0 %)); score of those that ended 0.7500, base 0.5000"
    )


def test_of_a_base_that_is_cut_alone_it_is_said_too():
    (line,) = said(num_cut=0, finished_score=1.0, base_n=10, base_num_missing=0, base_num_cut=2)
    assert line.startswith("answers cut at the limit of tokens: 0 of 10 (0 %), base 2 of 10 (20 %); ")
    assert line.endswith("1.0000, base –")


def test_where_many_turns_end_at_a_stop_string_it_is_said():
    assert said(num_stopped=2) == [
        "a chat model's answers ended at a stop string, not at the end of its turn: 2 of 10 (20 %)"
    ]
    assert said(num_stopped=1) == []


def test_missing_and_truncated_documents_come_first():
    assert said(num_missing=2, num_truncated=1, num_cut=1)[0] == "2 documents missing, 1 cut to fit"


def test_where_thoughts_are_looked_for_and_never_found_it_is_said():
    (line,) = said(num_thinking=0, base_n=10, base_num_missing=0, base_num_thinking=0)
    assert line.startswith("thoughts were looked for and none found") and line.endswith(
        "0 of 10 (0 %), base 0 of 10 (0 %)"
    )
    assert said(num_thinking=3) == []
