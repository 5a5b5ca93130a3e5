"""Files of a checkpoint that are cut short or are something else: every reader names the file, and says what to do."""

import pytest

from lib import checkpoints, runtime
from lib.decoding import ends, settings
from lib.export import compressed_tensors
from lib.runtime.tokenizer import Tokenizer
from lib.sources import models
from tests import packed, tiny

READERS = (models.load, runtime.load, checkpoints.checkpoint)
BROKEN = {"[]": "not a JSON object but a list", '{"a": ': r"is not JSON \(.*cut short", "\ufeff{}": "is not JSON"}


@pytest.mark.parametrize("name", ["config.json", *checkpoints.READ])
def test_files_that_are_no_json_object_are_named_by_every_reader(tmp_path, name):
    folder = tiny.save(tmp_path / "m")
    small = compressed_tensors.save(packed.quantize_(tiny.llama()), tiny.tokenizer(), tmp_path / "packed")
    (small / "manifest.json").unlink()
    for content, said in BROKEN.items():
        for place in (folder, small):
            (place / name).write_text(content, encoding="utf-8")
        for load in READERS:
            with pytest.raises(ValueError, match=rf"{name} .*{said}.*copy it again"):
                load(folder)
        with pytest.raises(ValueError, match=rf"{name} .*{said}.*copy it again"):
            compressed_tensors.load(small)
        if name not in ("generation_config.json", "chat_template.json"):
            with pytest.raises(ValueError, match=rf"{name} .*{said}.*copy it again"):
                Tokenizer(folder).encode("a")
        if name in ("config.json", "generation_config.json"):
            (folder / "generation_config.json").unlink(missing_ok=name == "config.json")
            (folder / name).write_text(content, encoding="utf-8")
            for read in (ends.of_folder, settings.of_folder):
                with pytest.raises(ValueError, match=rf"{name} .*{said}"):
                    read(folder)


def test_a_tokenizer_without_rules_is_named(tmp_path):
    folder = tiny.save(tmp_path / "m")
    for content in ("{}", '{"model": {"vocab": 3}, "added_tokens": [{"content": []}]}'):
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"m has no usable tokenizer \(.*\); tokenizer\.json must be beside"):
            models.load(str(folder))
        with pytest.raises(ValueError, match=r"m cannot be used without torch: transformers reads no tokenizer there"):
            Tokenizer(folder).encode("a")


@pytest.mark.parametrize("head", [b"[]", b'{"a": {"dtype": "F32", "data_offsets": [0, 4]}}', b'{"a": 3}', b"\xff\xff"])
def test_a_safetensors_header_that_says_nothing_is_named(tmp_path, head):
    folder = tiny.save(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"1234")
    for load in READERS:
        with pytest.raises(ValueError, match=r"model\.safetensors has no readable safetensors header .*copy it again"):
            load(folder)
