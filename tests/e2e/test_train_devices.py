"""Several devices train one network: Lightning starts the command again for each."""

import json
import subprocess
import sys

import pytest

from samkit.phantoms import write_phantoms


@pytest.mark.slow
def test_two_processes_share_the_cases_and_write_one_run(tmp_path):
    write_phantoms(str(tmp_path / "data"), cases=5, seed=0, size=40, long_share=0.0)
    command = [
        sys.executable, "-m", "samkit.training.cli", "--method", "m-sam", "--data", str(tmp_path / "data"),
        "--out", str(tmp_path / "run"), "--preset", "tiny", "--devices", "2", "--threads", "1", "--quiet",
        "--set", "epochs=1",
    ]  # fmt: skip

    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert (facts["state"], facts["steps"]) == ("finished", 1)  # four cases, two processes, batches of two
    assert (tmp_path / "run/best.safetensors").is_file()
