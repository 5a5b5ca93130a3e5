"""The parameters of text-generation-inference's routes and their rules, in its words."""

from lib import tokenization
from lib.serving.answers import Ask
from lib.serving.artifacts import Artifact
from lib.serving.limits import Limits
from lib.serving.parameters import Parameter, Table
from lib.serving.problems import invalid

NEW_TOKENS = 100  # where a request names none, as there
_POSITIVE = "`{name}` must be strictly positive"
_SHARE = "`{name}` must be > 0.0 and < 1.0"
_U64 = 2**64 - 1

PARAMETERS = Table(
    {
        "best_of": Parameter("integer", 1, 1, about="Answers of which the likeliest is given."),
        "temperature": Parameter("number", None, 0, open=True, said=_POSITIVE, about="Divides the logits."),
        "repetition_penalty": Parameter("number", None, 0, open=True, said=_POSITIVE, about="1 changes nothing."),
        "frequency_penalty": Parameter("number", None, -2, 2, said="`{name}` must be >= -2.0 and <= 2.0"),
        "top_k": Parameter("integer", None, 1, 2**31 - 1, said=_POSITIVE, about="Only the k likeliest tokens."),
        "top_p": Parameter("number", None, 0, 1, open=True, said=_SHARE, about="Only the likeliest of this share."),
        "typical_p": Parameter("number", None, 0, 1, open=True, said=_SHARE, about="Only tokens of typical surprise."),
        "do_sample": Parameter("boolean", False, about="Draw tokens instead of taking the likeliest."),
        "max_new_tokens": Parameter("integer", None, 1, 2**31 - 1, said=_POSITIVE),
        "return_full_text": Parameter("boolean", False, about="Whether the text begins with the inputs."),
        "stop": Parameter("strings", (), about="Strings that end the answer, which then ends with one."),
        "truncate": Parameter("integer", None, 1, 2**31 - 1, said=_POSITIVE, about="Only the inputs' last tokens."),
        "watermark": Parameter("boolean", refused="no watermark is put into texts.", harmless=(False,)),
        "details": Parameter("boolean", False, about="Tokens and their log-probabilities."),
        "decoder_input_details": Parameter("boolean", False, about="Those of the inputs too."),
        "seed": Parameter("integer", None, 0, _U64, about="The same seed draws the same tokens, whatever else runs."),
        "top_n_tokens": Parameter("integer", None, 0, about="The likeliest tokens at each place."),
        "grammar": Parameter("object", refused="texts are not held to a grammar."),
        "adapter_id": Parameter("string", refused="adapters are merged into a model, which is served as it is."),
    },
    where="`parameters`",
    renamed={"stop_sequences": "stop"},
)  # fmt: skip
GENERATE = Table(
    {
        "inputs": Parameter("string", needed=True, about="The text to continue."),
        "parameters": Parameter("object", None, about="How to continue it."),
    }
)
ROOT = Table({**GENERATE.parameters, "stream": Parameter("boolean", False, about="Whether events are sent.")})
TOKENIZE = Table(
    {
        "inputs": Parameter("string", needed=True, about="The text to tokenize."),
        "parameters": Parameter("anything", ignored=True),
        "add_special_tokens": Parameter("boolean", True, about="Whether the tokens before a text are added."),
    }
)


def sampling(given: dict) -> dict | None:
    """Arguments of `Sampling` for these parameters; None for the likeliest token each time.

    Tokens are drawn where do_sample says so, or another parameter of draws is given, as LangChain relies on.
    """
    named = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}
    how = {name: none if given[name] is None else given[name] for name, none in named.items()}
    drawn = given["do_sample"] or how != named
    penalties = ()
    if given["frequency_penalty"]:
        from lib.decoding.penalties import Frequency  # needs torch

        penalties = (Frequency(given["frequency_penalty"]),)
    if not drawn:
        return {"penalties": penalties} if penalties else None
    return {**how, "penalties": penalties}


def is_drawn(how: dict | None) -> bool:
    """Whether these arguments of `Sampling` draw tokens."""
    return how is not None and bool(how.get("temperature"))


def read(given: dict, artifact: Artifact, limits: Limits, *, stream: bool) -> tuple[dict, Ask]:
    """The parameters of a request and what is asked of the loop; raises a `Problem` in the words of the original."""
    how = PARAMETERS.read(given["parameters"] or {})
    _check(how, limits, stream=stream)
    if not given["inputs"]:
        raise invalid("`inputs` cannot be empty", "inputs")
    longest, least = artifact.longest_prompt, artifact.least_tokens(given["inputs"])
    if least > longest and how["truncate"] is None:
        raise invalid(f"`inputs` must have less than {longest} tokens. Given: at least {least}", "inputs")
    prompt = encode(artifact, given["inputs"])
    if how["truncate"] is not None:
        if how["truncate"] > longest:
            raise invalid(f"`truncate` must be strictly positive and less than {longest}. Given: {how['truncate']}")
        prompt = prompt[-how["truncate"] :]
    if len(prompt) > longest:
        raise invalid(f"`inputs` must have less than {longest} tokens. Given: {len(prompt)}", "inputs")
    new_tokens = (
        min(NEW_TOKENS, artifact.limit - len(prompt)) if how["max_new_tokens"] is None else how["max_new_tokens"]
    )
    if len(prompt) + new_tokens > artifact.limit:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {artifact.limit}. Given: {len(prompt)} `inputs` tokens and "
            f"{new_tokens} `max_new_tokens`",
            "max_new_tokens",
        )
    drawing = sampling(how)
    if how["best_of"] > 1 and not is_drawn(drawing):
        raise invalid("you must use sampling when `best_of` is > 1", "best_of")
    top = min(how["top_n_tokens"] or 0, artifact.vocabulary)
    return how, Ask(
        prompt, new_tokens, tuple(how["stop"]), drawing, how["seed"] if is_drawn(drawing) else None, top=top,
        scored=stream or how["details"] or how["best_of"] > 1 or bool(top),
        prompt_scores=how["decoder_input_details"], repetition_penalty=how["repetition_penalty"],
    )  # fmt: skip


def check_text(text: str, name: str = "inputs") -> None:
    """Raise a `Problem` for a text that holds half a character."""
    try:
        tokenization.check(text, f"`{name}`")
    except ValueError as error:
        raise invalid(str(error), name) from None


def encode(artifact: Artifact, text: str) -> list[int]:
    """Token ids of a text; raises a `Problem` for half a character and for a text without tokens."""
    check_text(text)
    found = artifact.ids(text)
    if not found:
        raise invalid("`inputs` cannot be empty", "inputs")
    return found


def _check(how: dict, limits: Limits, *, stream: bool) -> None:
    best, top = how["best_of"], how["top_n_tokens"]
    if best > limits.sequences:
        raise invalid(f"`best_of` must be > 0 and <= {limits.sequences}. Given: {best}", "best_of")
    if best > 1 and how["seed"] is not None:
        raise invalid("`seed` must not be set when `best_of` > 1", "seed")
    if best > 1 and stream:
        raise invalid("`best_of` != 1 is not supported when streaming tokens", "best_of")
    if how["decoder_input_details"] and stream:
        raise invalid("`decoder_input_details` == true is not supported when streaming tokens", "decoder_input_details")
    if top is not None and top > limits.top:
        raise invalid(f"`top_n_tokens` must be >= 0 and <= {limits.top}. Given: {top}", "top_n_tokens")
    check_stops(how["stop"], limits)


def check_stops(stops: list[str], limits: Limits) -> None:
    """Raise a `Problem` for too many stop strings, and for empty, long or broken ones."""
    if len(stops) > limits.stops:
        raise invalid(f"`stop` supports up to {limits.stops} stop sequences. Given: {len(stops)}", "stop")
    for each in stops:
        if not 0 < len(each) <= limits.stop_characters:
            raise invalid(
                f"`stop` holds a string of {len(each)} characters; 1 to {limits.stop_characters} are allowed.", "stop"
            )
        try:
            each.encode()
        except UnicodeEncodeError:
            raise invalid("`stop` holds half a character; text that UTF-8 can write is allowed.", "stop") from None
