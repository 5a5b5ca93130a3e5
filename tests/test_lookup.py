"""Prompt lookup against a search written from its definition, and how it chooses lengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.decoding.lookup import Lookup


def brute_force(ids, max_ngram, min_ngram, count):
    """The longest end of `ids` that occurs earlier, its latest occurrence, and what follows, the draft included."""
    for n in range(max_ngram, min_ngram - 1, -1):
        for start in range(len(ids) - n - 1, -1, -1):
            if n < len(ids) and ids[start : start + n] == ids[-n:]:
                text = list(ids)
                for place in range(start + n, start + n + count):
                    text.append(text[place])
                return text[len(ids) :]
    return []


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    max_ngram=st.integers(1, 5),
    min_ngram=st.integers(1, 5),
    count=st.integers(1, 12),
)
def test_drafts_equal_brute_force(ids, max_ngram, min_ngram, count):
    min_ngram = min(min_ngram, max_ngram)
    drafter = Lookup(max_ngram=max_ngram, min_ngram=min_ngram, draft_length=count, adaptive=False)
    found = drafter.draft(torch.tensor(ids))
    assert found.token_ids.tolist() == brute_force(ids, max_ngram, min_ngram, count)
    assert found.probabilities is None
    assert drafter.draft(torch.tensor(ids), 2).token_ids.tolist() == found.token_ids.tolist()[:2]
    assert not len(drafter.draft(torch.tensor(ids), 0).token_ids)


def test_prompts_shorter_than_the_ngram_and_new_words_draft_nothing():
    drafter = Lookup(max_ngram=4, draft_length=3)
    for ids in ([5], [5, 6], [5, 6, 7]):
        assert not len(drafter.draft(torch.tensor(ids)).token_ids)
    assert drafter.draft(torch.tensor([5, 5])).token_ids.tolist() == [5]


def test_the_draft_is_no_view_of_the_text():
    text = torch.tensor([1, 2, 1, 2, 0, 0, 0, 0])
    found = Lookup(draft_length=4, adaptive=False).draft(text[:4]).token_ids
    text[4:] = 9
    assert found.tolist() == [1, 2, 1, 2]


def test_lengths_follow_what_was_accepted():
    drafter, text = Lookup(draft_length=8), [1, 2, 3] * 3

    def length(accepted=None):
        """Draft; then let the first `accepted` tokens come true (None: all) and another one follow."""
        found = drafter.draft(torch.tensor(text)).token_ids.tolist()
        text.extend([*found[:accepted], 9, 1, 2, 3])
        return len(found)

    assert length() == 4  # half of the longest
    assert length() == 8  # all were right: twice as many
    assert length(2) == 8  # never above the longest
    assert length(0) == 3  # two were right: three
    assert length(0) == 1  # none was right: one
    text = [4, 4, 4]
    assert length() == 4  # another text
    drafter.begin(torch.tensor([5] * 40))
    text = [5] * 40  # longer than the one before
    assert length() == 4


def test_fixed_lengths_stay():
    drafter = Lookup(draft_length=5, adaptive=False)
    for text in ([1, 1], [1, 1, 2, 2], [3, 3]):
        assert len(drafter.draft(torch.tensor(text)).token_ids) == 5


@pytest.mark.parametrize("wrong", [{"max_ngram": 0}, {"draft_length": -1}, {"min_ngram": 1.5}, {"draft_length": True}])
def test_bad_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="choose a whole number from 1"):
        Lookup(**wrong)
    with pytest.raises(ValueError, match="min_ngram=4 is more than max_ngram=3"):
        Lookup(min_ngram=4)
