"""IFEval's 25 instructions on responses of our own, and every verdict on the published ones."""

import json
import os
import random
from pathlib import Path

import pytest

from lib.metrics import instruction_following
from lib.metrics.instructions import CHECKS, language
from lib.metrics.instructions.relation import holds
from lib.sources import subjects

FOLDER = Path(os.environ.get("THIMBLE_DATA", "")) / "ifeval"
ENGLISH = "the cat sat on the mat and looked at the rain for a while, then it fell asleep again"
POEM = "Roses are red. Mr. Smith said so! Is it true?"

CASES = {  # instruction: (arguments, responses that follow, responses that don't)
    "keywords:existence": ({"keywords": ["Moon", "tide"]}, ["the moon moves tides"], ["the moon moves"]),
    "keywords:frequency": (
        {"keyword": "sun ", "frequency": 2, "relation": "at least"},
        ["Sun and sunlight"],
        ["sun"],
    ),
    "keywords:forbidden_words": ({"forbidden_words": ["run", "cat"]}, ["running scattered"], ["Cat!", "we run."]),
    "keywords:letter_frequency": (
        {"letter": "!", "let_frequency": 2, "let_relation": "less than"},
        ["one!", "none"],
        ["!!"],
    ),
    "language:response_language": ({"language": "de"}, ["Das ist ein schöner Tag im Garten", "123"], [ENGLISH]),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "at least"},
        [POEM],
        [POEM.split("!")[0]],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["a *** b", "a\n***\nb\n***"],
        ["a", "a *** *** b", "***"],
    ),
    "length_constraints:number_words": ({"num_words": 3, "relation": "less than"}, ["a-b", "one"], ["it's a"]),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        ['a b\n\n"weekend, at last', "a\n\nWeekend's"],
        ["a\n\nb weekend", "weekend", "a\n\nweekend\n\nc", "a\n\n\n\nweekend", "weekends\n\nweekends"],
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, ["[name] of [place]"], ["[name\n]", "[a]"]),
    "detectable_content:postscript": (
        {"postscript_marker": "P.P.S"},
        ["Bye.\np. p.s. again", "P.P.S"],
        ["P.S. again"],
    ),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, ["* a\n- b", " * a\n* b"], ["* a", "** a\n* b"]),
    "detectable_format:constrained_response": ({}, ["So: My answer is no."], ["my answer is no."]),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*a* and *b*", "**a** *b*"],
        ["*a*", "** **"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section ", "num_sections": 2},
        ["Section 1 a Section 2"],
        ["Section 1", "SECTION 1 SECTION 2"],
    ),
    "detectable_format:json_format": (
        {},
        ['```json\n{"a": 1}\n```', "[1]"],
        ["{a: 1}", "[" * 100_000, '```x\n{"a":1}```'],
    ),
    "detectable_format:title": ({}, ["<<joy>>\ntext"], ["<< >>", "<joy>", "<<a\nb>>"]),
    "combination:two_responses": (
        {},
        ["a******b", "******a******b"],
        ["a******a", "a", "a************b", "a******b******c"],
    ),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it. "}, [" say it. It!"], ["I say it."]),
    "startend:end_checker": ({"end_phrase": "The end."}, ['"So the END." '], ["The end. Bye"]),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["We SHOUT AT-ALL times"],
        ["I shout", "We SHOUT"],
    ),
    "change_case:english_capital": ({}, [ENGLISH.upper()], [ENGLISH, "DAS IST EIN SCHÖNER TAG IM GARTEN"]),
    "change_case:english_lowercase": ({}, [ENGLISH], [ENGLISH.title(), "das ist ein schöner tag im garten"]),
    "punctuation:no_comma": ({}, ["none; here"], ["one, here"]),
    "startend:quotation": ({}, [' "quoted" '], ['"', '"open', "plain"]),
}


def test_there_is_a_case_for_every_instruction():
    assert len(CHECKS) == 25 and set(CASES) == set(CHECKS)


@pytest.mark.parametrize("name", CASES)
def test_instructions(name):
    arguments, following, failing = CASES[name]
    for response in following:
        assert instruction_following.follow(response, [name], [arguments]).strict == (True,), response
    for response in failing:
        assert instruction_following.follow(response, [name], [arguments]).strict == (False,), response


def test_loose_forgives_a_frame_and_asterisks_but_not_silence():
    quoted, keywords = "startend:quotation", "detectable_format:constrained_response"
    framed = 'Sure, here it is:\n"text"\nI hope this helps!'
    assert instruction_following.follow(
        framed, [quoted, keywords], [{}, {}]
    ) == instruction_following.InstructionResults((False, False), (True, False))
    assert instruction_following.follow('**"text"**', [quoted], [{}]).loose == (True,)
    assert instruction_following.follow(
        "\n", ["punctuation:no_comma"], [{}]
    ) == instruction_following.InstructionResults((False,), (False,))
    assert instruction_following.variants("a\nb\nc") == ["a\nb\nc", "b\nc", "a\nb", "b"] * 2


def test_arguments_of_none_are_not_given_and_mistakes_are_refused():
    assert instruction_following.follow("a", ["punctuation:no_comma"], [{"num_words": None}]).strict == (True,)
    with pytest.raises(ValueError, match="nearest: punctuation:no_comma"):
        instruction_following.follow("a", ["punctuation:no_commas"], [{}])
    with pytest.raises(ValueError, match="2 instructions with 1 sets"):
        instruction_following.follow("a", ["punctuation:no_comma"] * 2, [{}])
    with pytest.raises(ValueError, match="relation='most'"):
        holds(1, "most", 2)


def test_detection_is_seeded_and_leaves_the_librarys_seed_alone():
    from langdetect import DetectorFactory

    text, before, state = "no me importa la hora in the garden", DetectorFactory.seed, random.getstate()
    assert len({language.detect(text) for _ in range(8)}) == 1
    assert DetectorFactory.seed is before and random.getstate() == state
    assert language.detect("12345") is None


UNSEEDED = {"gpt4_20231107": set(), "llama32_1b_instruct": {24, 1389, 3456}}
DRAWN = {1122, 1129}  # ask for "#" and "!"; the program behind the scores drew a letter where a character is none


@pytest.mark.skipif(not (os.environ.get("THIMBLE_DATA") and FOLDER.exists()), reason="set THIMBLE_DATA (ifeval)")
@pytest.mark.parametrize("model", UNSEEDED)
def test_every_prompt_agrees_with_the_published_program(model):
    prompts = {row["key"]: row for row in _rows("input_data")}
    keys = {row["prompt"]: key for key, row in prompts.items()}
    scores = {row["key"]: row for row in _rows("reference_scores") if row["model"] == model}
    responses = {keys.get(row["prompt"], 2785): row["response"] for row in _rows(f"responses_{model}")}
    assert len(responses) == len(scores) == 541
    for key in prompts.keys() - UNSEEDED[model] - DRAWN:
        prompt = prompts[key]
        found = instruction_following.follow(responses[key], prompt["instruction_id_list"], prompt["kwargs"])
        assert [list(found.strict), list(found.loose)] == [scores[key]["strict"], scores[key]["loose"]], key


@pytest.mark.skipif(not (os.environ.get("THIMBLE_DATA") and FOLDER.exists()), reason="set THIMBLE_DATA (ifeval)")
def test_the_prompts_with_a_drawn_letter_are_those_that_ask_for_no_letter():
    asked = {
        (row["key"], each["letter"]) for row in _rows("input_data") for each in row["kwargs"] if each.get("letter")
    }
    assert {key for key, letter in asked if not ("a" <= letter.lower() <= "z" and len(letter) == 1)} == DRAWN


def _rows(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_data_knows_the_instructions_that_are_checked():
    assert set(subjects.INSTRUCTIONS) == set(CHECKS)
