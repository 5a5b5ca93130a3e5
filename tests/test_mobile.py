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
    assert found.peak == found.weights + found.cache + found.activations + mobile.RUNTIME
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
