"""Text that comes in pieces joins to the text of the whole answer."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.decoding.stops import Stops
from lib.decoding.text_pieces import Cut, Pieces
from tests import tiny

TOKENIZER = tiny.llama().tokenizer


@given(st.text(max_size=12))
def test_pieces_join_to_the_text(text):
    tokens = TOKENIZER(text, add_special_tokens=False).input_ids
    pieces = Pieces(TOKENIZER, special=True)
    found = [pieces.add(token) for token in tokens] + [pieces.rest()]
    assert "".join(found) == TOKENIZER.decode(tokens)
    assert not any("\ufffd" in piece for piece in found) or "\ufffd" in text


def test_a_character_in_several_tokens_comes_whole():
    pieces = Pieces(TOKENIZER)
    tokens = TOKENIZER("é", add_special_tokens=False).input_ids
    assert len(tokens) == 2 and [pieces.add(token) for token in tokens] == ["", "é"]
    pieces.add(tokens[0])
    assert pieces.rest() == "\ufffd" and pieces.rest() == ""


@pytest.mark.parametrize("stops", [["ab"], ["abc", "bd"], ["aa"], ["b"], []])
def test_what_may_begin_a_stop_string_is_held_back(stops):
    for letters in itertools.product("abcd", repeat=5):
        text = "".join(letters)
        whole = Stops(stops, TOKENIZER).cut(text)
        cut, shown = Cut(Stops(stops, TOKENIZER)), ""
        for letter in text:
            shown += cut.add(letter)
            assert whole.startswith(shown)
        assert shown + cut.rest(whole) == whole
