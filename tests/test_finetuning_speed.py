"""Fine-tunings that are compared take the same steps; peaks are measured and predicted of the same trainings."""

import json

import pandas as pd
import pytest
import torch

from lib.finetuning import memory, memory_check
from lib.peers import finetuning_speed
from lib.report import token_masks
from lib.trainers.minibatch import IGNORED
from tests import tiny


@pytest.mark.long
def test_each_arm_takes_the_steps_asked_for(tmp_path, warm, monkeypatch):
    given = finetuning_speed.Setting(
        str(tiny.save(tmp_path / "model", tiny.llama(pad_token_id=0))), "float32", 2, 16, 4, steps=3
    )
    for name in finetuning_speed.ARMS:
        found = finetuning_speed.arm(name, given)
        assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0 and found["peak"] >= 0
    monkeypatch.setattr(finetuning_speed, "arm", None)
    found, worked, peaks = finetuning_speed.compare(given, 1)  # in processes of their own
    assert all(len(each[name][0]) == 2 for each in (found, worked) for name in finetuning_speed.ARMS)
    assert all(len(peaks[name]) == 1 for name in finetuning_speed.ARMS)


def test_what_is_published_is_tokens_by_the_second_and_times_of_the_same_round():
    given = finetuning_speed.Setting(batch=2, length=50)
    clock = {name: [[2.0, 4.0, 4.0], [8.0]] for name in finetuning_speed.ARMS} | {"ours, LoRA": [[2.0], [2.0]]}
    worked = {name: [[10.0], [20.0]] for name in finetuning_speed.ARMS} | {"ours, LoRA": [[5.0], [8.0]]}
    peaks = {name: [3e9, 2e9] for name in finetuning_speed.ARMS}
    found = finetuning_speed.document(given, clock, worked, peaks)
    first, _, last = found["tables"]["speed"]["rows"]
    # 100 tokens in 5 and 8 s; 10 / 5 and 20 / 8 of processor time, 4 / 2 and 8 / 2 by the clock
    assert first == ["ours, LoRA", "16", "12", "20", "2.25", "3.00", "3,000"] and last[4:6] == ["1.00", "1.00"]
    assert "2 rounds in turns" in found["protocol"] and json.dumps(found)


@pytest.mark.long
def test_an_arm_that_fails_is_said(tmp_path, warm):
    given = finetuning_speed.Setting(str(tmp_path / "nothing"))
    with pytest.raises(RuntimeError, match=r"ours, LoRA failed: .*nothing"):
        finetuning_speed.in_process("ours, LoRA", given)


def test_settings_are_measured_and_predicted_alike(tmp_path, monkeypatch):
    config = tiny.llama().config
    asked = {}
    monkeypatch.setattr(memory, "predict", lambda *given, **options: asked.update(options, way=given[1]) or Total)
    for given in memory_check.SETTINGS:
        memory_check.predict(given, config)
        assert (asked["way"], asked["batch"], asked["length"], asked["bits"]) == (*given[:3], given.bits)
    assert len(set(memory_check.SETTINGS)) == 12 and asked["dtype"] == torch.bfloat16
    folder = tiny.save(tmp_path / "model")
    small = memory_check.Setting("lora", 1, 16, "float32")
    assert memory_check.measure(small, str(folder)) >= 0 and str(small) == "lora, 1 x 16, float32"


class Total:
    """What a prediction has."""

    total = 1


def test_the_document_of_a_check_is_what_is_published(tmp_path, monkeypatch):
    folder = str(tiny.save(tmp_path / "model"))
    made = pd.DataFrame({"this model": [1.25, float("nan")], "7B": [1234.0, 160]}, ["full", "LLaMA-Factory says: full"])
    monkeypatch.setattr(memory, "table", lambda config, **sizes: made)
    rows = [{"setting": "lora", "predicted": 2e6, "measured": 1e6, "error": 1.0}]
    found = memory_check.document(rows, folder)
    assert found["tables"]["check"]["rows"] == [["lora", "2", "1", "+100.0%"]] and json.dumps(found)
    assert found["tables"]["methods"]["columns"] == ["", "135M", "7B"]
    assert found["tables"]["methods"]["rows"][1] == ["LLaMA-Factory says: full", "", "160.0"]


@pytest.mark.long
def test_the_table_of_methods_grows_with_the_model():
    table = memory.table(tiny.llama().config, batch=1, length=512)
    assert list(table.index) == [*memory.METHODS, *memory.PUBLISHED] and table.columns[-1] == "70B"
    assert table["70B"]["qlora, 4 bits"] < table["70B"]["lora"] < table["70B"]["full"]
    assert table.loc["LLaMA-Factory says: LoRA"].dropna().tolist() == [16, 32, 160]
    assert (table.loc[list(memory.METHODS)].diff(axis=1).iloc[:, 1:] > 0).all(axis=None)


def test_each_token_of_a_conversation_is_coloured_as_it_is_learned():
    ids = torch.tensor([72, 105, 10, 60, 33])
    row = {"input_ids": ids, "labels": torch.tensor([IGNORED, IGNORED, IGNORED, 60, 33])}
    page = token_masks.coloured(row, tiny.tokenizer(), title="a <row>").data
    assert page.count(token_masks.LEARNED) == 2 and page.count(token_masks.READ) == 3
    assert (
        "a &lt;row&gt;: 2 of 5 tokens are learned" in page and "&lt;" in page and "↵" in page and 'title="105"' in page
    )
