"""flux-schnell starts as its teacher at the default guidance."""

from __future__ import annotations

import torch

from adatsq_pipe.stages.scenes.train import components, flux, schnell, text_encoder


def test_the_student_starts_as_its_teacher_at_the_default_guidance() -> None:
    torch.manual_seed(0)
    teacher = flux.transformer().eval()
    student = schnell.without_guidance(teacher, flux.DEFAULT_GUIDANCE).eval()
    texts = flux.TextInputs(text_encoder.FluxTextEncoder().eval())
    text = texts.encode(components.ids(["a circle"] * 3), components.TEXT_LENGTH)
    x, t = torch.randn(3, 64, 32), torch.rand(3)
    with torch.no_grad():
        expected = flux.velocity(teacher, text, x, t, torch.full((3,), flux.DEFAULT_GUIDANCE))
        other = flux.velocity(teacher, text, x, t, torch.full((3,), 1.0))
        velocity = flux.velocity(student, text, x, t, None)
    assert not any("guidance" in name for name in student.state_dict())
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-5)
    assert (velocity - other).abs().max() > 1e-3
