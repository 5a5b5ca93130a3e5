"""What architectures of our own do to what a head has read, before it reaches the output matrix.

A layer, yₕ = φ(Wₕ xₕ), or xₕ + φ(Wₕ xₕ) with the residual (`lib.architectures.headwise`), or a sigmoid gate that the
normed stream decides, on a head or on each of its elements (`lib.architectures.gates`). Needs no torch.
"""

from dataclasses import dataclass

from lib.runtime import config_values

BENDS = ("identity", "relu", "gelu", "silu")  # φ, in the order in which cpu.cpp counts them
GATES = ("head", "element")
DEFAULTS = {  # of each family: settings beside Llama's, as their classes have them
    "thimble_headwise": {"head_activation": "gelu", "head_residual": False},
    "thimble_gated": {"attention_gate": "head"},
}
GATE = "head_gate"  # the matrix of the gates, by the names of `families.LINEARS`


@dataclass(frozen=True)
class AfterHeads:
    """kind: "" (nothing), "layer" or "gate". bend, residual: φ, and whether xₕ is added. gates: rows of the gate."""

    kind: str = ""
    bend: str = "identity"
    residual: bool = False
    gates: int = 0

    def linears(self, heads: int) -> dict[str, str]:
        """The matrices beside Llama's by name, each with its module in a block."""
        if self.kind == "layer":
            return {layer(head): f"self_attn.head_proj.{head}" for head in range(heads)}
        return {GATE: "self_attn.attention_gate"} if self.kind == "gate" else {}

    def shape(self, name: str, size: int, hidden: int) -> tuple[int, int]:
        """Rows and columns of one of them, for heads of `size` and a stream of `hidden` numbers."""
        return (self.gates, hidden) if name == GATE else (size, size)


def layer(head: int) -> str:
    """The name of the matrix of a head's layer."""
    return f"head_layer_{head}"


def read(found: dict, heads: int, size: int) -> AfterHeads:
    """From the settings of a configuration; ValueError for values that its class refuses."""
    if "head_activation" in found:
        bend = config_values.one_of(found, "head_activation", BENDS)
        return AfterHeads("layer", bend, config_values.flag(found, "head_residual"))
    if "attention_gate" in found:
        each = config_values.one_of(found, "attention_gate", GATES) == "element"
        return AfterHeads("gate", gates=heads * size if each else heads)
    return AfterHeads()
