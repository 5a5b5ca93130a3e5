"""The tokenizer in a checkpoint's folder, as transformers reads it."""

from pathlib import Path

from lib.files import place


def tokenizer(folder: Path | str):
    """The tokenizer in `folder`; ValueError where there is none, or one with an empty vocabulary."""
    from transformers import AutoTokenizer  # loads torch; `models.find` does without

    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        known = isinstance(error, OSError | ValueError | KeyError | TypeError)
        if not known and type(error) is not Exception:  # of a plain kind are those of the library of tokenizers
            raise
        found, reason = None, str(error).splitlines()[0] if str(error) else type(error).__name__
    else:
        reason = "its vocabulary is empty"
    if not found:  # without tokenizer files transformers can build one with an empty vocabulary
        raise ValueError(
            f"{place(folder)} has no usable tokenizer ({reason}); tokenizer.json must be beside the weights; copy it."
        )
    return found
