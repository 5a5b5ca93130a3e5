"""Teacher and student run their common blocks once, in every family, and only where these compute the same."""

import copy

import pytest
import torch
import transformers

from lib.models import partial
from lib.pruners import depth, heal
from lib.trainers import adapters, distill, loop, prefix
from tests import tiny

IDS = tiny.tokens(4, 16)
SIZES = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "pad_token_id": 0}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1, "bos_token_id": 0}
FAMILIES = {
    "tuples": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "tuples, biased attention": ("Falcon", {"alibi": True, "multi_query": False, "parallel_attn": False}),
    "learned positions": ("OPT", {"ffn_dim": 96}),
    "projected": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "parallel": ("GPTNeoX", {"rotary_pct": 0.25}),
    "windows": ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6}),
    "factors": ("Granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.4}),
    "fused": ("Phi3", {}),
    "partial rotation": ("StableLm", {"partial_rotary_factor": 0.25}),
}


def build(name):
    family, settings = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**SIZES, **settings)
        return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def expected(teacher, student):
    with torch.no_grad():
        p, q = (model(input_ids=IDS, use_cache=False).logits.log_softmax(-1)[:, :-1] for model in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_distillation_that_shares_blocks_is_the_divergence_of_both_models(name):
    teacher = build(name)
    student = copy.deepcopy(teacher)
    depth.drop_blocks_(student, [2])
    teacher_loss = distill.Distillation(teacher)
    ran = []
    for block in list(student.model.layers if hasattr(student, "model") and hasattr(student.model, "layers") else []):
        block.register_forward_hook(lambda *_: ran.append(1))
    with adapters.full_(student, first=2) if name != "projected" else adapters.lora_(student, first=2):
        teacher_loss.check(student)
        assert teacher_loss._shared[student][0] == 2
        found = teacher_loss(student, {"input_ids": IDS})
        found.backward()
        assert found.item() == pytest.approx(expected(teacher, student), rel=1e-5)
        assert all(weight.grad is not None for weight in student.parameters() if weight.requires_grad)
    assert not any("forward" in module.__dict__ for module in (*teacher.modules(), *student.modules()))


@pytest.mark.parametrize("way", heal.WAYS)
def test_families_whose_blocks_answer_tuples_are_healed_every_way(way):
    for name in ("tuples", "tuples, biased attention"):
        teacher = build(name)
        student = copy.deepcopy(teacher)
        depth.drop_blocks_(student, [2])
        assert isinstance(partial.answers(student)(IDS.float()), tuple)
        before = expected(teacher, student)
        history = heal.heal_(student, IDS, teacher=teacher, way=way, first=2, steps=2, learning_rate=1e-4)
        assert len(history.losses) == 2
        if heal.WAYS[way].teacher:
            assert history.losses[0] == pytest.approx(before, rel=1e-5)
        assert expected(teacher, student) != before


@pytest.mark.parametrize(
    "change",
    [{"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rms_norm_eps": 1e-3}, {"sliding_window": 6}],
)
def test_equal_weights_under_other_settings_are_not_shared(change):
    family = tiny.mistral if "sliding_window" in change else tiny.llama
    teacher, student = family(), family(**change)
    student.load_state_dict(teacher.state_dict())
    with adapters.full_(student, first=2):
        assert prefix.shared(teacher, student) == 0
        loss = distill.Distillation(teacher)
        loss.check(student)
        assert loss(student, {"input_ids": IDS}).item() == pytest.approx(expected(teacher, student), rel=1e-5, abs=1e-6)


def test_blocks_that_a_teacher_runs_otherwise_are_not_shared():
    teacher = tiny.llama()
    student = copy.deepcopy(teacher)
    teacher.model.layers[1].register_forward_hook(lambda _, __, output: output * 1.5)
    with adapters.full_(student, first=3):
        assert prefix.shared(teacher, student) == 1
    assert loop.tokens_of(IDS, student).shape == IDS.shape
