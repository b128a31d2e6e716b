"""What the tests share: the folders, main() as the command line runs it, the smoke runs."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def data_dir():
    """The folder with the real data sets; the test is skipped where there is none."""
    folder = os.environ.get("DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DATA_DIR does not name a folder with the real data sets")
    return folder


def need(data_dir, *names):
    """Skips the test if a set is not in the folder."""
    from data import SETS, DataError, find_files

    for name in names:
        try:
            find_files(SETS[name], Path(data_dir), fetch=False)
        except DataError:
            pytest.skip(f"DATA_DIR does not hold {name}")


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """smoke("dann images") -> (folder, output) of the --smoke run from the command line, offline
    and with an empty data folder; every test sees the same run and leaves it as it is."""

    @functools.cache
    def run(name):
        script, *task = name.split()
        base = tmp_path_factory.mktemp("smoke")
        argv = [f"{script}.py", "--smoke", *(["--task", *task] if task else []), "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, *argv, "--out", base / "run", "--data-dir", base / "data"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return base / "run", done.stdout

    return run


def run_main(script, *argv):
    """The exit status of a script's main(argv) as the command line runs it."""
    from eval import run_command

    try:
        run_command(lambda: script.main([str(word) for word in argv]))
    except SystemExit as stop:
        return stop.code
    return 0


def snapshot(folder):
    """Every file below a folder with its bytes, every folder below it with None."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def same(a, b):
    """Two checkpoints or results hold the same, times and what was typed aside."""
    leave = ("seconds", "images_per_second", "threads", "args", "command")
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(
            same(a[key], b[key]) for key in a if key not in leave and "_seconds" not in str(key)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def similar(a, b, tolerance):
    """Two results hold the same, numbers up to a relative tolerance; times aside."""
    leave = ("seconds", "threads", "args", "command")
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(
            similar(a[key], b[key], tolerance) for key in a if key not in leave
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(similar(*pair, tolerance) for pair in zip(a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= tolerance * max(1, abs(a))
    return a == b
