"""The checks of a gate read back."""

import pytest

from stages.errors import DataError
from stages.gate.artifact import CHECKS, Check, read_checks, write_checks


def test_checks_read_back(tmp_path):
    checks = [Check("model_loads", True), Check("mean_kl", None, 0.01, None, "nats\nper token")]
    write_checks(tmp_path, checks)
    assert read_checks(tmp_path) == checks


@pytest.mark.parametrize("text", ["", "{}", '[{"name": "mean_kl"}]', '[{"name": "mean_kl", "passed": "yes"}]'])
def test_a_damaged_gate_is_named(tmp_path, text):
    (tmp_path / CHECKS).write_text(text)
    with pytest.raises(DataError, match=r"gate.json cannot be read.*delete it and run again"):
        read_checks(tmp_path)
