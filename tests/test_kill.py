"""kill -9 in the middle of training, for every script."""

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import ROOT
from eval import Run, checkpoint

DIGITS = ["--data", "digits", "--limit", "300", "--batch-size", "32"]
RUNS = {
    "cyclevae": DIGITS,
    "mathieu": DIGITS,
    "vae": [*DIGITS, "--fid", "none"],
    "vaegan": [*DIGITS, "--width", "20", "--fid", "none"],
    "flowvae_gan": [*DIGITS, "--width", "4", "--fid", "none"],
    "dann moons": ["--points", "20", "--hidden", "4"],
    "dann images": "--task images --source digits --target digitsm --limit 200".split(),
}


@pytest.mark.parametrize("name", RUNS)
def test_kill_in_mid_epoch_loses_that_epoch_only(name, monkeypatch, tmp_path):
    script, out = name.split()[0], str(tmp_path / "run")
    flags = [*RUNS[name], "--device", "cpu", "--data-dir", str(tmp_path), "--out", out]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / f"{script}.py"), *flags, "--epochs", "2000"],
        stdout=subprocess.DEVNULL,
    )
    log = tmp_path / "run" / "log.csv"
    deadline = time.time() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 3) and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = checkpoint(tmp_path / "run" / "last.pt", script)["epoch"]
    assert 2 <= done < 2000  # the log's row comes before the checkpoint
    seen = []
    monkeypatch.setattr(Run, "save", lambda run, *_, **__: seen.append(len(run.history)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(script).main(["--resume", "--out", out])
    assert seen == [done + 1]  # it goes on with the epoch that was lost
