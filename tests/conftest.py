"""Tests keep records, figures and checkpoints of their own, so that they never touch a user's."""

import os
import shutil
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / "data" / "cache" / "tests"

os.environ["THIMBLE_HOME"] = str(HOME)
os.environ["THIMBLE_QUIET"] = "1"
os.environ.pop("THIMBLE_RUN_ID", None)
# the checkpoint of the packaged model stays: converting it takes 20 s
shutil.rmtree(HOME / "data", ignore_errors=True)
HOME.mkdir(parents=True, exist_ok=True)
