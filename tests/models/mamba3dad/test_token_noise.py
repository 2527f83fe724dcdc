from __future__ import annotations

import pytest
import torch

from anomaly3d.errors import InputError
from anomaly3d.models.mamba3dad.token_noise import TokenNoise


def test_labels_say_exactly_which_patches_changed_and_all_layers_of_a_patch_change_together() -> None:
    noise, tokens = TokenNoise(0.3), torch.randn(4, 50, 8)
    out = noise(tokens)
    changed = out.tokens != tokens
    assert torch.equal(changed.all(-1), out.labels.bool())
    assert torch.equal(changed.any(-1), out.labels.bool())
    assert out.labels.mean().item() == pytest.approx(0.3, abs=0.1)


def test_a_change_is_a_scaled_difference_of_two_tokens_of_the_batch() -> None:
    """Brute force over all pairs: the best of them is parallel to the change, and its scale lies in the range."""
    tokens = torch.randn(2, 6, 8, dtype=torch.float64)
    out = TokenNoise(0.5, (0.2, 0.7))(tokens)
    pool = tokens.reshape(-1, 8)
    scales = []
    for b, m in out.labels.nonzero().tolist():
        change = out.tokens[b, m] - tokens[b, m]
        fits = []
        for i in range(len(pool)):
            for j in range(len(pool)):
                pair = pool[i] - pool[j]
                if i != j:
                    scale = (change @ pair / (pair @ pair)).item()
                    fits.append(((change - scale * pair).norm().item(), scale))
        # A token may have been drawn twice, which leaves the patch as it was.
        best = min((fit for fit in fits if fit[1] > 0), default=(1.0, 0.0))
        assert best[0] < 1e-6 or change.norm() == 0
        scales.append(best[1])
    assert all(0.2 <= scale <= 0.7 for scale in scales)


def test_noise_stays_in_the_directions_in_which_tokens_vary() -> None:
    basis = torch.linalg.qr(torch.randn(16, 16)).Q[:, :3]
    tokens = torch.randn(3, 40, 3) @ basis.T + 5 * torch.randn(16)
    out = TokenNoise(0.5)(tokens)
    change = out.tokens - tokens
    torch.testing.assert_close(change @ basis @ basis.T, change, atol=1e-5, rtol=1e-4)


def test_it_is_off_in_evaluation_and_refuses_settings_out_of_range() -> None:
    tokens = torch.randn(1, 5, 4)
    out = TokenNoise().eval()(tokens)
    assert out.tokens is tokens
    assert not out.labels.any()
    for strength in ((0.0, 1.0), (0.5, 0.2)):
        with pytest.raises(InputError, match="token_noise"):
            TokenNoise(0.1, strength)
    with pytest.raises(InputError, match="noise_probability"):
        TokenNoise(0.0)
