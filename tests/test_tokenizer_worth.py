"""Tokenizers compared by models: equal bytes or equal work, and the same seeds for each."""

import pytest

from lib.curation.mixtures import proxies
from lib.evaluation import tokenizer_worth
from lib.trainers import byte_pairs

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = " ".join(f"The wheel of mill {n % 17} turns by the river, and {n} boats wait." for n in range(400))


@pytest.mark.long
def test_all_read_the_same_bytes_or_multiply_alike():
    made = {str(size): byte_pairs.train([TEXT], vocabulary=size) for size in (270, 400)}
    options = {"seeds": [0, 1], "steps": 12, "length": 32, "batch": 2, "sizes": TINY}
    found = tokenizer_worth.measure(made, [TEXT], [TEXT[:500]], **options)
    read = [each["steps"] * 2 * 32 * each["bytes_per_token"] for each in found.values()]
    assert found["400"]["steps"] < found["270"]["steps"] == 12
    assert read[0] == pytest.approx(read[1], rel=0.5 / found["400"]["steps"])
    other = tokenizer_worth.measure(made, [TEXT], [TEXT[:500]], budget="compute", **options)
    model = proxies.build(
        tokenizer_worth.domains.Domains(
            made["270"], {"all": tokenizer_worth.domains.rows_of([TEXT], made["270"], 32)}, {}
        ),
        0,
        TINY,
    )
    matrices = sum(each.numel() for each in model.parameters() if each.ndim == 2)
    assert tokenizer_worth._work(made["270"], proxies.SIZES | TINY) == matrices
    work = [matrices, matrices + 130 * 16]
    assert other["400"]["steps"] == round(12 * work[0] / work[1])
    assert all(len(each["bits_per_byte"]) == 2 and each["weights"] > each["embedding"] for each in found.values())
    assert tokenizer_worth.against(found, "270")["400"].n == 2
    with pytest.raises(ValueError, match="budget='flops' is unknown"):
        tokenizer_worth.measure(made, [TEXT], [TEXT], budget="flops", seeds=[0], steps=1)
