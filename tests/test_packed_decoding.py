"""Drafting on the packed runtime: the same loop on its sessions, and a packed model that drafts for the original."""

import pytest
import torch

from lib.decoding.generate import generate
from lib.decoding.lookup import Lookup
from lib.decoding.sessions import ModelSession, room
from lib.decoding.speculative import Speculative, check_vocabularies
from lib.quantizers import rtn
from lib.runtime.engine import Session, weights_of
from lib.runtime.modules import pack_
from lib.runtime.torch_kernels import Reference
from tests import tiny


@pytest.fixture(scope="module")
def original():
    return tiny.llama(num_hidden_layers=2, initializer_range=0.15)


@pytest.fixture(scope="module")
def packed():
    model = tiny.llama(num_hidden_layers=2, initializer_range=0.15)
    rtn.quantize_(model, bits=8, group_size=64)
    return pack_(model)


@pytest.fixture(scope="module")
def session(packed):
    weights = weights_of(packed)
    return Session(weights, backend=Reference(weights))  # plain torch: needs no compiler


def test_lookup_is_token_identical_on_packed_sessions(session):
    assert room(session) == 512
    for seed in range(6):
        prompt = tiny.tokens(1, 3 + seed, vocab=3, seed=seed)[0]
        plain = generate(session, prompt, new_tokens=10, eos=range(4))
        drafted = generate(session, prompt, new_tokens=10, eos=range(4), drafter=Lookup(draft_length=4))
        assert drafted.token_ids == plain.token_ids and drafted.reason == plain.reason
    with pytest.raises(ValueError, match="context of 512"):
        generate(session, prompt, new_tokens=510)


def test_a_packed_model_drafts_for_the_original(original, packed, session):
    check_vocabularies(original, packed)
    prompt, target = torch.tensor([5, 6, 7, 8]), ModelSession(original)
    plain = generate(target, prompt, new_tokens=12)
    drafted = generate(target, prompt, new_tokens=12, drafter=Speculative(session, draft_length=3))
    assert drafted.token_ids == plain.token_ids and len(drafted.steps) < len(plain.steps)
