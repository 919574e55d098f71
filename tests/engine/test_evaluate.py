"""Evaluation: loss and accuracy, and the views of test-time augmentation against a plain loop."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

import fasttricks as ft
from fasttricks.engine import Progress, Trainer, evaluate, predict
from fasttricks.engine._totals import Totals


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


class Still(nn.Module):
    """A layer, and a parameter that says where it is."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.own = layer, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.layer(x)


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


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("tta", VIEWS)
def test_the_least_certain_of_a_batch_alone_are_seen_in_all_views(tta, share):
    model, images = make_model(), make_images()
    targets = torch.zeros(7, dtype=torch.int64)
    plain, whole = (predict(model, [(images, targets)], tta=choice) for choice in ("none", tta))
    seen = 0

    def count(module, arguments):
        nonlocal seen
        seen += len(arguments[0])

    handle = model.register_forward_pre_hook(count)
    logits = predict(model, [(images, targets)], tta=tta, tta_share=share)
    handle.remove()
    number = math.ceil(share * 7)
    chosen = plain.softmax(1).amax(1).argsort()[:number]
    expected = plain.clone()
    expected[chosen] = whole[chosen]
    torch.testing.assert_close(logits, expected)
    assert seen == 7 + number * (len(VIEWS[tta]) - 1)


def test_an_empty_batch_has_no_least_certain_image():
    model, images = make_model(), make_images()
    batches = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in (images[:0], images)]
    logits = predict(model, batches, tta="mirror", tta_share=0.5)
    torch.testing.assert_close(logits, predict(model, batches[1:], tta="mirror", tta_share=0.5))


def test_of_maps_the_mean_certainty_counts():
    model = nn.Conv2d(3, 4, 1)
    images = make_images()
    targets = torch.zeros(7, *images.shape[2:], dtype=torch.int64)
    plain, whole = (predict(model, [(images, targets)], tta=t) for t in ("none", "mirror"))
    least = plain.softmax(1).amax(1).mean((1, 2)).argmin()
    logits = predict(model, [(images, targets)], tta="mirror", tta_share=1 / 7)
    plain[least] = whole[least]
    torch.testing.assert_close(logits, plain)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (1.5, "tta_share must be between 0 and 1, got tta_share=1.5"),
        (-0.1, "tta_share must be between 0 and 1, got tta_share=-0.1"),
        (0.5, r"must be 1 for outputs without classes, got tta_share=0.5 and .* \[7, 1\]"),
    ],
)
def test_shares_that_cannot_be_are_named(share, message):
    model = nn.Sequential(make_model(), nn.Linear(4, 1))
    batches = [(make_images(), torch.zeros(7, 1))]
    with pytest.raises(ValueError, match=message):
        evaluate(model, batches, tta="mirror", tta_share=share, loss=nn.MSELoss())


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


# Losses and targets of all kinds -----------------------------------------------------------------


def net(*shape):
    """A linear map from images [N, 3, 2, 2] to outputs [N, *shape]."""
    torch.manual_seed(0)
    outputs = math.prod(shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, outputs), nn.Unflatten(1, shape or (1,)))


def numbers(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def labels(high, *shape):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(2))


INPUTS = torch.randn(10, 3, 2, 2, generator=torch.Generator().manual_seed(1))
IGNORED = torch.where(labels(5, 10, 4, 4) == 4, 255, labels(5, 10, 4, 4))
NO_CLASSES = {
    "regression": (net(1), nn.MSELoss(), numbers(10, 1)),
    "several numbers": (net(8), nn.MSELoss(), numbers(10, 8)),
    "without a second dimension": (
        nn.Sequential(net(1), nn.Flatten(0)),
        nn.SmoothL1Loss(),
        numbers(10),
    ),
    "several classes an image": (
        net(6),
        nn.BCEWithLogitsLoss(),
        labels(2, 10, 6).float(),
    ),
    "dense numbers": (net(2, 4, 4), nn.L1Loss(), numbers(10, 2, 4, 4)),
    "a single output": (
        net(1),
        lambda outputs, targets: (outputs[:, 0] - targets).abs().mean(),
        labels(3, 10),
    ),
}
CLASSES = {
    "weights": (net(4), nn.CrossEntropyLoss(torch.tensor([1.0, 9.0, 0.1, 2.0])), labels(4, 10)),
    "an ignored label": (
        net(4),
        nn.CrossEntropyLoss(torch.tensor([1.0, 9.0, 0.1, 2.0]), ignore_index=3),
        labels(4, 10),
    ),
    "dense": (net(4, 4, 4), nn.CrossEntropyLoss(), labels(4, 10, 4, 4)),
    "dense with a border": (net(4, 4, 4), nn.CrossEntropyLoss(ignore_index=255), IGNORED),
    "soft": (net(4), nn.CrossEntropyLoss(), numbers(10, 4).softmax(1)),
    "soft in bf16": (net(4), nn.MSELoss(), numbers(10, 4).softmax(1).bfloat16().float()),
}


def in_batches(targets):
    """Batches of uneven sizes, so that a mean of their means would be another number."""
    return list(zip(INPUTS.split([1, 6, 3]), targets.split([1, 6, 3]), strict=True))


def trained(model, loss, targets):
    """A trainer after an epoch at a rate of 0, with its row and its progress."""
    stream = io.StringIO()
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        loss=loss,
        precision="fp32",
        progress=False,
        callbacks=[Progress(stream)],
    )
    batches = in_batches(targets)
    return trainer, trainer.fit(batches, 1, val=batches).rows[0], stream.getvalue()


@pytest.mark.parametrize(("model", "loss", "targets"), NO_CLASSES.values(), ids=NO_CLASSES)
def test_without_classes_the_loss_is_the_trainers_and_there_is_no_accuracy(model, loss, targets):
    trainer, row, line = trained(model, loss, targets)
    with torch.no_grad():
        expected = loss(model(INPUTS), targets).item()
    assert row["val_loss"] == pytest.approx(expected, rel=1e-6)
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert "accuracy" not in row
    assert "val_accuracy" not in row
    assert math.isnan(trainer.evaluate(in_batches(targets)).accuracy)
    assert "acc" not in line
    assert f"val loss {expected:.4f}" in line
    assert math.isnan(trainer.totals.accuracy)


@pytest.mark.parametrize(("model", "loss", "targets"), CLASSES.values(), ids=CLASSES)
def test_with_classes_loss_and_accuracy_are_those_of_all_labels_at_once(model, loss, targets):
    trainer, row, line = trained(model, loss, targets)
    with torch.no_grad():
        outputs = model(INPUTS)
    expected = loss(outputs, targets).item()
    soft = targets.is_floating_point()
    classes = targets.argmax(1) if soft else targets
    counted = classes != getattr(loss, "ignore_index", -100)
    accuracy = (outputs.argmax(1) == classes)[counted].double().mean().item()
    assert row["val_loss"] == pytest.approx(expected, rel=1e-6)
    assert row["val_accuracy"] == pytest.approx(accuracy)
    assert row["accuracy"] == pytest.approx(accuracy)
    assert f"val acc {accuracy:.2%}" in line
    assert trainer.evaluate(in_batches(targets)).accuracy == row["val_accuracy"]


def test_a_cross_entropy_is_taken_without_its_smoothing_and_stays_as_it_is():
    targets, loss = labels(4, 10), nn.CrossEntropyLoss(label_smoothing=0.3)
    _, row, _ = trained(net(4), loss, targets)
    with torch.no_grad():
        outputs = net(4)(INPUTS)
    assert row["val_loss"] == nn.functional.cross_entropy(outputs, targets).item()
    assert row["loss"] == pytest.approx(loss(outputs, targets).item(), rel=1e-6)
    assert loss.label_smoothing == 0.3
    assert evaluate(net(4), in_batches(targets), loss=loss).loss == row["val_loss"]
    assert evaluate(net(4), in_batches(targets)).loss == row["val_loss"]


def test_labels_that_are_all_ignored_have_no_accuracy():
    _, row, _ = trained(net(4), nn.CrossEntropyLoss(ignore_index=255), labels(4, 10))
    assert "accuracy" in row
    loss = nn.CrossEntropyLoss(ignore_index=2, reduction="sum")
    result = evaluate(net(4), in_batches(torch.full((10,), 2)), loss=loss)
    assert math.isnan(result.accuracy)
    assert result.loss == 0


def test_outputs_that_are_no_numbers_are_no_hits():
    outputs = torch.tensor([[0.2, 0.8], [math.nan, 0.1], [0.3, math.nan], [math.nan, math.nan]])
    targets = torch.tensor([1, 0, 1, 0])
    totals = Totals(torch.device("cpu"))
    totals.add(torch.tensor(math.nan), outputs, targets)
    assert totals.accuracy == 0.25
    assert evaluate(nn.Identity(), [(outputs, targets)]).accuracy == 0.25


def test_the_first_batch_says_whether_rows_are_distributions():
    totals = Totals(torch.device("cpu"))
    outputs = torch.tensor([[0.2, 0.8], [0.9, 0.1]])
    for targets in (outputs, 3 * outputs):
        totals.add(torch.tensor(1.0), outputs, targets)
    assert totals.accuracy == 1.0
    totals = Totals(torch.device("cpu"))
    for targets in (3 * outputs, outputs):
        totals.add(torch.tensor(1.0), outputs, targets)
    assert math.isnan(totals.accuracy)


def test_a_label_that_is_ignored_by_default_is_left_out():
    outputs = torch.eye(3)[[0, 1, 2, 0, 1]]
    targets = torch.tensor([0, -100, 2, -100, 0])
    result = evaluate(nn.Identity(), [(outputs, targets)])
    assert result.accuracy == 2 / 3


def test_a_loss_that_sums_is_divided_by_the_images():
    outputs, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    plain = evaluate(nn.Identity(), [(outputs, targets)])
    summed = nn.CrossEntropyLoss(reduction="sum")
    for times in (1, 2):
        result = evaluate(nn.Identity(), [(outputs, targets)] * times, loss=summed)
        assert result.loss == pytest.approx(plain.loss)


def test_a_losss_own_state_is_left_alone():
    class Counting(nn.CrossEntropyLoss):
        def forward(self, outputs, targets):
            assert not self.training
            return super().forward(outputs, targets)

    loss = Counting()
    evaluate(nn.Identity(), [(torch.randn(2, 3), torch.tensor([0, 1]))], loss=loss)
    assert loss.training


@pytest.mark.parametrize("tta", VIEWS)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_views_of_one_result_a_pixel_are_put_back_into_place(tta, share):
    model = nn.Conv2d(3, 4, 1)  # which sees each pixel alone, so that all views agree
    images = make_images()
    plain = predict(model, [images])
    views = predict(model, [images], tta=tta, tta_share=share)
    assert torch.allclose(views[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1], atol=1e-6)
    if tta in ("none", "mirror"):
        assert torch.allclose(views, plain, atol=1e-6)


@pytest.mark.parametrize("tta", VIEWS)
@pytest.mark.parametrize(
    ("model", "edge"),
    [
        (nn.AvgPool2d(3, stride=1), 1),
        (nn.Upsample(scale_factor=2), 2),
        (nn.Upsample(scale_factor=(2, 1)), 0),
    ],
)
def test_maps_of_other_sizes_are_put_back_by_their_own_pixels(model, edge, tta):
    images = make_images()
    plain, views = predict(Still(model), [images]), predict(Still(model), [images], tta=tta)
    inner = (..., slice(edge, -edge), slice(edge, -edge)) if edge else (0, 0, 0, 0)
    if edge:
        assert torch.allclose(views[inner], plain[inner], atol=1e-6)
    elif tta == "mirror":  # neither scaled nor cropped: no map, and averaged as it is
        mirrored = predict(Still(model), [images.flip(-1)])
        assert torch.allclose(views, (plain + mirrored) / 2, atol=1e-6)


def test_smaller_maps_are_turned_back_and_one_result_an_image_stays():
    pool = nn.AvgPool2d(2)  # whose maps are mirrored where the images are
    images = make_images()
    assert torch.allclose(predict(pool, [images], tta="mirror"), pool(images), atol=1e-6)
    mean = nn.AdaptiveAvgPool2d(1)
    views = [mean(moved(images[0], s, s)[None]) / 4 for s in (-1, 1)]
    expected = mean(images[:1]) / 2 + sum(views)
    assert torch.allclose(predict(mean, [images[:1]], tta="translate"), expected, atol=1e-6)


def test_a_loader_stays_at_its_epoch():
    images = torch.randint(256, (8, 3, 6, 6), dtype=torch.uint8)
    data = ft.ImageSet(images, torch.arange(8) % 4, classes=tuple("abcd"), name="noise")
    transforms = [ft.AlternatingFlip(), ft.Normalize(0.5, 0.25)]
    loader = ft.DeviceLoader(data, batch_size=4, transforms=transforms)
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, sgd, precision="fp32", progress=False)
    for look in (
        lambda: evaluate(model, loader),
        lambda: predict(model, loader),
        lambda: trainer.evaluate(loader),
        lambda: trainer.predict(loader),
    ):
        look()
        assert loader.epoch == 0
    trainer.fit(loader, 2, val=loader)
    assert loader.epoch == 2
