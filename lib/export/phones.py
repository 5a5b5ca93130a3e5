"""Phones and tablets for `mobile.plan`: their numbers are those of the sources named, none was measured here.

A share is what an app gets of the memory. iOS ends an app at a limit of its own, about half of the memory (the table of
limits at stackoverflow.com/questions/5887248). Android has no such limit for native memory: its low-memory killer acts
when the system as a whole runs short, so what an app may take is what was seen to be free.
"""

from typing import NamedTuple

_GIGA = 10**9


class Phone(NamedTuple):
    """memory: bytes. share: of it, that an app gets. bandwidth: bytes a second, None if unknown. source: of all."""

    memory: float
    share: float
    bandwidth: float | None
    source: str


PHONES = {
    "android-8gb": Phone(
        8 * _GIGA, 0.5, 67.2 * _GIGA,
        "Galaxy S23 with 8 GB: 4 GB were free when Llama 2 7B in 4 bits died (executorch #3599); LPDDR5X at 4200 MHz "
        "on 64 bits (data sheet of the Snapdragon 8 Gen 2)",
    ),
    "competition-12gb": Phone(
        12 * _GIGA, 0.1, None, "a tenth, as the Edge-Device LLM Competition (NeurIPS 2024) advises"
    ),
    "snapdragon-8-gen-3-12gb": Phone(
        12 * _GIGA, 0.5, 76.8 * _GIGA,
        "LPDDR5X at 4800 MHz on 64 bits (data sheet); the share is that of android-8gb; Llama 2 13B in 4 bits died on "
        "a phone with this chip, 7B ran (mlc-llm #1487)",
    ),
    "iphone-15-6gb": Phone(
        6 * _GIGA, 0.5, 51.2 * _GIGA,
        "half, as of iPhones of 3 and 4 GB (stackoverflow.com/questions/5887248); 7B in 4 bits was killed, 2B ran "
        "(mlc-llm #2028); LPDDR5 at 3200 MHz on 64 bits",
    ),
    "ipad-8gb": Phone(
        8 * _GIGA, 0.375, None, "iPadOS 26.4: 3 of 8 GB (Apple's developer forum, thread 826325); 6 of 8 GB before"
    ),
}  # fmt: skip
