"""Conversations to train on must not hold the samples that the model is tested on: such conversations are left out."""

from collections import Counter
from collections.abc import Iterable, Sequence

from lib.evaluation import comparison
from lib.metrics import guards
from lib.sources.conversations import Conversation
from lib.tasks.task import Task


def without(
    conversations: Sequence[Conversation], tasks: Iterable[Task], *, words: int = guards.WORDS
) -> list[Conversation]:
    """`conversations` without those that share `words` words in a row with a sample of `tasks`; says how many.

    The rule is that of `guards.contamination`: case and punctuation do not count, shorter samples are looked up as a
    whole. Raises ValueError where nothing would be left.
    """
    samples = {f"{task.name} {sample.id}": comparison.prompt(sample) for task in tasks for sample in task.samples}
    found = guards.contaminated(samples, [text(each) for each in conversations], words=words)
    left = [each for place, each in enumerate(conversations) if place not in found]
    by_task = Counter(sample.split(" ")[0] for sample, _ in found.values())
    said = "".join(f", {number} with {name}" for name, number in by_task.items())
    which = f"{len(found)} of {len(conversations)} conversations"
    print(f"{which} share {words} words in a row with one of {len(samples)} samples{said}")
    if not left:
        raise ValueError(
            f"all {len(conversations)} conversations hold samples of the tasks; others are needed to train on; choose "
            "another data set."
        )
    return left


def text(conversation: Conversation) -> str:
    """All that is said in a conversation, its answers of a preference included."""
    said = [turn.text for turn in conversation.turns]
    return "\n".join([*said, *filter(None, (conversation.chosen, conversation.rejected))])
