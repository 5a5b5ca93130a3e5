"""Finished blocks on disk: a killed walk resumes, with calibration or without, and another job is refused."""

import importlib

import pytest
import torch

from lib.jobs import JobState, fingerprint
from lib.models import capture
from lib.quantized.linear import QuantLinear
from lib.quantizers import METHODS, by_name, calibrate, gptq, rtn
from tests import tiny
from tests.test_calibrate import GRID, same, tokens


def test_a_killed_walk_resumes_and_ends_in_the_same_bytes(tmp_path):
    whole = gptq.quantize_(tiny.llama(), tokens(), **GRID)
    state, calls = tmp_path / "state", []
    kept = gptq.quantize_(tiny.llama(), tokens(), **GRID, state=state)
    for left in (0, 1, 3):
        for file in sorted(state.glob("block-*"))[left:]:
            file.unlink()
        resumed = gptq.quantize_(tiny.llama(), tokens(), **GRID, state=state)
        assert same(whole, resumed) and same(whole, kept)
    # with every block on disk the algorithm is not called at all
    visit = lambda *args: calls.append(args)  # noqa: E731
    ids = tokens()
    job = {"method": "gptq", **fingerprint(tiny.llama(), ids), **GRID}
    again = JobState(state, **job, symmetric=False, levels="integer", act_order=True, candidates=8)
    assert same(whole, calibrate.sequential(tiny.llama(), ids, visit, state=again)) and not calls


def test_blocks_from_a_state_compute_where_their_model_is(tmp_path, monkeypatch):
    ids, folder = tokens(), tmp_path / "state"
    visit = lambda names, weight, hessian: rtn.rtn(torch.ones(weight.shape), **GRID)  # noqa: E731
    kept = calibrate.sequential(tiny.llama(), ids, visit, state=JobState(folder, job="any"))
    seen, forward = set(), QuantLinear.forward
    monkeypatch.setattr(
        QuantLinear, "forward", lambda self, x: seen.add((self.codes.device.type, x.device.type)) or forward(self, x)
    )
    captured = capture.capture(tiny.llama(), ids)
    monkeypatch.setattr(capture, "capture", lambda *_: captured)  # masks can't be made on "meta"
    for state in (JobState(folder, job="any"), None):
        # a device without memory: what a visit or a file makes on the processor shall not stay there
        done = calibrate.sequential(tiny.llama().to("meta"), ids, visit, state=state)
        assert done.keys() == kept.keys() and {each.codes.device.type for each in done.values()} == {"meta"}
    assert seen == {("meta", "meta")}


UNCALIBRATED = ["absmax", "zero_point", "rtn", "hqq", "codebook"]


@pytest.mark.parametrize("method", UNCALIBRATED)
def test_methods_without_calibration_resume_and_call_nothing_for_finished_blocks(tmp_path, monkeypatch, method):
    quantize_, module = by_name(method), importlib.import_module(METHODS[method])
    whole = quantize_(tiny.llama(), **GRID)
    assert same(whole, quantize_(tiny.llama(), **GRID, state=tmp_path)) and len(list(tmp_path.glob("block-*"))) == 4
    sorted(tmp_path.glob("block-*"))[2].unlink()
    called, one = [], getattr(module, method)

    def counted(*args, **settings):
        called.append(1)
        return one(*args, **settings)

    counted.__name__ = method
    monkeypatch.setattr(module, method, counted)
    model = tiny.llama()
    resumed = quantize_(model, **GRID, state=tmp_path)
    assert list(resumed) == list(calibrate.layers(model)) and same(whole, resumed) and len(called) == 7
    assert all(layer.quantized.codes is resumed[name].codes for name, layer in calibrate.layers(model).items())


@pytest.mark.parametrize("method", UNCALIBRATED)
def test_without_calibration_another_model_method_or_parameter_is_refused(tmp_path, method):
    quantize_ = by_name(method)
    quantize_(tiny.llama(), **GRID, state=tmp_path)
    with pytest.raises(ValueError, match=r"model=\w{12} there, \w{12} here"):
        quantize_(tiny.llama(seed=1), **GRID, state=tmp_path)
    with pytest.raises(ValueError, match="group_size=32 there, 16 here"):
        quantize_(tiny.llama(), **GRID | {"group_size": 16}, state=tmp_path)
    with pytest.raises(ValueError, match=f"method={method} there, clip here|calibration=None there, "):
        by_name("codebook" if method == "codebook" else "clip")(tiny.llama(), tokens(), **GRID, state=tmp_path)


def test_symmetric_grids_are_kept_too(tmp_path):
    first = gptq.quantize_(tiny.llama(), tokens(), **GRID, symmetric=True, state=tmp_path)
    again = gptq.quantize_(tiny.llama(), tokens(), **GRID, symmetric=True, state=tmp_path)
    assert same(first, again) and all(quantized.zero_point is None for quantized in again.values())


@pytest.mark.parametrize(
    ("change", "named"),
    [({"bits": 3}, r"bits=4 there, 3 here"), ({"ids": tokens(seed=1)}, "calibration="), ({"seed": 1}, "model=")],
)
def test_another_job_is_refused_with_both_values(tmp_path, change, named):
    gptq.quantize_(tiny.llama(), tokens(), **GRID, state=tmp_path)
    with pytest.raises(ValueError, match=named):
        gptq.quantize_(
            tiny.llama(seed=change.get("seed", 0)), change.get("ids", tokens()),
            **GRID | {"bits": change.get("bits", 4)}, state=tmp_path,
        )  # fmt: skip
