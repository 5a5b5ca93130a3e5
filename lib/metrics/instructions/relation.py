"""How a count is compared with what an instruction asks for."""


def holds(count: int, relation: str, threshold: int) -> bool:
    """Whether `count` is "less than" or "at least" `threshold`; raises ValueError for any other relation."""
    if relation == "less than":
        return count < threshold
    if relation == "at least":
        return count >= threshold
    raise ValueError(
        f"relation={relation!r}; 'less than' and 'at least' are allowed; mend the instruction's arguments."
    )
