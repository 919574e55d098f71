"""Evaluation: accuracy, and the views of test-time augmentation against a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fasttricks.engine import evaluate, predict


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 4))


def make_images(count=7):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def moved(image, dy, dx):
    """The image seen through a window moved by (dy, dx), what lies outside mirrored."""
    out = torch.empty_like(image)
    side = image.shape[-1]

    def inside(i):
        return -i if i < 0 else 2 * (side - 1) - i if i >= side else i

    for y in range(side):
        for x in range(side):
            out[:, y, x] = image[:, inside(y + dy), inside(x + dx)]
    return out


VIEWS = {
    "none": [(1, 0, False)],
    "mirror": [(0.5, 0, False), (0.5, 0, True)],
    "translate": [(0.5, 0, False), (0.25, -1, False), (0.25, 1, False)],
    "mirror_translate": [
        *[(0.25, 0, False), (0.125, -1, False), (0.125, 1, False)],
        *[(0.25, 0, True), (0.125, -1, True), (0.125, 1, True)],
    ],
}


@pytest.mark.parametrize("tta", VIEWS)
def test_views_are_averaged_as_a_plain_loop_does(tta):
    model, images = make_model(), make_images()
    expected = []
    with torch.no_grad():
        for image in images:
            logits = torch.zeros(4)
            for weight, shift, mirrored in VIEWS[tta]:
                view = moved(image, shift, shift)
                view = torch.flip(view, [2]) if mirrored else view
                logits += weight * model(view[None])[0]
            expected.append(logits)
    targets = torch.zeros(7, dtype=torch.int64)
    logits = predict(model, [(images[:4], targets[:4]), (images[4:], targets[4:])], tta=tta)
    torch.testing.assert_close(logits, torch.stack(expected))


def test_accuracy_and_loss_are_means_over_images_not_batches():
    model, images = make_model(), make_images()
    with torch.no_grad():
        logits = model(images)
    targets = logits.argmax(1)
    targets[0] = (targets[0] + 1) % 4  # one of seven wrong, in a batch of its own
    result = evaluate(model, [(images[:1], targets[:1]), (images[1:], targets[1:])])
    assert result.accuracy == pytest.approx(6 / 7)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, targets).item())
    assert result.num_images == 7


def test_unknown_views_and_no_batches_are_refused():
    with pytest.raises(ValueError, match="tta must be one of .* got tta='ten_crop'"):
        predict(make_model(), [], tta="ten_crop")
    with pytest.raises(ValueError, match="at least one batch, got none"):
        evaluate(make_model(), [])
