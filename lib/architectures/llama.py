"""The baseline: transformers' own Llama, as it is."""

from transformers import LlamaForCausalLM

MODEL = LlamaForCausalLM
