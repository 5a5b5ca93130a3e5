"""Trainers that are compared take the same steps; what stands in the table is what was measured."""

import pytest

from lib.peers import training_speed
from tests.test_from_scratch import small

NANOGPT = """
import sys
given = dict(each[2:].split("=") for each in sys.argv[1:])
assert given["n_embd"] == "64" and given["block_size"] == "32" and given["dtype"] == "float32"
import pickle
assert pickle.load(open(f"data/{given['dataset']}/meta.pkl", "rb")) == {"vocab_size": 320}
for step in range(int(given["max_iters"]) + 1):
    print(f"iter {step}: loss 5.7, time {100 * (step + 1):.2f}ms, mfu -100.00%")
"""


def test_each_arm_takes_the_steps_asked_for(tmp_path):
    given = training_speed.Setting(small(batch=4), 2, False, steps=3)
    assert len(training_speed.ours(given)) == len(training_speed.transformers(given)) == 2
    for name in ("model.py", "configurator.py"):
        (tmp_path / name).write_text("")
    with pytest.raises(FileNotFoundError, match=r"has no train\.py; a copy of nanoGPT is needed"):
        training_speed.nanogpt(given, tmp_path)
    (tmp_path / "train.py").write_text(NANOGPT)
    assert training_speed.nanogpt(given, tmp_path) == pytest.approx([0.2, 0.3, 0.4])
    (tmp_path / "train.py").write_text("raise ValueError('no text')")
    with pytest.raises(RuntimeError, match="no text"):
        training_speed.nanogpt(given, tmp_path)


def test_ratios_are_taken_within_rounds():
    found = training_speed.in_turns({"ours": lambda: [1.0, 2.0, 9.0], "theirs": lambda: [4.0]}, 2)
    assert found == {"ours": [[1.0, 2.0, 9.0]] * 2, "theirs": [[4.0]] * 2}
    found["theirs"][1] = [6.0]
    lines = training_speed.table(found, 1000, "theirs")
    assert "500 tokens/s" in lines[0] and lines[0].endswith("2.50 x theirs") and lines[1].endswith("1.00 x theirs")
