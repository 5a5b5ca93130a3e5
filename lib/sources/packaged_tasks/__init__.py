"""Rows of the tasks that need no data: written for this project, or made from the text that every Python carries."""

from lib.sources.packaged_tasks import arithmetic, continuation, facts, hidden_numbers, instructions, programs

DATA = {
    "packaged_facts": facts.rows,
    "packaged_continuation": continuation.rows,
    "packaged_arithmetic": arithmetic.rows,
    "packaged_instructions": instructions.rows,
    "packaged_programs": programs.rows,
    "packaged_needle": hidden_numbers.rows,
}
