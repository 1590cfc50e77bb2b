"""An engine whose kernels are a hundred times too slow is refused when it opens, not after a day."""

import json
import time
from pathlib import Path

import pytest

from stages.checkpoints.shape import ModelShape
from stages.errors import ConfigError
from stages.evaluate.engines import pace
from stages.evaluate.engines.pace import check_pace, expected_s

CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pace, "NOISE_S", 0.05)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_a_slow_kernel_is_refused_with_what_to_do(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "expected_s", lambda *_: 0.002)
    with pytest.raises(ConfigError, match=r"a step of 4 tokens took 0\.\d s.*0\.002 s.*choose another engine\.dtype"):
        check_pace(checkpoint, "float32", lambda _: time.sleep(0.3))


def test_what_takes_its_time_and_no_more_is_let_through(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "expected_s", lambda *_: 0.01)
    asked: list[int] = []
    check_pace(checkpoint, "float32", lambda num_tokens: (asked.append(num_tokens), time.sleep(0.3)))
    assert asked == [pace.NUM_TOKENS]


def test_the_noise_of_a_machine_refuses_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "expected_s", lambda *_: 1e-9)
    monkeypatch.setattr(pace, "NOISE_S", 5.0)
    check_pace(checkpoint, "float32", lambda _: time.sleep(0.1))


@pytest.mark.dear
def test_a_larger_model_is_expected_to_take_longer(checkpoint: Path) -> None:
    small = ModelShape.from_config(checkpoint / "config.json")
    (checkpoint / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 2000}))
    large = ModelShape.from_config(checkpoint / "config.json")
    assert 0 < expected_s(small, "bfloat16") < expected_s(large, "bfloat16")


def test_nothing_is_expected_of_an_architecture_that_is_not_known(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{}")
    check_pace(checkpoint, "float32", lambda _: time.sleep(0.1))


def test_a_first_step_that_prepares_refuses_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "expected_s", lambda *_: 0.001)
    waits = iter([0.5, 0.001])
    check_pace(checkpoint, "float32", lambda _: time.sleep(next(waits)))
