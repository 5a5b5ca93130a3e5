"""Compiled products against the formula in float64, on every instruction set that this CPU has; the kernels' cache."""

import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.quantized.levels import LEVELS
from lib.runtime import cpu, modules, pack, torch_kernels
from tests.test_pack import KINDS, random

TOOLS = {tool: shutil.which(tool, path=cpu.search_path()) for tool in (cpu._compiler(), "ninja")}
needs_compiler = pytest.mark.skipif(not all(TOOLS.values()), reason="no C++ compiler or no ninja")
PATHS = [name for name, (_, needed) in cpu.PATHS.items() if needed <= cpu.cpu_flags()]
SHAPES = [(1, 32, 32), (17, 64, 64), (33, 192, 96), (5, 100, 100), (40, 128, 32), (20, 192, 192)]


@pytest.fixture
def forgetful(monkeypatch):
    """Nothing that an earlier test has opened or said is remembered, nor what happens here."""
    for cached in (cpu._library, cpu.team):
        cached.cache_clear()
    monkeypatch.setattr(cpu, "_told", set())
    yield
    for cached in (cpu._library, cpu.team):
        cached.cache_clear()


def formula(matrix, x, block):
    """Σ_b s_g s_b Σ_k (q_k - z_g) a_k in float64, with the inputs rounded in float32 as the kernels do."""
    values, missing = matrix.dense().double(), -x.shape[1] % block
    x = torch.nn.functional.pad(x, (0, missing)).reshape(len(x), -1, block)
    most = x.abs().amax(-1, keepdim=True)
    codes = (x * torch.where(most > 0, 127 / most, 0)).round()
    rounded = (codes.double() * (most / 127).double()).reshape(len(x), -1)
    return rounded[:, : values.shape[1]] @ values.T


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_products_equal_the_formula_for_any_number_of_rows(path, bits):
    generator = torch.Generator().manual_seed(bits)
    for rows, columns, group in SHAPES:
        for symmetric, levels in KINDS:
            matrix = random(rows, columns, bits, group, symmetric, levels=levels)
            packed = pack.pack(matrix)
            x, bias = torch.randn(29, columns, generator=generator), torch.randn(rows, generator=generator)
            x[3] = 0
            wanted = formula(matrix, x, packed.block) + bias.double()
            found = cpu.product(packed, x.numpy(), bias.numpy(), path=path)
            torch.testing.assert_close(torch.from_numpy(found).double(), wanted, rtol=1e-5, atol=2e-5 * 2**bits)
            for count in (1, 2, 3, 7, 13, 24):  # the same bits whatever else is in the batch
                assert np.array_equal(cpu.product(packed, x[:count].numpy(), bias.numpy(), path=path), found[:count])
            assert np.array_equal(cpu.rows(packed, 0, rows, path=path), matrix.dense().numpy())


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
def test_plain_weights_meet_unrounded_inputs(path):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(33, 50, generator=generator), torch.randn(9, 50, generator=generator)
    found = cpu.product(pack.pack_plain(weight), x.numpy(), path=path)
    wanted = x.double() @ weight.to(torch.bfloat16).double().T
    torch.testing.assert_close(torch.from_numpy(found).double(), wanted, rtol=1e-5, atol=1e-4)


def test_plain_torch_computes_the_same():
    for bits, levels in itertools.product((2, 3, 4, 8), LEVELS):
        matrix = random(33, 192, bits, 96, levels=levels)
        packed, x = pack.pack(matrix), torch.randn(5, 192, generator=torch.Generator().manual_seed(bits))
        wanted = formula(matrix, x, packed.block)
        torch.testing.assert_close(torch_kernels.product(packed, x).double(), wanted, rtol=1e-5, atol=1e-3)


def test_the_librarys_product_takes_dequantized_tiles():
    matrix = random(70, 64, 4, 32)
    x, bias = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)), torch.ones(70)
    found = modules.dequantized_product(pack.pack(matrix), x, bias, tile=32).float()
    wanted = x.to(torch.bfloat16).float() @ matrix.dense(torch.bfloat16).float().T + 1
    assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_without_a_compiler_a_line_says_so_and_the_result_is_the_same(forgetful, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    matrix = random(33, 128, 3, 64)
    layer, x = modules.PackedLinear(pack.pack(matrix), torch.ones(33)), torch.randn(2, 128)
    found = layer(x)
    assert torch.equal(modules.PackedLinear(pack.pack(matrix), torch.ones(33))(x), found)
    torch.testing.assert_close(found.double(), formula(matrix, x, 64) + 1, rtol=1e-5, atol=1e-3)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "no-such-compiler is not installed" in said and "plain torch" in said
    assert not list(tmp_path.glob("thimble*"))


def test_an_instruction_set_that_the_cpu_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"avx2", "fma"}))
    assert cpu.instruction_set() == "avx2"
    with pytest.raises(ValueError, match=r"'avx512' needs avx512_vnni, avx512bw.*this CPU lacks.*'avx2'"):
        cpu.library("avx512")
    with pytest.raises(ValueError, match=r"'avx521' is unknown.*did you mean 'avx512'"):
        cpu.library("avx521")
    monkeypatch.setattr(cpu, "cpu_flags", frozenset)
    assert cpu.instruction_set() == "portable"


def test_flags_are_read_from_cpuinfo(tmp_path, monkeypatch):
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor : 0\nflags\t\t: fpu avx2 fma\n")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    assert cpu.cpu_flags.__wrapped__(listed) == {"fpu", "avx2", "fma"}
    assert cpu.cpu_flags.__wrapped__(tmp_path / "absent") == frozenset()
    monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
    assert cpu.cpu_flags.__wrapped__(listed) == frozenset()


def built(folder, **changes):
    """A folder that looks like a finished build."""
    folder.mkdir()
    (folder / "thimble.so").write_bytes(b"a library")
    facts = {"path": "portable", "needs": [], "sha256": cpu.files.sha256(folder / "thimble.so")}
    (folder / "built.json").write_text(json.dumps(facts | changes))
    return folder


def test_unfit_libraries_are_found_out_before_they_are_opened(forgetful, tmp_path, capsys):
    assert cpu.sound(tmp_path / "absent") is None
    assert cpu.sound(built(tmp_path / "good")) is True
    assert cpu.sound(built(tmp_path / "other", needs=["amx_int8", "fpu2"])) is False
    assert "fpu2, which this CPU lacks" in capsys.readouterr().out
    damaged = built(tmp_path / "damaged")
    (damaged / "thimble.so").write_bytes(b"half a libr")
    assert cpu.sound(damaged) is False and "not those that were built" in capsys.readouterr().out
    (built(tmp_path / "cut") / "built.json").write_text("{")
    assert cpu.sound(tmp_path / "cut") is False and "incomplete" in capsys.readouterr().out


def test_a_damaged_cache_is_built_again(forgetful, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(cpu, "build", lambda path, folder: (_ for _ in ()).throw(RuntimeError("asked to build")))
    (built(cpu.place("portable")) / "thimble.so").write_bytes(b"other")
    assert cpu.library("portable") is None
    said = capsys.readouterr().out
    assert "building them again" in said and "asked to build" in said


def test_changed_sources_flags_or_torch_have_another_place(monkeypatch, tmp_path):
    before = cpu.place("portable")
    assert cpu.place("portable") == before != cpu.place("avx2")
    monkeypatch.setattr(cpu.importlib.metadata, "version", lambda name: "9.9")
    assert cpu.place("portable") != before
    monkeypatch.undo()
    monkeypatch.setattr(cpu, "FLAGS", ["-O0"])
    assert cpu.place("portable") != before
    monkeypatch.undo()
    monkeypatch.setattr(cpu, "SOURCES", ("cpu.cpp",))
    assert cpu.place("portable") != before


@needs_compiler
@pytest.mark.skipif(not (Path(sys.executable).parent / "ninja").is_file(), reason="ninja is not beside the interpreter")
def test_ninja_is_found_beside_the_interpreter(forgetful, tmp_path, monkeypatch):
    """As `.venv/bin/python` is called without `activate`: only the compiler's own folder is on PATH."""
    tools, sources = tmp_path / "tools", tmp_path / "sources"
    for folder in (tools, sources):
        folder.mkdir()
    for tool in (cpu._compiler(), "as", "ld", "which"):  # torch asks `which` for the compiler
        if shutil.which(tool):
            (tools / Path(tool).name).symlink_to(shutil.which(tool))
    (sources / "cpu.cpp").write_text("int nothing() { return 0; }")
    monkeypatch.setattr(cpu, "_HERE", sources)
    monkeypatch.setenv("PATH", str(tools))
    cpu.build("portable", tmp_path / "a library")
    assert cpu.sound(tmp_path / "a library") is True and os.environ["PATH"] == str(tools)


@needs_compiler
def test_code_that_does_not_compile_leaves_nothing_behind(forgetful, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "_HERE", tmp_path)
    (tmp_path / "cpu.cpp").write_text("int broken( {")
    with pytest.raises(RuntimeError, match=r"compiling failed: .*error"):
        cpu.build("portable", tmp_path / "library")
    assert not (tmp_path / "library").exists()
