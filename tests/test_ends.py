"""End tokens: a folder's, a loaded model's and a packed model's are those at which transformers' `generate` ends."""

import json

import pytest
from transformers import AutoModelForCausalLM

from lib import runtime
from lib.decoding import ends
from lib.export import compressed_tensors
from lib.runtime import engine
from tests import packed, tiny

ABSENT = object()
CASES = {
    "list beside another": ({"eos_token_id": [3, 5]}, 7),
    "number beside another": ({"eos_token_id": 3}, 7),
    "settings without one": ({"do_sample": False}, 7),
    "settings with none": ({"eos_token_id": None}, 7),
    "settings with an empty list": ({"eos_token_id": []}, 7),
    "no settings, config": (ABSENT, 7),
    "no settings, config with a list": (ABSENT, [7, 9]),
    "no settings, config with none": (ABSENT, None),
    "no settings, config without one": (ABSENT, ABSENT),
}
WANTED = [(3, 5), (3,), (), (), (), (7,), (7, 9), (), (), (7,)]


def written(folder, settings, named):
    """Give a saved folder other generation settings and another end token in config.json."""
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": named}
    config = {key: value for key, value in config.items() if value is not ABSENT}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").unlink(missing_ok=True)
    path = folder / "generation_config.json"
    path.unlink(missing_ok=True)
    if settings is not ABSENT:
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return folder


@pytest.mark.parametrize("case, wanted", zip(CASES, WANTED))
def test_every_way_in_ends_where_transformers_ends(case, wanted, tmp_path):
    folder = written(tiny.save(tmp_path / "plain"), *CASES[case])
    model = AutoModelForCausalLM.from_pretrained(folder)
    theirs = model.generation_config.eos_token_id
    assert wanted == (tuple(theirs) if isinstance(theirs, list) else () if theirs is None else (theirs,))
    assert ends.of_folder(folder) == ends.of_model(model) == wanted
    assert runtime.load(folder).stops == engine.weights_of(runtime.pack_(model)).stops == wanted


@pytest.mark.parametrize("case, wanted", [*zip(CASES, WANTED)][:-1])
def test_packed_folders_have_the_same_rule(case, wanted, tmp_path):
    saved = compressed_tensors.save(packed.quantize_(tiny.llama()), tiny.tokenizer(), tmp_path / "saved")
    folder = written(saved, *CASES[case])
    model, _ = compressed_tensors.load(folder)
    assert ends.of_model(model) == runtime.load(folder).stops == wanted


def test_tasks_also_end_at_the_tokenizers_own():
    class Tokenizer:
        eos_token_id = 2

    assert ends.of_task((3, 5), Tokenizer()) == {2, 3, 5}
    Tokenizer.eos_token_id = None
    assert ends.of_task((), Tokenizer()) == frozenset()


@pytest.mark.parametrize("named", ["2", [1, 2.5], True, ["</s>"]])
def test_what_is_no_token_id_is_refused(named):
    with pytest.raises(ValueError, match=r"eos_token_id=.*a token id, a list of them or null"):
        ends.ids(named)
