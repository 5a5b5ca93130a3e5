"""Texts as prompts and stop strings, by both routes to packed weights: `pack_` of a model, `load` of its folder."""

import json

import pytest
from tokenizers import Tokenizer, processors

from lib import runtime
from lib.decoding.stops import Stops, text_of
from lib.export import compressed_tensors
from lib.runtime import checkpoint
from tests import packed, tiny


def beginning(tokenizer):
    """The tokenizer with a BOS token before each text, as those of Llama models have it."""
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = packed.quantize_(tiny.llama())
    return compressed_tensors.save(model, beginning(tiny.tokenizer()), tmp_path_factory.mktemp("bos") / "saved")


@pytest.fixture(scope="module", params=["packed", "loaded"])
def model(request, folder):
    if request.param == "loaded":
        return runtime.load(folder)
    made, _ = compressed_tensors.load(folder)
    return runtime.pack_(made)


def test_a_text_is_a_prompt_with_the_tokens_that_transformers_gives_it(model):
    ids = beginning(tiny.tokenizer()).encode("abc")
    assert ids == [0, 97, 98, 99]
    assert model.tokenizer.encode("abc") == ids and model.tokenizer.encode("abc", add_special_tokens=False) == ids[1:]
    found = runtime.generate(model, "abc", new_tokens=6, eos=())
    assert found == runtime.generate(model, [ids], new_tokens=6, eos=())
    assert found != runtime.generate(model, [ids[1:]], new_tokens=6, eos=())


def test_stop_strings_end_an_answer(model):
    whole = runtime.generate(model, "abc", new_tokens=20, eos=())[0]
    assert whole.reason == "length" and whole.text == tiny.tokenizer().decode(whole.token_ids, skip_special_tokens=True)
    letters = [place for place, token in enumerate(whole.token_ids) if 32 < token < 127]
    stop = chr(whole.token_ids[letters[0]])
    found = runtime.generate(model, "abc", new_tokens=20, eos=(), stop=stop)[0]
    assert found.reason == "stop" and found.token_ids == whole.token_ids[: letters[0] + 1]
    assert found.text == whole.text[: whole.text.index(stop)]
    stops = Stops(["äu"], model.tokenizer)
    ids = list("Häuser".encode())
    assert not stops.reached(ids[:2]) and stops.reached(ids[:4]) and stops.cut(text_of(model.tokenizer, ids)) == "H"


def test_spaces_of_a_loaded_tokenizers_text_stay(folder):
    tokenizer = checkpoint.Tokenizer(folder)
    ids, theirs = tokenizer.encode("a , b ."), beginning(tiny.tokenizer())
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a , b ."
    for clean_up in (True, False, None):  # byte-pair encodings take no spaces out, in transformers either
        for skip in (True, False):
            given = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean_up}
            assert tokenizer.decode(ids, **given) == theirs.decode(ids, **given)


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("adds", [True, False, None])
@pytest.mark.parametrize("processor", ["none", "empty", "bos"])
def test_a_folders_tokenizer_encodes_as_transformers_does(adds, processor, tmp_path):
    from transformers import AutoTokenizer

    made = beginning(tiny.tokenizer()) if processor == "bos" else tiny.tokenizer()
    made.save_pretrained(tmp_path)
    if adds is not None:
        edited(tmp_path / "tokenizer_config.json", add_bos_token=adds)
    core = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    core.enable_truncation(4)
    core.enable_padding(length=9)
    core.save(str(tmp_path / "tokenizer.json"))
    if processor == "none":
        edited(tmp_path / "tokenizer.json", post_processor=None)
    wanted = AutoTokenizer.from_pretrained(tmp_path).encode("abcdef")
    assert len(wanted) in (6, 7)
    assert checkpoint.Tokenizer(tmp_path).encode("abcdef") == wanted


@pytest.mark.parametrize("bits", [1, 0, 9, 4.5, "8", True])
def test_bits_of_the_embedding_are_checked_by_both_routes(bits, folder):
    with pytest.raises(ValueError, match=r"embedding_bits=.*choose 2 to 8, or None"):
        runtime.load(folder, embedding_bits=bits)
    with pytest.raises(ValueError, match=r"embedding_bits=.*choose 2 to 8, or None"):
        runtime.pack_(tiny.llama(), embedding_bits=bits)
