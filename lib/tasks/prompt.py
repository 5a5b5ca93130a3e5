"""Prompt formatting: turns a question into the text that a model reads, plain or through a chat template.

The forms are those of lm-evaluation-harness (Gao et al. 2021, doi:10.5281/zenodo.5371628): description, examples with
their answers, blank lines between, then the question; in a chat the description is the system message, and every
example a turn of user and assistant.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """question: what is asked; examples: (question, answer) pairs before it; description: before all of them.

    delimiter: between question and answer in plain text. prefix: how the answer begins.
    """

    question: str
    examples: tuple[tuple[str, str], ...] = ()
    description: str = ""
    delimiter: str = " "
    prefix: str = ""

    def render(self, chat=None) -> str:
        """The text for a model: plain, or by the chat template of the tokenizer `chat`."""
        return self._plain() if chat is None else self._chat(chat)

    def _plain(self):
        examples = "".join(f"{question}{self.delimiter}{answer}\n\n" for question, answer in self.examples)
        spaced = self.question[-1:].isspace() or self.prefix[:1].isspace()
        gap = self.delimiter if self.prefix and self.question and not spaced else ""
        return f"{self.description}{examples}{self.question}{gap}{self.prefix}"

    def _chat(self, tokenizer):
        turns = [{"role": "system", "content": self.description}] if self.description else []
        for question, answer in self.examples:
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        turns.append({"role": "user", "content": self.question})
        if self.prefix:
            turns.append({"role": "assistant", "content": self.prefix})
        return _apply(tokenizer, turns, bool(self.prefix))


def check_chat(tokenizer) -> None:
    """Raise `ValueError` for a tokenizer without chat template."""
    if tokenizer is not None and not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ValueError(
            f"chat={name!r} has no chat template; a tokenizer with one is allowed, or chat=None for plain prompts; "
            "take the instruction-tuned version of the model, or leave chat out."
        )


def _apply(tokenizer, turns, begun):
    """The template's text; templates that know no system role get the turns without it, as in the harness."""
    from jinja2.exceptions import TemplateError  # only for chat templates, which load it themselves

    options = {"tokenize": False, "add_generation_prompt": not begun, "continue_final_message": begun}
    try:
        return tokenizer.apply_chat_template(turns, **options)
    except TemplateError:
        return tokenizer.apply_chat_template([turn for turn in turns if turn["role"] != "system"], **options)
