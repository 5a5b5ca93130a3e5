"""GGUF files: our codes in llama.cpp's blocks, bit for bit, and whole models as other programs open them."""

import itertools
import json

import gguf as package
import numpy
import pytest
import torch

from lib import files
from lib.export import (
    compressed_tensors,
    gguf,
    gguf_blocks,
    gguf_contents,
    gguf_metadata,
    gguf_tensors,
    gguf_tokenizer,
    gguf_vocabulary,
    plain,
)
from lib.pruners import drop
from lib.quantized import grid
from lib.quantizers import embedding
from tests import families, gguf_models, tiny

TEXT = tiny.tokens(2, 24)
WIDE = {"head_dim": 256, "query_pre_attn_scalar": 256}  # which transformers takes for granted


def matrix(bits, *, group_size=32, columns=128, seed=0, **options):
    """A rounded matrix, with zeros far off the middle where zero points may be."""
    weight = torch.randn(6, columns, generator=torch.Generator().manual_seed(seed)) + 0.4
    scale, zero = grid.choose(weight, bits=bits, group_size=group_size, **options)
    codes = grid.quantize(weight, scale, zero, bits=bits)
    size = columns if group_size == -1 else group_size
    return grid.Quantized(codes, scale, zero, bits, size, levels=options.get("levels", "integer"))


def read(found, name):
    """What the `gguf` package makes of the packed matrix."""
    packed = gguf_blocks.pack(found, name)
    return torch.from_numpy(package.quants.dequantize(packed, package.GGMLQuantizationType[name]))


@pytest.mark.parametrize(
    ("bits", "options", "kinds"),
    [
        (2, {}, {"Q4_0"}),
        (3, {"group_size": 64}, {"Q4_0"}),
        (3, {"levels": "half"}, {"Q4_0", "Q4_1", "Q5_0"}),
        (2, {"levels": "balanced"}, {"Q4_0"}),
        (4, {"symmetric": True}, {"Q4_0"}),
        (4, {}, {"Q4_1", "Q5_0"}),
        (5, {"symmetric": True, "group_size": -1}, {"Q5_0"}),
        (5, {"group_size": 64}, {"Q5_1", "Q8_0"}),
        (6, {}, {"Q8_0"}),
        (7, {"group_size": 64}, {"Q8_0"}),
        (8, {"symmetric": True}, {"Q8_0"}),
    ],
)
def test_codes_come_back_bit_for_bit(bits, options, kinds):
    ours = matrix(bits, **options)
    found = gguf_blocks.levels(ours)
    held = gguf_blocks.choose(found)
    assert held.error == 0 and held.kind in kinds
    assert torch.equal(read(found, held.kind), ours.dense())


@pytest.mark.parametrize("name", sorted(gguf_blocks.KINDS))
def test_every_type_is_written_as_it_is_read(name):
    """Whole numbers to the ends of the type, steps of both signs."""
    bits, centre, size = gguf_blocks.KINDS[name]
    draws = numpy.random.default_rng(0)
    low = -(centre or 0)
    whole = draws.integers(low, low + 2**bits, (12, 32), dtype=numpy.int16)
    whole[:, :2] = low, low + 2**bits - 1
    step = (draws.integers(1, 200, 12) / 256).astype(numpy.float32) * draws.choice([-1, 1], 12).astype(numpy.float32)
    found = gguf_blocks.Levels(whole, step, 3)
    assert gguf_blocks.pack(found, name).shape == (3, 4 * size)
    assert torch.equal(read(found, name), torch.from_numpy(step[:, None] * whole).reshape(3, 128))


def test_a_negative_step_holds_one_value_more_on_the_other_side():
    """-7 to 8 is the range of Q4_0 with a negative scale: zero point 7 of four bits."""
    codes = torch.arange(16, dtype=torch.uint8).repeat(2, 4)
    scale, zero = torch.full((2, 2), 0.5, dtype=torch.bfloat16), torch.full((2, 2), 7, dtype=torch.uint8)
    ours = grid.Quantized(codes, scale, zero, 4, 32)
    assert gguf_blocks.choose(gguf_blocks.levels(ours)) == ("Q4_0", 0.0)
    assert torch.equal(read(gguf_blocks.levels(ours), "Q4_0"), ours.dense())


def test_scales_below_half_precision_are_rounded_and_told():
    ours = matrix(4, symmetric=True)
    ours = ours._replace(scale=(ours.scale.float() * 2.0**-22).bfloat16())
    found = gguf_blocks.levels(ours)
    held = gguf_blocks.choose(found)
    assert held.error == float((read(found, held.kind) - ours.dense()).abs().max()) > 0
    far = ours._replace(scale=ours.scale.float().mul(2.0**40).bfloat16())
    assert gguf_blocks.choose(gguf_blocks.levels(far)) is None  # beyond 65504


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 8}, "8-bit codes too far from zero.*'F16' 768 bytes.*'F32' 1,536 bytes with errors up to 0"),
        ({"bits": 4, "group_size": 16}, "groups of 16 columns with different scales"),
        ({"bits": 4, "columns": 80, "group_size": 16}, "80 columns, which 32 does not divide"),
    ],
)
def test_grids_that_no_block_holds_are_refused_with_the_cost(options, said):
    bits = options.pop("bits")
    columns = options.get("columns", 64)
    ours = matrix(bits, **{"columns": columns, **options})
    with pytest.raises(ValueError, match=said):
        gguf._of_codes("layer.weight", ours, None)
    assert gguf._of_codes("layer.weight", ours, "F32") == ("F32", 6 * columns * 4, 0.0)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"bits": 4}),
        ("llama", {"bits": 3, "tie_word_embeddings": False}),
        ("mistral", {"head_dim": 32}),
        ("qwen2", {"bits": 2}),
        ("qwen3", {"bits": 6, "head_dim": 128}),
        ("phi3", {"bits": 4}),
        ("gemma3", {**WIDE, "bits": 4, "layer_types": ["sliding_attention"] * 4}),
    ],
)
def test_families_come_back(tmp_path, family, options):
    """Through transformers' own reader of the format: names, order of rows, norms, heads, tied or not, bit for bit."""
    model = gguf_models.build(family, **options)
    folder = gguf.export(model, model.tokenizer, tmp_path / "mon modèle")
    found = gguf_contents.compare(folder / gguf.FILE, model)
    assert found["exact"] == found["tensors"] > 25 and not found["missing"] + found["left_over"]
    made = reopened(folder)
    assert families.distance(families.logits(made, TEXT), families.logits(model, TEXT)) < 1e-5
    assert json.loads((folder / "manifest.json").read_text())["error"] == 0
    said = gguf_contents.fields(folder / gguf.FILE)
    assert ("output.weight" in gguf_contents.tensors(folder / gguf.FILE)) != model.config.tie_word_embeddings
    assert said["tokenizer.chat_template"] == tiny._TEMPLATE and said["general.name"] == "mon modèle"


def reopened(folder):
    from transformers import AutoModelForCausalLM

    from lib.checkpoints import quiet

    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.FILE, dtype="float32").eval()


def test_a_pruned_model_has_its_own_depth_and_a_rounded_table_stays_one(tmp_path):
    model = drop.drop_blocks_(gguf_models.build("llama", bits=4), [1])
    embedding.quantize_(model, None, bits=8, group_size=32, symmetric=True)
    folder = gguf.export(model, model.tokenizer, tmp_path / "pruned")
    assert gguf_contents.fields(folder / gguf.FILE)["llama.block_count"] == 3
    assert gguf_contents.types(folder / gguf.FILE)["Q8_0"] == 1  # embedding and head are one
    assert families.distance(families.logits(reopened(folder), TEXT), families.logits(model, TEXT)) < 1e-5


def test_plain_weights_take_the_smallest_exact_type():
    model = gguf_models.build("llama").bfloat16()
    assert {part.kind for part in gguf.plan(model) if not part.name.endswith("norm.weight")} <= {"F16", "BF16"}
    assert max(part.error for part in gguf.plan(model)) == 0
    found = {part.kind for part in gguf.plan(gguf_models.build("llama"), plain="F16")}
    assert (
        found == {"F16", "F32"} and max(part.error for part in gguf.plan(gguf_models.build("llama"), plain="F16")) > 0
    )


def test_llama_3_divides_its_frequencies():
    """transformers' own table of the rotation is that of the base, divided by the factors of the file."""
    settings = families.FAMILIES["llama_3"][2]
    model = gguf_models.build("llama", **settings)
    even = 10000.0 ** -(torch.arange(0, 16, 2).double() / 16)
    assert torch.allclose(model.model.rotary_emb.inv_freq.double(), even / gguf_metadata.factors(model).double())
    assert [part.name for part in gguf.plan(model)][-1] == "rope_freqs.weight"


@pytest.mark.parametrize(
    ("begins", "rule"), [(False, "gpt-2"), (False, "smollm"), (True, "llama-bpe"), (True, "qwen2")]
)
def test_tokenizers_come_back(tmp_path, begins, rule):
    model = gguf_models.build("llama", num_hidden_layers=1)
    model.tokenizer = gguf_models.words(rule, begins=begins)
    folder = gguf.export(model, model.tokenizer, tmp_path / "model")
    made = gguf_tokenizer.load(folder / gguf.FILE)
    for text in gguf_vocabulary.PROBES:
        assert made(text).input_ids == model.tokenizer(text).input_ids
    assert made.chat_template == model.tokenizer.chat_template and made.eos_token == model.tokenizer.eos_token


def test_every_rule_splits_the_probes_in_its_own_way():
    rules = {names[0]: gguf_tokenizer.pre_tokenizer(names[0]) for names in gguf_tokenizer.RULES.values()}
    split = {
        name: str([rule.pre_tokenize_str(text) for text in gguf_vocabulary.PROBES]) for name, rule in rules.items()
    }
    assert len(set(split.values())) == len(split)


def sentencepiece():
    """A SentencePiece-like tokenizer: bytes as `<0xNN>`, spaces as "▁", some merges."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    merges = [("h", "e"), ("t", "he"), ("▁", "the"), ("t", "h"), ("a", "b"), ("b", "a"), ("ab", "ab")]
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abeht"]
    vocabulary = {token: place for place, token in enumerate([*letters, *("".join(pair) for pair in merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.ByteFallback()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_scores_order_merges_as_the_list_did():
    """llama.cpp (src/llama-vocab.cpp) merges the neighbours whose token has the highest score, the leftmost first."""
    tokenizer = sentencepiece()
    rows = len(tokenizer)
    writer = package.GGUFWriter(None, "llama")
    gguf_vocabulary.write(writer, tokenizer, rows)
    said = {key: field.value for key, field in writer.kv_data[0].items()}
    tokens, scores = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.scores"]
    numbers = {token: place for place, token in enumerate(tokens)}
    draws = numpy.random.default_rng(0)
    for _ in range(20):
        text = "".join(draws.choice(list("abeht "), 30))
        symbols = list("▁" + text.replace(" ", "▁"))
        while pairs := [
            (-scores[numbers[a + b]], at) for at, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in numbers
        ]:
            at = min(pairs)[1]
            symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
        assert [numbers[symbol] for symbol in symbols] == tokenizer(text).input_ids
    assert said["tokenizer.ggml.model"] == "llama" and said["tokenizer.ggml.add_space_prefix"] is True
    assert said["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: gguf_models.build("gemma2"), "of type 'gemma2'; GGUF files are written of llama"),
        (lambda: with_tokenizer(tiny.tokenizer()), "the tokenizer is BPE without merges"),
        (lambda: tiny_vocabulary(), "ids up to 262, the embedding 200 rows"),
        (
            lambda: gguf_models.build("gemma3", layer_types=["full_attention", *["sliding_attention"] * 3]),
            "layers are Fwww",
        ),
        (lambda: gguf_models.build("gemma3", query_pre_attn_scalar=32), "query_pre_attn_scalar=32"),
        (
            lambda: gguf_models.build("phi3", **families.FAMILIES["phi3_longrope"][2]),
            "rotation of Phi3ForCausalLM is 'longrope'; files of phi3 are written with default alone",
        ),
        (lambda: gguf_models.build("qwen2", **own_yarn()), "is 'yarn' with beta_fast; files of qwen2"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_the_work(tmp_path, make, said):
    model = make()
    with pytest.raises(ValueError, match=said):
        gguf.export(model, model.tokenizer, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def own_yarn():
    settings = families.FAMILIES["llama_yarn"][2]["rope_parameters"]
    return {"rope_parameters": {**settings, "beta_fast": 16}}


def with_tokenizer(tokenizer):
    model = gguf_models.build("llama", num_hidden_layers=1)
    model.tokenizer = tokenizer
    return model


def tiny_vocabulary():
    model = tiny.llama(vocab_size=200, num_hidden_layers=1)
    model.tokenizer = gguf_models.words()
    return model


def test_an_interrupted_export_leaves_the_old_one(tmp_path, monkeypatch):
    model = gguf_models.build("llama", num_hidden_layers=1)
    folder = gguf.export(model, model.tokenizer, tmp_path / "model")
    before = (folder / gguf.FILE).read_bytes()
    monkeypatch.setattr(gguf_tensors, "_bytes", stopped(gguf_tensors._bytes, 5))
    with pytest.raises(KeyboardInterrupt):
        gguf.export(gguf_models.build("llama", num_hidden_layers=1, seed=1), model.tokenizer, folder)
    assert (folder / gguf.FILE).read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["model"]


def stopped(function, count):
    """`function` until it was called `count` times."""
    calls = iter(range(count))

    def run(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*arguments)

    return run


def test_saved_models_are_exported_by_one_command(tmp_path, capsys):
    """Packed and plain ones; to the same bytes as from memory."""
    model = gguf_models.build("llama", num_hidden_layers=1, bits=3)
    compressed_tensors.save(model, model.tokenizer, tmp_path / "packed")
    gguf.main([str(tmp_path / "packed"), str(tmp_path / "from packed")])
    assert "7 Q4_0; errors of up to 0" in capsys.readouterr().out
    gguf.export(model, model.tokenizer, tmp_path / "direct", name="from packed")
    assert (tmp_path / "direct" / gguf.FILE).read_bytes() == (tmp_path / "from packed" / gguf.FILE).read_bytes()
    other = gguf_models.build("llama", num_hidden_layers=1)
    plain.save(other, other.tokenizer, tmp_path / "plain")
    gguf.main([str(tmp_path / "plain"), str(tmp_path / "from plain")])
    found = gguf_contents.compare(tmp_path / "from plain" / gguf.FILE, other)
    assert found["exact"] == found["tensors"]


def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    model = gguf_models.build("llama", num_hidden_layers=1)
    monkeypatch.setattr(gguf_tensors, "write", lambda *_: pytest.fail("the work began"))
    usage = type(files.shutil.disk_usage(tmp_path))(10**9, 10**9, gguf.ROOM)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs \d+ MB and its disk has \d+ MB free"):
        gguf.export(model, model.tokenizer, tmp_path / "model")
