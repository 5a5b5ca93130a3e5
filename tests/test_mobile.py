"""What fits on a phone: the sums of the plan, and the deaths that are on record."""

import pytest
import transformers

from lib.export import mobile, plain
from lib.models import blocks
from tests import gguf_models, tiny


def llama_2_7b():
    return transformers.LlamaConfig(max_position_embeddings=4096)  # the defaults are this model's


def test_the_parts_are_those_of_the_formulas():
    model = tiny.gemma3()
    found = mobile.plan(model, mobile.Phone(10**9, 0.5, 10**9, "none"), prompt=20, answer=12)
    # 2 blocks see 32 tokens, 2 have windows of 12; 2 heads of 16 for keys and for values, two bytes each
    assert found.cache == (2 * 32 + 2 * 12) * 2 * 2 * 16 * 2
    assert found.weights == plain.size(model)
    assert found.peak == found.weights + found.cache + found.activations + found.runtime
    assert found.runtime == mobile.RUNTIME + mobile.ENTRY * model.config.vocab_size
    assert found.allowed == 5 * 10**8 and found.fits and not found.remedies
    assert found.tokens_a_second == pytest.approx(10**9 / (found.weights + found.cache))


def test_weights_are_counted_as_the_model_has_them():
    for model in (tiny.llama(), tiny.llama(tie_word_embeddings=False)):
        matrices = sum(part.numel() for part in model.parameters() if part.ndim > 1)
        assert mobile._count(blocks.config(model)) == matrices
    assert mobile.held(gguf_models.build("llama", bits=4)) < mobile.held(gguf_models.build("llama")) / 2


def test_the_death_of_a_7b_in_4_bits_on_an_8_gb_phone_is_foreseen():
    """executorch #3599: groups of 128, 4 GB free; 2 bits would have fitted."""
    weights = mobile._count(llama_2_7b())
    found = mobile.plan(llama_2_7b(), "android-8gb", weights=weights * 4.25 // 8, prompt=512, answer=1536)
    assert not found.fits and "does not fit" in str(found)
    assert mobile.plan(llama_2_7b(), "android-8gb", weights=weights * 2.25 // 8, prompt=512, answer=1536).fits


def test_what_would_make_it_fit_does():
    config = llama_2_7b()
    weights = int(mobile._count(config) * 4.5 / 8)
    found = mobile.plan(config, "android-8gb", weights=weights, prompt=512, answer=512)
    fewer_blocks, fewer_bits, *_ = found.remedies
    dropped = int(fewer_blocks.split()[1])
    config.num_hidden_layers -= dropped
    shorter = int(mobile._count(config) * 4.5 / 8)
    assert mobile.plan(config, "android-8gb", weights=shorter, prompt=512, answer=512).fits
    bits = float(fewer_bits.split()[1]) - 0.05  # shown to one place
    full = llama_2_7b()
    assert mobile.plan(full, "android-8gb", weights=int(mobile._count(full) * bits / 8), prompt=512, answer=512).fits
    assert "nothing fits" in str(mobile.plan(full, mobile.Phone(10**8, 0.1, None, ""), weights=weights))


def llama_3_8b():
    return transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False,
    )  # fmt: skip


def test_why_an_8b_in_4_bits_is_killed_on_12_gb():
    """Half of the memory holds it with 512 tokens at once and not with 2,048, whose logits take 1 GB."""
    weights = mobile._count(llama_3_8b()) * 45 // 80
    asked = {"weights": weights, "prompt": 4096, "answer": 4096}
    found = mobile.plan(llama_3_8b(), "snapdragon-8-gen-3-12gb", **asked)
    assert found.fits and found.reason() == "" and found.activations == 4 * 512 * (128256 + 2 * 4096)
    killed = mobile.plan(llama_3_8b(), "snapdragon-8-gen-3-12gb", batch=2048, **asked)
    assert not killed.fits and killed.reason().startswith("cache") != killed.reason().startswith("activations")
    at_once = int(killed.remedies[-1].split()[1])
    assert 512 <= at_once < 2048
    assert mobile.plan(llama_3_8b(), "snapdragon-8-gen-3-12gb", batch=at_once, **asked).fits
    assert not mobile.plan(llama_3_8b(), "competition-12gb", **asked).fits


def test_deaths_and_survivals_on_record():
    """mlc-llm #2028 (iPhone 15: 7B killed, 2B ran), #1487 (Snapdragon 8 Gen 3: 13B died, 7B ran); 4.5 bits a weight."""
    larger = transformers.LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    )
    smaller = transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=16, vocab_size=100352
    )
    for config, phone, lives in (
        (llama_2_7b(), "iphone-15-6gb", False),
        (smaller, "iphone-15-6gb", True),
        (larger, "snapdragon-8-gen-3-12gb", False),
        (llama_2_7b(), "snapdragon-8-gen-3-12gb", True),
    ):
        weights = int(mobile._count(config) * 4.5 / 8)
        assert mobile.plan(config, phone, weights=weights, prompt=512, answer=256).fits == lives


def test_energy_is_a_pass_over_the_weights_for_each_token():
    """7 billion weights take 0.7 J a token (arXiv 2402.14905)."""
    found = mobile.plan(llama_2_7b(), "android-8gb", weights=10**9, prompt=512, answer=99)
    assert found.joules == pytest.approx(0.1e-9 * mobile._count(llama_2_7b()) * 100)
    assert 60 < found.joules < 70 and " J an answer" in str(found)


@pytest.mark.parametrize("phone", mobile.PHONES)
def test_every_phone_has_a_source(phone):
    assert mobile.PHONES[phone].source and 0 < mobile.PHONES[phone].share < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"phone": "androit-8gb"}, "there is no phone 'androit-8gb'.*android-8gb"),
        ({"phone": "android-8gb", "prompt": 0}, "prompt=0; whole numbers"),
        ({"phone": "android-8gb"}, "give weights="),
    ],
)
def test_wrong_arguments_are_told(arguments, said):
    with pytest.raises(ValueError, match=said):
        mobile.plan(llama_2_7b(), **arguments)
