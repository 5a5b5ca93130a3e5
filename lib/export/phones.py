"""Phones and tablets for `mobile.plan`: their numbers are those of the sources named, none was measured here.

A share is what an app gets of the memory. iOS ends an app at a limit that depends on the device and is not published
(developer.apple.com, "Reducing your app's memory use"), so it is what apps had when they were ended. Android has no
limit for native memory: its low-memory killer acts when the system as a whole runs short (executorch #5582), so what
an app may take is what was seen to be free. A bandwidth is None where no source was found.
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
        "Galaxy S23 with 8 GB: 4 GB were free when Llama 2 7B in 4 bits died (executorch #3599); Snapdragon 8 Gen 2: "
        "LPDDR5X at 4200 MHz on 4 times 16 bits (prohardver.hu/hir/qualcomm_snapdragon_8_gen_2_soc_sugarkovetes.html)",
    ),
    "competition-12gb": Phone(
        12 * _GIGA, 0.1, None,
        "12 GB and a tenth of it, as the Edge-Device LLM Competition says (edge-llms-challenge.github.io)",
    ),
    "snapdragon-8-gen-3-12gb": Phone(
        12 * _GIGA, 0.5, 76.8 * _GIGA,
        "Llama 2 13B in 4 bits died on a Xiaomi 14 Pro, with how much free is not told (mlc-llm #1487), so the share "
        "is that of android-8gb; LPDDR5X at 4800 MHz (droidholic.com/snapdragon-8-gen-3-launched), on as many bits as "
        "the chip before it",
    ),
    "iphone-15-6gb": Phone(
        6 * _GIGA, 0.5, None,
        "a model of 3B weights, which takes 3 GB with its first prompt, was ended (mlc-llm #1643); 7B was ended, 2B "
        "ran (mlc-llm #2028)",
    ),
    "ipad-8gb": Phone(
        8 * _GIGA, 0.375, None,
        "iPadOS 26.4: 3 of 8 GB, and 6 of 8 before (developer.apple.com/forums/thread/826325)",
    ),
}  # fmt: skip

LLAMA_3_1_8B = {  # the shape in its config.json: what a plan needs to know of a model that is too large to load
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
