"""A conversation with its tokens coloured by whether they are learned: what a mask covers, token by token."""

from html import escape

from IPython.display import HTML

from lib.report.style import INK, MUTED
from lib.trainers.minibatch import IGNORED

LEARNED, READ = "#bfe3c8", "#eceff2"  # backgrounds of tokens with a loss, and of those that are only read


def coloured(row: dict, tokenizer, *, title: str = "") -> HTML:
    """The tokens of `row` (`input_ids`, `labels`), one box each: green those that have a loss, grey all others.

    Line ends are shown, and a box tells its token's id.
    """
    boxes = []
    for token, label in zip(row["input_ids"].tolist(), row["labels"].tolist()):
        text = tokenizer.decode([token])
        colour = READ if label == IGNORED else LEARNED
        shown = escape(text).replace("\n", "↵<br>").replace(" ", "&nbsp;") or "∅"
        look = f"background:{colour};color:{INK};margin:1px;padding:1px 2px;border-radius:3px"
        boxes.append(f'<span title="{token}" style="{look}">{shown}</span>')
    learned = sum(label != IGNORED for label in row["labels"].tolist())
    said = f"{escape(title)}{': ' if title else ''}{learned} of {len(boxes)} tokens are learned"
    lines = f'<div style="font-family:monospace;line-height:1.7;font-size:12px">{"".join(boxes)}</div>'
    return HTML(f'<p style="color:{MUTED}">{said}</p>{lines}')
