"""What a data set of conversations holds, before anything is trained on it: turns, tokens, repetitions, what is cut."""

from collections import Counter
from collections.abc import Sequence

import pandas as pd
import torch

from lib.sources.conversations import Conversation
from lib.trainers import answer_rows
from lib.trainers.minibatch import IGNORED

QUANTILES = (0.1, 0.5, 0.9)


def table(conversations: Sequence[Conversation], tokenizer, *, length: int, answers: str = "all") -> pd.DataFrame:
    """A row each for turns, tokens, those of answers and those before the first answer: mean, 10 to 90 %, least, most.

    `attrs` hold counts: conversations; how many are "cut" at `length` and "dropped" because no answer would be left
    (`answer_rows.rows` does both); "repeated", with turns equal to an earlier one's; "several turns"; "system". Errors
    are those of `answer_rows.encode`.
    """
    answer_rows.check(tokenizer, length, answers)
    seen, counts, numbers = set(), Counter(conversations=len(conversations)), []
    for each in conversations:
        ids, labels, _ = answer_rows.encode(each.turns, tokenizer, answers=answers, where=each.where)
        learned = (labels != IGNORED).nonzero()[:, 0]
        numbers.append((len(each.turns), len(ids), len(learned), int(learned[0]) if len(learned) else len(ids)))
        counts["cut"] += len(ids) > length
        counts["dropped"] += not bool((labels[1:length] != IGNORED).any())
        counts["repeated"] += each.turns in seen
        counts["several turns"] += sum(turn.role == "assistant" for turn in each.turns) > 1
        counts["system"] += each.turns[0].role == "system"
        seen.add(each.turns)
    columns = ["turns", "tokens", "tokens of answers", "tokens before an answer"]
    values = torch.tensor(numbers, dtype=torch.float64)
    quantiles = values.quantile(torch.tensor(QUANTILES, dtype=torch.float64), dim=0)
    found = {"mean": values.mean(0), "least": values.amin(0), "most": values.amax(0)}
    found |= {f"{share:.0%}": row for share, row in zip(QUANTILES, quantiles)}
    made = pd.DataFrame({name: row.tolist() for name, row in found.items()}, index=columns)
    made.attrs = dict(counts)
    return made
