"""Sessions: reading in parts, going back, and sliding windows, against one pass over the whole."""

import pytest
import torch

from lib.decoding.sessions import ModelSession, read, rewind_to_common_prefix, room
from tests import tabular, tiny


def models():
    yield tiny.llama()
    yield tiny.mistral(sliding_window=7)
    yield tiny.gemma2(sliding_window=6)


@pytest.mark.parametrize("model", models(), ids=lambda model: type(model).__name__)
def test_parts_and_rewinds_give_the_logits_of_one_pass(model):
    tokens, session = tiny.tokens(1, 40)[0], ModelSession(model)
    with torch.no_grad():
        whole = model(input_ids=tokens[None], use_cache=False).logits[0]
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        length = int(torch.randint(session.length + 1, (), generator=generator))
        session.rewind(length)
        count = int(torch.randint(1, 9, (), generator=generator))
        if length + count > 40:
            session.rewind(0)
            continue
        found = session.extend(tokens[length : length + count])
        torch.testing.assert_close(found, whole[length : length + count], atol=2e-4, rtol=1e-3)
        assert session.length == length + count and found.dtype == torch.float32


def test_reading_without_logits_leaves_the_same_session():
    tokens, model = tiny.tokens(1, 53)[0], tiny.llama()
    one, other = ModelSession(model), ModelSession(model)
    read(one, tokens[:50])
    read(one, tokens[:0])
    whole = other.extend(tokens[:50])
    torch.testing.assert_close(one.extend(tokens[50:]), other.extend(tokens[50:]))
    one.rewind(30)
    torch.testing.assert_close(one.extend(tokens[30:50], last=True), whole[-1:], atol=1e-4, rtol=1e-4)
    assert room(one) == 512 and room(tabular.TabularSession()) is None


def test_move_keeps_what_is_shared():
    session = tabular.TabularSession()
    known = torch.tensor([1, 2, 3, 4])
    session.extend(known)
    for text, kept in ([1, 2, 0], 2), ([1, 2], 1), ([3], 0):
        session.rewind(0)
        session.extend(known)
        rest = rewind_to_common_prefix(session, torch.tensor(text), known)
        assert session.length == kept and session.tokens + rest.tolist() == text


def test_errors_name_what_is_allowed():
    session = ModelSession(tiny.llama(max_position_embeddings=16))
    session.extend(torch.arange(10))
    with pytest.raises(ValueError, match=r"10 \+ 7 tokens do not fit the model's context of 16"):
        session.extend(torch.arange(7))
    with pytest.raises(ValueError, match="choose 0 to 10"):
        session.rewind(11)
    with pytest.raises(ValueError, match="1 or more"):
        session.extend(torch.arange(0))
    with pytest.raises(ValueError, match="integer token ids"):
        session.extend(torch.rand(3))
    assert session.length == 10
