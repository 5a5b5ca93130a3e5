"""The parameters of OpenAI's routes, and what they ask of the loop."""

from lib.serving import tgi_parameters
from lib.serving.answers import Ask
from lib.serving.artifacts import Artifact
from lib.serving.limits import Limits
from lib.serving.parameters import Parameter, Table
from lib.serving.problems import Problem, invalid

NEW_TOKENS = 16  # of completions, where a request names none; a chat may go on to the end of the context
_PENALTY = Parameter("number", 0.0, -2, 2)
_COMMON = {
    "model": Parameter("string", None, about="One of /v1/models."),
    "stream": Parameter("boolean", False),
    "stream_options": Parameter("object", None),
    "n": Parameter("integer", 1, 1),
    "temperature": Parameter("number", 1.0, 0, 2, about="0 takes the likeliest token."),
    "top_p": Parameter("number", 1.0, 0, 1),
    "top_k": Parameter("integer", 0, 0, 2**31 - 1, about="Not OpenAI's: only the k likeliest tokens; 0 for all."),
    "typical_p": Parameter("number", 1.0, 0, 1, about="Not OpenAI's."),
    "repetition_penalty": Parameter("number", None, 0, open=True, about="Not OpenAI's."),
    "seed": Parameter("integer", None, -(2**63), 2**64 - 1, about="The same seed draws the same tokens."),
    "stop": Parameter("one or more strings", ()),
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "logit_bias": Parameter("object", None, about="Token id to a number from -100 to 100."),
    "max_tokens": Parameter("integer", None, 0, 2**31 - 1),
    "ignore_eos": Parameter("boolean", False, about="Not OpenAI's: go on where the model would end."),
    **{name: Parameter("anything", ignored=True) for name in ("user", "metadata", "store", "service_tier", "adapter_id",
       "safety_identifier", "prompt_cache_key", "tool_prompt", "parallel_tool_calls")},
}  # fmt: skip
COMPLETIONS = Table(
    {
        **_COMMON,
        "prompt": Parameter("prompt", needed=True),
        "best_of": Parameter("integer", None, 1),
        "echo": Parameter("boolean", False, about="Whether the prompt comes before the answer."),
        "logprobs": Parameter("integer", None, 0, 20),
        "suffix": Parameter("string", refused="text is written at the end only.", harmless=("",)),
    }
)
_FORMATS = ({"type": "text"},)
CHAT = Table(
    {
        **_COMMON,
        "messages": Parameter("objects", needed=True),
        "max_completion_tokens": Parameter("integer", None, 1, 2**31 - 1),
        "logprobs": Parameter("boolean", False),
        "top_logprobs": Parameter("integer", None, 0, 20),
        "response_format": Parameter("object", refused="texts are not held to a form.", harmless=_FORMATS),
        "tools": Parameter("objects", refused="the models here call no tools.", harmless=([],)),
        "tool_choice": Parameter("anything", refused="the models here call no tools.", harmless=("none", "auto")),
        "functions": Parameter("objects", refused="the models here call no functions.", harmless=([],)),
        "function_call": Parameter("anything", refused="the models here call no functions.", harmless=("none", "auto")),
        "modalities": Parameter("strings", refused="only text is written.", harmless=(["text"],)),
        "audio": Parameter("object", refused="only text is written."),
        "prediction": Parameter("object", refused="nothing is predicted by a client."),
        "reasoning_effort": Parameter("string", refused="the models here have no such setting."),
    }
)
STREAM_OPTIONS = Table(
    {
        "include_usage": Parameter("boolean", False),
        "continuous_usage_stats": Parameter("boolean", False, about="Not OpenAI's: the usage so far in every chunk."),
        "include_obfuscation": Parameter("boolean", ignored=True),
    },
    where="`stream_options`",
)


def read(table: Table, body, limits: Limits) -> dict:
    """The parameters of a request; raises a `Problem` for the first that is wrong."""
    given = table.read(body)
    if given["stream_options"] is not None and not given["stream"]:
        raise invalid("`stream_options` is only allowed when `stream` is true.", "stream_options")
    options = STREAM_OPTIONS.read(given["stream_options"] or {})
    given["usage"] = options["include_usage"]
    given["running_usage"] = options["include_usage"] and options["continuous_usage_stats"]
    for name in ("n", "best_of"):  # before any of them is made
        if (given.get(name) or 1) > limits.sequences:
            raise invalid(f"`{name}` must be at most {limits.sequences}. Given: {given[name]}", name)
    tgi_parameters.check_stops(given["stop"], limits)
    if given["top_p"] == 0 or given["typical_p"] == 0:
        raise invalid("`top_p` and `typical_p` must be > 0.", "top_p")
    return given


def ask(given: dict, prompt: list[int], artifact: Artifact, limits: Limits, **wanted) -> Ask:
    """What is asked of the loop for one prompt; wanted: `top`, `scored`, `prompt_scores` and `new_tokens`."""
    if not prompt:
        raise invalid("the prompt has no tokens; one or more are needed.", "prompt")
    if len(prompt) > artifact.longest_prompt:
        raise _too_long(f"{len(prompt)}", artifact)
    room = artifact.limit - len(prompt)
    new_tokens = wanted.pop("new_tokens")
    if new_tokens is None:
        new_tokens = room
    if new_tokens > room:
        raise Problem(
            "validation",
            f"This model's maximum context length is {artifact.limit} tokens. However, {len(prompt)} tokens in the "
            f"prompt and {new_tokens} in the completion were requested.",
            "max_tokens", "context_length_exceeded",
        )  # fmt: skip
    how = sampling(given, len(prompt), artifact)
    drawn = tgi_parameters.is_drawn(how)
    seed = given["seed"] % 2**64 if drawn and given["seed"] is not None else None
    wanted["top"] = min(wanted.get("top", 0), artifact.vocabulary)
    wanted |= {"repetition_penalty": given["repetition_penalty"], "endless": given["ignore_eos"]}
    return Ask(prompt, new_tokens, tuple(given["stop"]), how, seed, **wanted)


def sampling(given: dict, length: int, artifact: Artifact) -> dict | None:
    """Arguments of `Sampling`; None for the likeliest token each time. length: tokens of the prompt."""
    from lib.decoding.penalties import Bias, Used  # needs torch

    penalties = []
    if given["frequency_penalty"] or given["presence_penalty"]:
        penalties.append(Used(given["frequency_penalty"], given["presence_penalty"], length))
    if given["logit_bias"]:
        penalties.append(Bias(biases(given["logit_bias"], artifact.vocabulary)))
    if given["temperature"] == 0:
        return {"penalties": tuple(penalties)} if penalties else None
    names = ("temperature", "top_k", "top_p", "typical_p")
    return {**{name: given[name] for name in names}, "penalties": tuple(penalties)}


def biases(given: dict, vocabulary: int) -> dict[int, float]:
    """Token id -> number; raises a `Problem` for ids that the model lacks and numbers beyond 100."""
    found = {}
    for name, value in given.items():
        is_id = name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocabulary
        number = isinstance(value, int | float) and not isinstance(value, bool) and -100 <= value <= 100
        if not is_id or not number:
            raise invalid(
                f"`logit_bias` gives {name[:20]!r} a value; token ids below {vocabulary} and numbers from -100 to 100 "
                "are allowed.",
                "logit_bias",
            )
        found[int(name)] = float(value)
    return found


def prompts(given, artifact: Artifact, limits: Limits) -> list[list[int]]:
    """Token ids of each prompt of a completion: of a text, of several, or ids themselves."""
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list) and given and all(type(each) is int for each in given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise invalid("`prompt` must be a string, a list of strings, token ids, or a list of lists of them.", "prompt")
    if len(given) > limits.sequences:
        raise invalid(f"`prompt` has {len(given)} texts; at most {limits.sequences} are allowed.", "prompt")
    return [_prompt(each, artifact) for each in given]


def _prompt(given, artifact: Artifact) -> list[int]:
    if isinstance(given, str):
        tgi_parameters.check_text(given, "prompt")
        return _ids(given, artifact)
    if not isinstance(given, list) or not all(type(each) is int for each in given):
        raise invalid("`prompt` must be a string, a list of strings, token ids, or a list of lists of them.", "prompt")
    if any(not 0 <= each < artifact.vocabulary for each in given):
        raise invalid(
            f"`prompt` holds token ids that the model lacks; it knows 0 to {artifact.vocabulary - 1}.", "prompt"
        )
    return given


def chat(given: list[dict], artifact: Artifact) -> list[int]:
    """Token ids of a chat, by the model's chat template."""
    if not given:
        raise invalid("`messages` is empty; one message or more is needed.", "messages")
    if not getattr(artifact.tokenizer, "chat_template", None):
        raise invalid("this model has no chat template; use /v1/completions.", "messages")
    messages = [_message(place, each) for place, each in enumerate(given)]
    try:
        with artifact.lock:
            said = artifact.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # whatever a template raises about roles and their order
        reason = str(error).splitlines()[0][:200] if str(error) else "it fails"
        raise invalid(f"the model's chat template refuses these messages: {reason}", "messages") from None
    return _ids(said, artifact)


def _ids(text: str, artifact: Artifact) -> list[int]:
    least = artifact.least_tokens(text)
    if least > artifact.longest_prompt:
        raise _too_long(f"at least {least}", artifact)
    return artifact.ids(text)


def _too_long(count: str, artifact: Artifact) -> Problem:
    said = f"The prompt has {count} tokens; at most {artifact.longest_prompt} are allowed."
    return Problem("validation", said, "prompt", "context_length_exceeded")


def _message(place: int, given: dict) -> dict[str, str]:
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str) or not role:
        raise invalid(f"message {place} has no `role`; a string is needed.", "messages")
    if isinstance(content, list):
        parts = [
            each.get("text") if isinstance(each, dict) and each.get("type") == "text" else None for each in content
        ]
        if not all(isinstance(each, str) for each in parts):
            raise invalid(f"message {place} has parts that are no text; only text is read.", "messages")
        content = "".join(parts)
    if content is None and role == "assistant":
        content = ""
    if not isinstance(content, str):
        raise invalid(f"message {place} has no `content`; a string or parts of text are needed.", "messages")
    for each in (role, content):
        tgi_parameters.check_text(each, "messages")
    return {"role": role, "content": content}
