"""Pictures: the curves drawn are the history's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fasttricks import Cutout, DeviceLoader, ImageSet, Mixup, Normalize, RandomTranslate, plots
from fasttricks.engine import History
from fasttricks.plots import plot_history, preview_augmentation


def test_the_lines_hold_the_historys_columns():
    history = History()
    history.append({"step": 5, "lr": 0.4, "loss": 2.0, "accuracy": 0.2, "val_accuracy": 0.25})
    history.append({"step": 10, "lr": 0.1, "loss": 1.0, "accuracy": 0.6, "val_accuracy": 0.5})
    loss, accuracy, rate = plot_history(history).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[2.0, 1.0]]
    assert [list(line.get_ydata()) for line in accuracy.lines] == [[20.0, 60.0], [25.0, 50.0]]
    assert list(rate.lines[0].get_xdata()) == [5, 10]
    assert list(rate.lines[0].get_ydata()) == [0.4, 0.1]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == [
        "training",
        "validation",
    ]


def test_a_run_without_an_accuracy_has_no_panel_for_it():
    history = History()
    history.append({"step": 5, "lr": 0.4, "loss": 2.0, "val_loss": 3.0})
    loss, rate = plot_history(history).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[2.0], [3.0]]
    assert (loss.get_title(), rate.get_title()) == ("loss", "learning rate")


@pytest.mark.parametrize(
    ("x", "places", "label"),
    [("epoch", [1, 2], "epoch"), ("train_seconds", [3.5, 7.25], "seconds of training")],
)
def test_a_run_is_drawn_against_its_epochs_or_its_seconds(x, places, label):
    history = History()
    for epoch, seconds in ((1, 3.5), (2, 7.25)):
        row = {"epoch": epoch, "step": 5 * epoch, "train_seconds": seconds}
        history.append(row | {"lr": 0.4, "loss": 2.0, "accuracy": 0.2})
    for panel in history.plot(x=x).axes:
        assert list(panel.lines[0].get_xdata()) == places
        assert panel.get_xlabel() == label


def test_a_run_is_drawn_against_nothing_else():
    with pytest.raises(ValueError, match="x must be one of 'step', 'epoch', .*x='hours'"):
        plot_history(History(), x="hours")


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="at least one epoch"):
        plot_history(History())


def image_set(n=12, size=8):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(n) // 4, classes=("a", "b", "c"), name="noise")


def test_the_preview_shows_images_of_each_class_and_a_row_after_each_piece():
    data = image_set()
    transforms = [RandomTranslate(2), Cutout(4)]
    figure = preview_augmentation(data, transforms, count=4, seed=5)
    strips = [panel.images[0].get_array() for panel in figure.axes]
    assert len(strips) == 3
    chosen = [0, 4, 8, 1]  # the first of each class, then the second
    loader = DeviceLoader(data, batch_size=12, transforms=transforms, seed=5)
    augmented = next(iter(loader))[0]
    for column, index in enumerate(chosen):
        place = np.s_[:, 9 * column : 9 * column + 8]  # 8 pixels and a gap of 1
        assert np.allclose(strips[0][place], data.images[index].permute(1, 2, 0) / 255)
        assert np.allclose(strips[2][place], augmented[index].permute(1, 2, 0) / 255)


def test_the_preview_draws_mixes_epochs_and_grey_images():
    grey = ImageSet(image_set().images[:, :1], image_set().labels, ("a", "b", "c"), "grey")
    transforms = [Normalize(0.5, 0.25)]
    figure = preview_augmentation(grey, transforms, mix=Mixup(0.4), count=2, epochs=2)
    assert len(figure.axes) == 1 + 2 * 2
    assert figure.axes[2].get_title(loc="left") == "Mixup(alpha=0.4, p=1.0), epoch 0"
    with pytest.raises(ValueError, match="count must be at least 1, got count=0"):
        preview_augmentation(grey, transforms, count=0)


def test_the_preview_of_a_whole_set_mixes_as_the_loader_does():
    data, transforms, mix = image_set(4), [Normalize(0.5, 0.25)], Mixup(1.0)
    figure = preview_augmentation(data, transforms, mix=mix, count=4, seed=5)
    loader = DeviceLoader(data, batch_size=4, transforms=transforms, mix=mix, seed=5)
    mixed, _ = next(iter(loader))
    found = figure.axes[-1].images[0].get_array()
    assert np.allclose(found, plots._strip(mixed), atol=1e-6)
