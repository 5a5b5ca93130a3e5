"""Packed documents: none sees another, and a row's loss is that of its documents alone."""

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from lib import architectures, files
from lib.trainers import loop, minibatch, next_token, sequence_packing
from tests import tiny
from tests.test_architectures import NAMES, made

END = 0
DOCUMENTS = [[5, 6, 7], [], [8], [9, 10, 11, 12, 13, 14, 15, 16, 17], [18, 19], [20, 21, 22]]


def test_rows_hold_the_stream_and_where_each_document_begins(monkeypatch):
    rows = sequence_packing.pack(DOCUMENTS, 8, end=END)
    assert rows.ids.tolist() == [[5, 6, 7, 0, 8, 0, 9, 10], [11, 12, 13, 14, 15, 16, 17, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert rows.dropped == 7 and len(rows) == 2
    assert rows[0]["labels"].tolist() == [-100, 6, 7, 0, -100, 0, -100, 10]
    stream = sequence_packing.pack(DOCUMENTS, 8, end=END, block_diagonal=False)
    assert torch.equal(stream, rows.ids)
    assert rows.identity != sequence_packing.pack(DOCUMENTS[1:], 8, end=END).identity
    monkeypatch.setattr(sequence_packing, "_AT_ONCE", 8)
    assert sequence_packing.pack(DOCUMENTS, 8, end=END).identity == rows.identity
    assert rows.identity == files.data_hash(torch.stack([rows.ids, rows.positions])) and rows.largest == 17
    assert torch.equal(rows[1:].positions, rows.positions[1:])


@pytest.mark.parametrize("name", [*NAMES[:2], "talking_heads"])
def test_the_loss_of_a_row_is_that_of_its_documents_alone(name):
    model = made(name)
    rows = sequence_packing.pack(DOCUMENTS, 8, end=END)
    found = next_token.loss(model, minibatch.collate([rows[0], rows[1]]))
    total = count = 0
    for document in ([5, 6, 7, 0], [8, 0], [9, 10], [11, 12, 13, 14, 15, 16, 17, 0]):
        ids = torch.tensor([document])
        total += model(ids, labels=ids).loss * (len(document) - 1)
        count += len(document) - 1
    torch.testing.assert_close(found, total / count, rtol=1e-5, atol=1e-6)
    together = sequence_packing.pack(DOCUMENTS, 8, end=END, block_diagonal=False)
    assert (next_token.loss(model, {"input_ids": together}) - found).abs() > 1e-3  # which the borders make
    sequence_packing.check(model)


def test_the_loop_trains_on_packed_documents():
    documents = [[1 + (start + step) % 250 for step in range(3 + start % 9)] for start in range(60)]
    rows, model = sequence_packing.pack(documents, 16, end=END), architectures.build("headwise", tiny_sizes(), 0)
    history = loop.train_(model, rows, next_token.loss, steps=12, batch=4, learning_rate=1e-2)
    assert history.losses[-1] < history.losses[0] - 0.3 and history.tokens == 12 * 4 * 16


def tiny_sizes():
    config = tiny.llama().config
    return {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "num_attention_heads")} | {
        "intermediate_size": 64,
        "num_hidden_layers": 1,
    }


def test_models_that_would_mix_documents_are_refused():
    config = BloomConfig(vocab_size=256, hidden_size=64, n_layer=1, n_head=4)
    with pytest.raises(ValueError, match="BloomForCausalLM does not keep packed documents apart"):
        sequence_packing.check(BloomForCausalLM(config))


@pytest.mark.parametrize(
    "documents, length, said", [(DOCUMENTS, 1, "length=1; rows of 2"), ([[1, 2]], 4, "have 3 tok")]
)
def test_what_fills_no_row_is_refused(documents, length, said):
    with pytest.raises(ValueError, match=said):
        sequence_packing.pack(documents, length, end=END)
