"""Rotations against Sylvester's matrix, and against what makes a Hadamard matrix regular."""

from __future__ import annotations

import pytest
import torch

from adatsq_pipe.stages.numerics import transform


@pytest.mark.parametrize(("width", "block"), [(128, 128), (640, 128), (96, 32), (24, 8), (7, 1)])
def test_rotation_is_its_own_inverse_and_folds_into_weights(width: int, block: int) -> None:
    assert transform.block_size(width, 128) == block
    h = transform.hadamard(block, dtype=torch.float64)
    x, w = torch.randn(9, width, dtype=torch.float64), torch.randn(4, width, dtype=torch.float64)
    rotated = transform.rotate(x, h)
    assert torch.allclose(transform.rotate(rotated, h), x)
    assert torch.allclose(rotated @ transform.rotate(w, h).T, x @ w.T)


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_rotation_in_float32_is_the_exact_one_in_factors_or_not(block: int, tokens: int) -> None:
    x = torch.randn(2, tokens, 3 * block, generator=torch.Generator().manual_seed(0))[:, :, : 2 * block]
    before, h = x.clone(), transform.hadamard(block, dtype=torch.float32)
    exact = transform.rotate(x.double(), transform.hadamard(block, dtype=torch.float64))
    got = transform.rotate(x, h)
    assert got.shape == x.shape and torch.equal(x, before)
    assert torch.allclose(got.double(), exact, rtol=1e-6, atol=3e-6)
    wanted = x.clone().requires_grad_()
    transform.rotate(wanted, h).sum().backward()
    assert wanted.grad is not None and torch.allclose(wanted.grad, transform.rotate(torch.ones_like(x), h), atol=1e-5)


@pytest.mark.parametrize("fit", [True, False])
def test_rotation_in_bfloat16_is_the_exact_one_rounded(fit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform, "BF16_ON_CPU", fit)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    h = transform.hadamard(32, dtype=torch.bfloat16)
    exact = (x.double().unflatten(-1, (-1, 32)) @ h.double()).flatten(-2)
    got = transform.rotate(x, h)
    assert got.dtype == torch.bfloat16 and got.shape == x.shape
    assert torch.allclose(got.double(), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("block", [1, 2, 8, 64])
def test_the_matrix_is_sylvesters_over_the_root_of_its_size(block: int) -> None:
    h = transform.hadamard(block, dtype=torch.float64)
    for i in range(block):
        for j in range(block):
            assert float(h[i, j]) == pytest.approx((-1) ** (i & j).bit_count() / block**0.5)


def test_a_rotation_multiplies_every_block() -> None:
    x = torch.randn(3, 2, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = transform.hadamard(8, dtype=torch.float64)
    rotated = transform.rotate(x, h)
    for start in (0, 8, 16):
        assert torch.allclose(rotated[..., start : start + 8], x[..., start : start + 8] @ h)


@pytest.mark.parametrize(("width", "largest", "block"), [(96, 16, 16), (96, 1, 1), (48, 64, 16), (6, 64, 2), (5, 8, 1)])
def test_a_block_is_the_largest_power_of_two_that_divides(width: int, largest: int, block: int) -> None:
    assert transform.block_size(width, largest) == block


@pytest.mark.parametrize("block", [1, 4, 16, 64, 256])
def test_a_regular_matrix_is_a_hadamard_matrix_of_equal_sums(block: int) -> None:
    h = transform.hadamard(block, dtype=torch.float64, regular=True)
    assert torch.equal(h, h.T)
    assert torch.allclose(h.abs(), torch.full_like(h, block**-0.5))
    assert torch.allclose(h @ h, torch.eye(block, dtype=torch.float64), atol=1e-12)
    for sums in (h.sum(0), h.sum(1)):
        assert torch.allclose(sums, torch.ones(block, dtype=torch.float64))


@pytest.mark.parametrize("block", [16, 64, 256])
def test_a_regular_rotation_in_float32_is_the_exact_one(block: int) -> None:
    x = torch.randn(7, 2 * block, generator=torch.Generator().manual_seed(0))
    h = transform.hadamard(block, dtype=torch.float64, regular=True)
    exact = torch.cat([part.double() @ h for part in x.split(block, 1)], 1)
    assert torch.allclose(transform.rotate(x, h.float()).double(), exact, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize(("width", "largest", "block"), [(96, 256, 16), (128, 256, 64), (48, 4, 4), (6, 64, 1)])
def test_a_regular_block_is_the_largest_power_of_four_that_divides(width: int, largest: int, block: int) -> None:
    assert transform.block_size(width, largest, regular=True) == block


@pytest.mark.parametrize("regular", [False, True])
@pytest.mark.parametrize(("width", "block"), [(64, 16), (192, 64), (80, 16)])
def test_a_gram_matrix_is_rotated_in_its_own_memory(
    width: int, block: int, regular: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In strips and tiles that do not divide the width."""
    monkeypatch.setattr(transform, "_STRIP", 7)
    monkeypatch.setattr(transform, "_TILE", 48)
    h = transform.hadamard(block, dtype=torch.float64, regular=regular)
    x = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = x.T @ x
    whole = torch.block_diag(*[h] * (width // block))
    wanted, place = whole.T @ gram @ whole, gram.data_ptr()
    found = transform.rotate_gram(gram, h)
    assert found.data_ptr() == place
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("fit", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_rotations_are_the_exact_ones_rounded(
    fit: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 channels: a product in factors would take the matrix for Sylvester's."""
    monkeypatch.setattr(transform, "BF16_ON_CPU", fit)
    random = torch.Generator().manual_seed(0)
    turns = torch.linalg.qr(torch.randn(2, 64, 64, generator=random, dtype=torch.float64)).Q
    order, x = torch.randperm(128, generator=random), torch.randn(3, 5, 128, generator=random, dtype=torch.float64)
    first, second = (torch.block_diag(turn, turn) for turn in turns)
    exact = (x @ first)[..., order] @ second
    got = transform.rotate_twice(x.to(dtype), turns.to(dtype), order.int())
    back = transform.rotate_back(got, turns.to(dtype), order.int())
    near = 0.06 if dtype == torch.bfloat16 else 1e-5
    assert got.dtype == back.dtype == dtype
    assert torch.allclose(got.double(), exact, atol=near) and torch.allclose(back.double(), x, atol=2 * near)
