"""A head of voices: its formula, its digits where a voice is sure, its rests, and how it begins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from streamcell.models import build
from streamcell.models.layers.voices import LEAST_DOUBT, LEAST_ODDS, Voices

KEYS = 7


def slowly(a: Tensor, voices: int) -> Tensor:
    """The formula key by key, in float64. a: float[voices·(KEYS + 1)]."""
    y = torch.full((KEYS,), LEAST_ODDS, dtype=torch.float64)
    for z in a.double().view(voices, KEYS + 1).softmax(-1):
        for key in range(KEYS):
            y[key] += z[key] / (z[:key].sum() + z[key + 1 :].sum() + LEAST_DOUBT * z[key])
    return y.log()


def test_a_keys_odds_are_the_sum_of_its_voices_odds() -> None:
    a = 3.0 * torch.randn(4, 5, 3 * (KEYS + 1), generator=torch.Generator().manual_seed(1))
    y = Voices(3, KEYS)(a)
    assert y.shape == (4, 5, KEYS)
    for row, found in zip(a.flatten(0, 1), y.flatten(0, 1), strict=True):
        torch.testing.assert_close(found, slowly(row, 3).float(), rtol=1e-5, atol=1e-5)


def test_one_voice_gives_the_softmaxs_own_log_odds() -> None:
    a = torch.randn(KEYS + 1, generator=torch.Generator().manual_seed(2))
    z = a.softmax(-1)[:KEYS]
    torch.testing.assert_close(Voices(1, KEYS)(a), torch.logit(z), rtol=1e-4, atol=1e-4)


def test_a_sure_voice_keeps_its_digits_and_gives_no_infinity() -> None:
    voices = Voices(1, KEYS)
    for gap in (8.0, 12.0):  # 1 − z in float32 is off by a thousandth, then by a hundredth
        a = torch.zeros(KEYS + 1)
        a[2] = gap
        torch.testing.assert_close(voices(a), slowly(a, 1).float(), rtol=1e-6, atol=1e-5)
    sure = torch.zeros(KEYS + 1)
    sure[2] = 500.0
    sure.requires_grad_()
    y = voices(sure)
    assert y.isfinite().all()
    assert y[2] > 13
    assert y[[0, 1, 3, 4, 5, 6]].max() < -16
    F.binary_cross_entropy_with_logits(y, torch.ones(KEYS)).backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


def test_a_voice_that_rests_leaves_the_keys_to_the_others() -> None:
    a = torch.zeros(2, KEYS + 1)
    a[0, KEYS] = 40.0
    a[1, 3] = 5.0
    torch.testing.assert_close(Voices(2, KEYS)(a.flatten()), Voices(1, KEYS)(a[1]), rtol=1e-5, atol=1e-5)


def test_voices_begin_in_registers_that_rise() -> None:
    model = build(
        {
            "kind": "lstm",
            "input_size": 88,
            "hidden_size": 4,
            "output_size": 88,
            "voices": 4,
            "distribution": "bernoulli_logits",
        }
    )
    bias = model.head.bias.detach().view(4, 89)
    centres = bias[:, :88].argmax(1)
    assert centres.tolist() == [26, 35, 44, 53]
    assert (bias[:, 88] == -4).all()
    # About as many keys as there are voices: a plain head begins with half of all 88.
    (y, *_) = model(torch.zeros(1, 1, 88))
    assert 3.5 < y.sigmoid().sum() < 4.1
    assert "others" not in " ".join(model.state_dict())
