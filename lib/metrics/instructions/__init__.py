"""The 25 kinds of verifiable instructions of IFEval: by family one file, each check a function of the response.

Every check takes the response and the instruction's arguments as keywords, and returns whether it was followed.
The rules are those of the paper's program (Instruction-Following Evaluation for Large Language Models,
arXiv 2311.07911, table 1), with its oddities: they decide what a published score means.
"""

from lib.metrics.instructions import contents, formats, language, lengths

CHECKS = {
    "keywords:existence": contents.has_keywords,
    "keywords:frequency": contents.keyword_frequency,
    "keywords:forbidden_words": contents.has_no_forbidden_words,
    "keywords:letter_frequency": contents.letter_frequency,
    "language:response_language": language.is_language,
    "length_constraints:number_sentences": lengths.sentences,
    "length_constraints:number_paragraphs": lengths.paragraphs,
    "length_constraints:number_words": lengths.words,
    "length_constraints:nth_paragraph_first_word": lengths.paragraph_first_word,
    "detectable_content:number_placeholders": contents.placeholders,
    "detectable_content:postscript": contents.has_postscript,
    "detectable_format:number_bullet_lists": formats.bullets,
    "detectable_format:constrained_response": formats.is_constrained_answer,
    "detectable_format:number_highlighted_sections": formats.highlights,
    "detectable_format:multiple_sections": formats.sections,
    "detectable_format:json_format": formats.is_json,
    "detectable_format:title": formats.has_title,
    "combination:two_responses": formats.two_responses,
    "combination:repeat_prompt": contents.repeats_prompt,
    "startend:end_checker": contents.ends_with,
    "change_case:capital_word_frequency": language.capital_words,
    "change_case:english_capital": language.is_english_capitals,
    "change_case:english_lowercase": language.is_english_lowercase,
    "punctuation:no_comma": formats.has_no_comma,
    "startend:quotation": formats.is_quoted,
}
