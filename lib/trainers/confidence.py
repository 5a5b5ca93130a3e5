"""How sure a teacher is of a text: the coefficient γ of the confidence-aware divergence.

Source: Du et al., "BitDistiller: Unleashing the Potential of Sub-4-Bit LLMs via Self-Distillation", arXiv 2402.10631,
section 3.2: γ is the teacher's probability of a training text's own tokens, averaged over each text and over texts.
"""

import torch
from torch import nn

from lib import progress
from lib.metrics.score import Score, from_values
from lib.models import blocks, logits
from lib.trainers import minibatch, training_data


@torch.no_grad()
def measure(teacher: nn.Module, data) -> Score:
    """γ = E_x [1/|y| Σ_t p(y_t | x, y_<t)], from 0 to 1, over the rows of `data`; y are the tokens with a label.

    data: what `loop.train_` takes and has a length. Raises ValueError for a stream and for data without one label.
    """
    source = training_data.of(data, teacher)
    if source.count is None:
        raise ValueError("the data is a stream, of which nobody knows the end; its first rows as a list are allowed.")
    check, shares = minibatch.checker(teacher), []
    run, projection = logits.split(teacher)
    vocabulary, device = blocks.head(teacher).out_features, logits.device(teacher)
    with logits.evaluating(teacher):
        for place in progress.bar(range(source.count), desc="confidence", unit="row"):
            batch = minibatch.collate([check(source.rows[place], place)])
            batch = {name: each.to(device) for name, each in batch.items()}
            targets = minibatch.targets(batch)
            if not len(targets):
                continue
            rows = logits.rows(minibatch.select(run(**minibatch.inputs(batch))[:, :-1], batch)[None], projection)
            chunks = list(logits.chunks(len(targets), vocabulary))
            found = [logits.log_probabilities(rows, some, f"row {place}") for some in chunks]
            sure = [each.gather(-1, targets[some, None]).exp().sum() for each, some in zip(found, chunks)]
            shares.append(float(sum(sure)) / len(targets))
    if not shares:
        raise ValueError(f"none of the {source.count} rows has a token with a label; answers are needed; check labels.")
    return from_values(shares, "probability", higher_is_better=None)
