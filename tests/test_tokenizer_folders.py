"""The tokenizer without torch gives the ids and texts of transformers' own, over the layouts that folders come in."""

import itertools
import json
import subprocess
import sys

import pytest

from lib import files
from lib.runtime import tokenizer as runtime_tokenizer
from lib.runtime.tokenizer import Tokenizer
from tests import tiny

TEXTS = ["Hello world", " hello  world ", "a\n\tb", "Éa 12 ½", "", "<s>hello</s>", "x <extra> y", "don't <pad>."]
PIECES = ["▁", "▁h", "▁w", "e", "l", "o", "r", "d", "ll", "▁hello", "h", "a", "12", "1", "2", "▁a", "w", "x", "y", "b"]


def legacy_llama(folder, prefix="normalizer", **said):
    """A tokenizer.json as conversions of Llama's SentencePiece model wrote it, and its tokenizer_config.json."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {
        piece: place for place, piece in enumerate([*special, *[f"<0x{b:02X}>" for b in range(256)], *PIECES])
    }
    merges = [("▁", "h"), ("▁", "w"), ("l", "l"), ("1", "2"), ("▁", "a")]
    core = Core(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prefix == "normalizer":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    strip = decoders.Strip(" ", 1, 0)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    core.add_special_tokens(special)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | said))
    return configured(folder, "llama")


def configured(folder, kind):
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "transformers_version": "4.30.0"}))
    return folder


def both(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), Tokenizer(folder)


def equal(folder):
    theirs, ours = both(folder)
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids, (text, special)
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.bos_token, ours.eos_token) == (theirs.bos_token, theirs.eos_token)


SETTINGS = {
    "tokenizer_class": ["LlamaTokenizer", "LlamaTokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast"],
    "prefix": ["normalizer", "first", "never"],
    "ends": [{}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}, {"add_eos_token": True}],
    "legacy": [{}, {"legacy": True}, {"legacy": False, "add_prefix_space": False}],
}


@pytest.mark.parametrize("kind, prefix, ends, legacy", itertools.product(*SETTINGS.values()))
def test_legacy_llama_layouts(tmp_path, kind, prefix, ends, legacy):
    equal(legacy_llama(tmp_path, prefix, tokenizer_class=kind, **ends, **legacy))


MORE = {
    "clean up": {"clean_up_tokenization_spaces": True},
    "tokens in the configuration": {
        "added_tokens_decoder": {
            "279": {"content": "<extra>", "special": False, "lstrip": False, "rstrip": False, "normalized": False,
                    "single_word": False},
            "280": {"content": "<pad>", "special": True, "lstrip": True, "rstrip": False, "normalized": False,
                    "single_word": False},
        },
        "pad_token": "<pad>",
    },
    "named only": {"pad_token": "<pad>", "additional_special_tokens": ["<extra>"]},
    "other ends": {"bos_token": "</s>", "eos_token": "<s>", "add_bos_token": True},
    "no ends": {"bos_token": None, "eos_token": None},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "TokenizersBackend"])
@pytest.mark.parametrize("what", MORE)
def test_what_the_configuration_adds(tmp_path, kind, what):
    equal(legacy_llama(tmp_path, tokenizer_class=kind, **MORE[what]))


def test_tokens_in_files_of_their_own(tmp_path):
    folder = legacy_llama(tmp_path, tokenizer_class="LlamaTokenizer")
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>", "bos_token": "<s>"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": 279, "<pad>": 280}))
    equal(folder)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gpt2"])
@pytest.mark.parametrize(
    "named", ["TokenizersBackend", "PreTrainedTokenizerFast", "GPT2Tokenizer", "Qwen2TokenizerFast"]
)
def test_byte_level_folders_of_other_families(tmp_path, kind, named):
    """Some families' classes split text by a rule of their own, whatever the file says."""
    made = tiny.tokenizer()
    made.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said | {"tokenizer_class": named}))
    equal(configured(tmp_path, kind))


def test_the_file_alone_is_read_where_it_decides(tmp_path, monkeypatch):
    """The packaged model's layout: no process is started."""
    monkeypatch.setattr(runtime_tokenizer, "_asked", lambda folder: pytest.fail("asked"))
    tiny.tokenizer().save_pretrained(tmp_path)
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    first = tiny._symbols()[0]
    rules["added_tokens"] = [
        {"id": 0, "content": first, "special": True, "normalized": False, "lstrip": False, "rstrip": False,
         "single_word": False}
    ]  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    for name in ("special_tokens_map.json", "added_tokens.json"):
        (tmp_path / name).unlink(missing_ok=True)
    equal(configured(tmp_path, "llama"))


_WITHOUT = """
import json, sys
from lib.runtime.tokenizer import Tokenizer
ours = Tokenizer(sys.argv[1])
print(json.dumps([ours.encode(text) for text in json.loads(sys.argv[2])]))
assert not {"torch", "transformers"} & set(sys.modules)
"""


def test_a_process_without_torch_asks_once(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path / "home"))
    folder = legacy_llama(tmp_path / "my model é", tokenizer_class="LlamaTokenizer", add_eos_token=True)
    theirs, _ = both(folder)
    command = [sys.executable, "-c", _WITHOUT, str(folder), json.dumps(TEXTS)]
    said = [subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True, check=True).stdout for _ in "ab"]
    asked, ids = said[0].splitlines()
    assert "asking transformers once" in asked and said[1].splitlines() == [ids]
    assert json.loads(ids) == [theirs.encode(text) for text in TEXTS]


def test_tokenizers_that_do_more_than_rules_are_refused(tmp_path, monkeypatch):
    from transformers import LlamaTokenizer

    folder = legacy_llama(tmp_path, tokenizer_class="LlamaTokenizer", split_special_tokens=True)
    with pytest.raises(
        ValueError, match=r"cannot be used without torch: its tokenizer splits special tokens .* use so"
    ):
        Tokenizer(folder).encode("a")
    legacy_llama(tmp_path, tokenizer_class="LlamaTokenizer")
    monkeypatch.setattr(LlamaTokenizer, "_encode_plus", LlamaTokenizer._encode_plus, raising=False)
    with pytest.raises(ValueError, match=r"LlamaTokenizer, computes by code of its own; use sources\.models\.load"):
        Tokenizer(folder).encode("a")
    monkeypatch.undo()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="transformers reads no tokenizer there"):
        Tokenizer(folder).encode("a")
