"""Speeds of runtimes: what is timed, what is kept, and the figure; the runtime here is one that answers at once."""

import json

import numpy
import pytest

from lib.export import reader_script
from lib.peers import export_speed
from lib.report import exports


class Counting:
    """Its next token is always one more than the last."""

    read_so_far = ()

    def restart(self):
        self.read_so_far = ()

    def read(self, ids, start):
        assert start == len(self.read_so_far)
        self.read_so_far += tuple(ids)
        return numpy.eye(32, dtype=numpy.float32)[[each + 1 for each in ids]]


def test_prompt_and_answer_are_timed_apart():
    found = reader_script.timed(Counting, [3, 4, 5], 4)
    assert found["answer"] == [6, 7, 8, 9] and len(found["decode"]) == 4
    assert min(found["load"], found["prefill"], *found["decode"]) >= 0 and found["peak_bytes"] > 1 << 20


def test_a_text_that_grew_is_read_on():
    forward = reader_script._whole(Counting())
    assert forward([1, 2]).argmax(1).tolist() == [2, 3]
    assert forward([1, 2, 7]).argmax(1).tolist() == [2, 3, 8]
    assert forward([1, 2, 7]).argmax(1).tolist() == [2, 3, 8]  # asked again, it begins anew
    assert reader_script.continued(forward, [4], 3) == [5, 6, 7]


def test_rounds_are_kept_and_summed_up(tmp_path, monkeypatch, capsys):
    arms = [export_speed.Arm("vier bits", name, "m", "float32", tmp_path, 0.1, 10) for name in ("a, fast", "b, fast")]
    seen = []

    def measure(arm, prompt, answer, threads):
        seen.append(arm.name)
        if arm.name == "b, fast":
            raise RuntimeError("it ended with 9")
        speed = float(len(seen))
        return {"load_seconds": 1.0, "prefill": speed, "decode": speed, "peak_bytes": 5}

    monkeypatch.setattr(export_speed, "measure", measure)
    for _ in range(2):  # the second time, what failed alone is tried again
        export_speed.rounds(arms, tmp_path, [1], answer=1, count=2, threads=1)
    assert seen == ["a, fast", "b, fast"] * 2 + ["b, fast"] * 2
    assert "b, fast, round 2: it ended with 9" in capsys.readouterr().err
    (row,) = export_speed.table(arms, tmp_path)
    assert row["decode"] == 2 and row["decode from, to"] == (1, 3) and row["rounds"] == 2 and row["kl"] == 0.1
    (tmp_path / "speed.json").write_text(json.dumps({"rows": [row]}))
    assert exports.main([str(tmp_path)]) == 0 and (tmp_path / "speed.png").stat().st_size > 1000
    assert exports.main([str(tmp_path / "none")]) == 2
    assert {"a, fast"} == {each.get_text() for each in exports.quality_by_speed([row]).axes[0].get_legend().texts}
    assert exports.quality_by_speed([]).axes


@pytest.mark.parametrize("given", [["--formats", "pickle"], []])
def test_the_command_line_names_what_it_wants(given, capsys):
    with pytest.raises(SystemExit):
        export_speed.main(["somewhere", *given])
    assert "--folder" in capsys.readouterr().err
