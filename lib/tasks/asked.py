"""Reads which tasks are asked and of how many samples: "hellaswag 200, arc_easy 100"."""

from lib import tasks as all_tasks


def read(tasks: str) -> dict[str, int]:
    """{name: samples} of "hellaswag 200, arc_easy 100"; raises ValueError for unknown names and for no number."""
    found = {}
    for each in filter(None, (part.strip() for part in tasks.split(","))):
        name, _, count = each.partition(" ")
        all_tasks.find(name)
        if not count.strip().isdigit() or int(count) < 2:
            raise ValueError(f"tasks={tasks!r}: {each!r} names no number from 2; write 'hellaswag 200, arc_easy 100'.")
        found[name] = int(count)
    return found
