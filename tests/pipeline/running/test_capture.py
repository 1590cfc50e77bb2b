"""What is kept of a step's output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.running.capture import captured

URL = "http://user:sesame@host/x?token=sesame"


def test_secrets_are_left_out_of_a_log_however_they_were_printed(tmp_path: Path) -> None:
    log = tmp_path / "step.log"
    log.write_text("an attempt before\n")
    with pytest.raises(ValueError, match="over"), captured(log):
        print("before", URL, "after")
        print(URL, file=sys.stderr)
        os.write(1, f"{URL}\n".encode())
        subprocess.run(["echo", URL], check=True)
        child = subprocess.Popen(["sh", "-c", "read line; echo later"], stdin=subprocess.PIPE)
        raise ValueError("over")
    child.communicate(b"\n")
    kept = log.read_text()
    assert "sesame" not in kept
    assert kept.splitlines()[0] == "an attempt before"
    assert kept.splitlines()[-1] == "later", "who still writes to it goes on at its end"
    assert kept.count("http://***@host/x?token=***") == 4
    assert "before http://***@host/x?token=*** after" in kept
