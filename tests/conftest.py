"""Tests import the scripts from the folder above and find real data in the folder DATA_DIR."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def data_dir():
    """The folder with the real data sets; the test is skipped where there is none."""
    folder = os.environ.get("DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DATA_DIR does not name a folder with the real data sets")
    return folder
