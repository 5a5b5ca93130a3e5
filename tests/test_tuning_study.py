"""The study of orders: every arm is made as it says, and a study that was stopped ends in the same records."""

import dataclasses
import json

import pytest
import torch

from lib.export import compressed_tensors
from lib.finetuning import orders, presets, study
from lib.quantized import low_rank_linear
from lib.report import tuning_tables
from tests import tiny


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A preset that takes seconds: a tiny model, short conversations, two steps a training."""
    home = tmp_path_factory.mktemp("study é")
    tiny.save(home / "model", tiny.llama().to(torch.bfloat16))
    rows = [
        {"prompt": "abc"[place % 3] * (place % 7 + 1), "completion": "yes no"[place % 2 * 3 :][:3]}
        for place in range(60)
    ]
    (home / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return presets.Preset(
        str(home / "model"), str(home / "talks.jsonl"), 64, 2, 1e-6, (1.0, 3.0), (4,), 32, 4, 2, 6, 4, "packaged", 1,
        (0, 1, 2), (("packaged_facts", 6),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    return folder, study.run(small, folder)


def same(one, other):
    """Records without what a clock says."""
    return [{key: value for key, value in each.items() if key != "making_seconds"} for each in one] == [
        {key: value for key, value in each.items() if key != "making_seconds"} for each in other
    ]


@pytest.mark.long
def test_every_arm_is_recorded_once_a_seed(small, done):
    folder, records = done
    named = {(each["arm"], each["bits"], each["seed"]) for each in records}
    assert named == set(study.models_of(small)) and len(records) == 17
    by_arm = {each["arm"]: each for each in records if each["seed"] == 0}
    assert by_arm["original"]["kl"] == pytest.approx(0, abs=1e-6)
    sizes = {arm: each["bytes"] for arm, each in by_arm.items()}
    assert sizes["scales"] == sizes["compressed"] == sizes["tune, compress"] == sizes["adapters, back"]
    assert sizes["compressed"] < sizes["adapters, beside"]
    assert all(each["steps"] == 2 for each in records if "steps" in each)
    assert len({each["bits_per_byte"] for each in records}) > 10  # arms and seeds differ
    assert all(len(each["tasks"]["packaged_facts"]) == 6 for each in records)
    assert set(json.loads((folder / study.PACE).read_text())) == {"lora-16", "scales-4", "qlora-4"}


@pytest.mark.long
def test_an_arm_is_what_it_says(small, done):
    folder, _ = done
    material = orders.Material(small, folder)
    start, learned = material.compressed(4), {}
    for arm, way in orders.TUNED.items():
        each = orders.Training(
            way, 16 if way == "lora" else 4, 1, study.best_rate(small, folder, way, 16 if way == "lora" else 4)
        )
        learned[arm] = orders.train(material, each, 2)
    codes = {name: part.codes for name, part in start.named_modules() if hasattr(part, "codes")}
    made = {arm: orders.made(material, arm, 4, place) for arm, place in learned.items()}
    for name, each in codes.items():
        assert torch.equal(made["scales"].get_submodule(name).codes, each)
        assert torch.equal(made["adapters, beside"].get_submodule(name).layer.codes, each)
    assert not all(torch.equal(made["adapters, back"].get_submodule(name).codes, each) for name, each in codes.items())
    assert len(low_rank_linear.layers(made["adapters, beside"])) == len(codes)
    assert compressed_tensors.load(learned["scales"])[0].state_dict().keys() == start.state_dict().keys()


@pytest.mark.long
def test_a_study_that_was_stopped_goes_on_and_ends_in_the_same_records(small, done, tmp_path):
    folder, records = done
    (tmp_path / study.PACE).write_text((folder / study.PACE).read_text())  # how many steps the minutes are
    count = 0
    while len(found := study.run(small, tmp_path, hours=0)) < len(records):
        count += 1
        assert count < 60
    assert count > 15 and same(found, records)
    with pytest.raises(ValueError, match=r"holds another job .*rank=4 there, 8 here"):
        study.run(dataclasses.replace(small, rank=8), tmp_path)


@pytest.mark.long
def test_the_tables_say_what_the_records_say(small, done, monkeypatch):
    folder, records = done
    monkeypatch.setitem(presets.PRESETS, "small", small)
    found = tuning_tables.of("small", folder)
    table = found.table("models")
    assert list(table.index[:3]) == ["original, 16 bits", "tuned, 16 bits", "compressed, 4 bits"]
    scales = [each["bits_per_byte"] for each in records if each["arm"] == "scales"]
    assert found.numbers("models")[0]["bits per byte"]["scales, 4 bits"] == pytest.approx(sum(scales) / 3, abs=1e-3)
    pairs = found.numbers("pairs")[0]
    plain = next(each["bits_per_byte"] for each in records if each["arm"] == "compressed")
    name = "scales against compressed, 4 bits: bits per byte"
    assert pairs["gain"][name] == pytest.approx(plain - sum(scales) / 3, abs=1e-3) and len(pairs) == 14
    tasks = found.numbers("tasks")[0]
    right = [sum(each["tasks"]["packaged_facts"]) for arm in ("scales", "compressed") for each in records
             if each["arm"] == arm]  # fmt: skip
    gain = 100 * (sum(right[:3]) / 3 - right[3]) / 6
    assert tasks["gain, points"]["scales against compressed, 4 bits: packaged_facts"] == pytest.approx(gain, abs=0.06)
    assert len(tasks) == 7 and found.numbers("models")[0]["packaged_facts, %"].notna().all()
    assert list(found.table("rates").index) == ["lora, 16 bits", "scales, 4 bits", "qlora, 4 bits"]
    with pytest.raises(ValueError, match="holds no arm with all seeds"):
        tuning_tables.tables(small, folder / "models")


def test_unknown_presets_and_too_few_seeds_are_refused(small, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"'evenin' is unknown; .*did you mean 'evening'"):
        study.run("evenin", tmp_path)
    with pytest.raises(ValueError, match="intervals over seeds need 3"):
        study.run(dataclasses.replace(small, seeds=(0, 1)), tmp_path)
    assert study.main(["evenin", "--folder", str(tmp_path)]) == 2 and "did you mean" in capsys.readouterr().err
    assert tuning_tables.main(["evenin", "--folder", str(tmp_path)]) == 2
