"""Tasks that need no data: written for this project, or made from the text that every Python carries.

They have the forms and rules of published tasks, but their numbers are comparable with nothing outside this project.
"""

from lib.tasks import gsm8k, humaneval, ifeval
from lib.tasks.form import Form
from lib.tasks.multiple_choice import choice
from lib.tasks.packaged import needle

_FACTS = "{stripped}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:"

TASKS: dict[str, Form] = {
    "packaged_facts": choice("packaged_facts", _FACTS, shown=True),
    "packaged_continuation": choice("packaged_continuation", "{question}"),
    "packaged_arithmetic": Form("packaged_arithmetic", shots=8, examples=gsm8k.WORKED, **gsm8k.RULES),
    "packaged_instructions": Form("packaged_instructions", **ifeval.RULES),
    "packaged_programs": Form("packaged_programs", humaneval.build, humaneval.score, **humaneval.RULES),
    "packaged_needle": Form("packaged_needle", needle.build, needle.score, ("recall",), **needle.RULES),
}
