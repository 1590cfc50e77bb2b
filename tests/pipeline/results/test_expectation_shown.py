"""What an estimate rests on, in as many lines as there are different things to say."""

from collections import Counter

from pipeline.planning.estimate import Grounds
from pipeline.results.expectation_shown import grounds_lines


def test_many_models_scaled_from_one_are_one_line() -> None:
    scaled = Counter(
        {
            ("fetch_model", 8.03e9, 70_600_000_000): 1,
            ("fetch_model", 8.03e9, 135_000_000): 2,
            ("fetch_model", 8.03e9, 405_000_000_000): 2,
            ("gate", 8.03e9, 135_000_000): 3,
            ("answer", 0.135e9, 8_030_000_000): 4,
        }
    )
    assert list(grounds_lines(Grounds(scaled=scaled))) == [
        "scaled from 8.03 to 0.135–405 (3 sizes) billion parameters: fetch_model, gate",
        "scaled from 0.135 to 8.03 billion parameters: answer",
    ]
