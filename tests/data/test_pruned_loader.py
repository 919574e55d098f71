"""The pruned loader: who is chosen, against a plain sort, and that training tells it the losses."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fasttricks import lr_range_test, precompile
from fasttricks.data import DeviceLoader, ImageSet, PrunedLoader
from fasttricks.engine import Callback, Trainer
from fasttricks.schedules import one_cycle
from fasttricks.transforms import CutMix, Normalize, ProgressiveResize, RandomTranslate

TRANSFORMS = (RandomTranslate(1), Normalize(0.5, 0.25))


def make_set(number=40, classes=None):
    """Images of noise, each with a label of its own, or of so many classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (number, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(number) % (classes or number)
    names = tuple(map(str, range(classes or number)))
    return ImageSet(pixels, labels, classes=names, name="noise")


def make_loader(number=40, classes=None, **options):
    options = {"batch_size": 4, "transforms": TRANSFORMS, **options}
    return PrunedLoader(make_set(number, classes), **options)


def served(loader):
    """The numbers of an epoch's images, a list for each batch."""
    return [labels.tolist() for _, labels in loader]


@given(
    number=st.integers(4, 60),
    batch_size=st.integers(1, 9),
    share=st.floats(0.2, 1.0),
    hard=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_the_hardest_are_chosen_and_the_rest_drawn_from_all_others(
    number, batch_size, share, hard, seed, data
):
    count = int(share * number + 1e-9) // batch_size * batch_size
    if not count:
        return
    options = {"batch_size": batch_size, "share": share, "hardest": hard * share, "seed": seed}
    loader = make_loader(number, **options)
    losses = data.draw(st.lists(st.integers(0, 9), min_size=number, max_size=number))
    loader.load_state_dict({**loader.state_dict(), "losses": torch.tensor(losses).float()})
    loader.set_epoch(3)
    batches = served(loader)
    assert [len(batch) for batch in batches] == [batch_size] * len(loader)
    chosen = [index for batch in batches for index in batch]
    assert len(set(chosen)) == len(chosen) == count
    first = round(count * loader.hardest / loader.share)
    # As many as are to be the hardest: none that is left out has a higher loss than they.
    ranked = sorted(losses, reverse=True)
    taken = sorted((losses[index] for index in chosen), reverse=True)
    assert taken[:first] == ranked[:first]
    again = make_loader(number, **options)
    again.load_state_dict({**loader.state_dict(), "epoch": 3})
    assert served(again) == batches


def test_at_first_all_are_seen_before_any_comes_again():
    loader = make_loader(share=0.5, hardest=0.5)
    epochs = []
    for _ in range(2):
        for _, labels in loader:
            loader.observe_losses(labels.float())
            epochs.append(labels)
    assert torch.cat(epochs).sort().values.tolist() == list(range(40))


def test_easy_ones_come_again_each_as_often():
    loader = make_loader(share=0.5, hardest=0.25)
    loader.load_state_dict({**loader.state_dict(), "losses": torch.arange(40.0)})
    counts = Counter(index for _ in range(300) for batch in served(loader) for index in batch)
    assert all(counts[index] == 300 for index in range(30, 40))
    # A third of the others each time: 100, with a deviation of 8.
    assert all(70 < counts[index] < 130 for index in range(30))


def test_what_is_hard_is_what_it_was_when_last_seen():
    loader = make_loader(share=0.5, hardest=0.5)
    for epoch in range(6):
        for _, labels in loader:
            loader.observe_losses(labels.float() if epoch < 4 else -labels.float())
    # Those with high numbers were shown to be easy in the fourth epoch, the others are hard now.
    assert sorted(index for batch in served(loader) for index in batch) == list(range(20))


def test_orders_differ_by_epoch_and_seed_alone():
    one, same, other = make_loader(seed=1), make_loader(seed=1), make_loader(seed=2)
    assert served(one) == served(same) != served(other)
    assert served(one) == served(same)
    one.set_epoch(0)
    assert served(one) != served(same)


def test_an_image_is_augmented_as_in_any_loader():
    loader, plain = make_loader(), DeviceLoader(make_set(), batch_size=40, transforms=TRANSFORMS)
    ((images, _),) = plain
    for batch, labels in loader:
        assert torch.equal(batch, images[labels])
        assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("share", "hardest", "batches", "first"),
    [(2 / 3, None, 2, 0.5), (1.0, None, 3, 0.75), (0.5, 0.1, 1, 0.1), (1 / 3, 0.0, 1, 0.0)],
)
def test_lengths_count_whole_batches(share, hardest, batches, first):
    loader = make_loader(9, batch_size=3, share=share, hardest=hardest)
    assert len(loader) == len(served(loader)) == batches
    assert loader.hardest == pytest.approx(first)
    assert loader.last_batch_size == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.05}, "share must leave a whole batch, got share=0.05 of 40 images for batch"),
        ({"share": 1.5}, "share must be between 0 and 1, got share=1.5"),
        ({"share": 0.5, "hardest": 0.6}, "hardest must be at most share, got hardest=0.6 and"),
        ({"hardest": -0.1}, "hardest must be between 0 and 1"),
    ],
)
def test_shares_out_of_their_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(**options)


def test_losses_of_another_batch_are_refused():
    loader = make_loader()
    with pytest.raises(ValueError, match=r"each image of the batch, \[0\], got shape \[4\]"):
        loader.observe_losses(torch.zeros(4))
    next(iter(loader))
    with pytest.raises(ValueError, match=r"of the batch, \[4\], got shape \[3\]"):
        loader.observe_losses(torch.zeros(3))


def test_losses_go_to_the_images_that_they_are_named_for():
    loader, ahead = make_loader(share=1.0), []
    for _, labels in loader:  # whose labels are the images' numbers
        ahead.append((labels.float(), loader.last_indices))
        if len(ahead) > 1:  # a batch later
            loader.observe_losses(*ahead.pop(0))
    loader.observe_losses(*ahead.pop(0))
    assert torch.equal(loader.state_dict()["losses"], torch.arange(40.0))


def test_every_image_comes_again_in_short_epochs_too():
    loader = make_loader(100, batch_size=50, share=0.66)
    loader.load_state_dict({**loader.state_dict(), "losses": torch.arange(100.0)})
    assert len({index for _ in range(60) for batch in served(loader) for index in batch}) == 100


def test_states_of_other_kinds_are_refused_and_one_without_losses_begins_anew():
    loader = make_loader()
    plain = DeviceLoader(
        make_set(), batch_size=4, transforms=TRANSFORMS, shuffle=True, drop_last=True
    )
    with pytest.raises(
        ValueError, match="that of a DeviceLoader, got one that also holds hardest,"
    ):
        plain.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match=r"one for each image, \[40\], got shape \[\]"):
        loader.load_state_dict({**loader.state_dict(), "losses": torch.tensor(1.0)})
    next(iter(loader))
    loader.observe_losses(torch.zeros(4))
    loader.load_state_dict(plain.state_dict())
    assert loader.state_dict()["losses"].isinf().all()
    with pytest.raises(TypeError, match="state_dict must be a dict"):
        loader.load_state_dict(3)


def test_another_choice_is_another_run():
    loader = make_loader(share=0.5)
    state = loader.state_dict()
    with pytest.raises(ValueError, match=r"share must be that of the loader whose state .* 0.5"):
        make_loader(share=0.75).load_state_dict(state)
    with pytest.raises(ValueError, match="hardest must be that"):
        make_loader(share=0.5, hardest=0.1).load_state_dict(state)


# In training --------------------------------------------------------------------------------------


def make_trainer(**options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.CELU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 5)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options = {"precision": "fp32", "progress": False, **options}
    return Trainer(model, optimizer, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"micro_batch_size": 3}, {"label_smoothing": 0.1}, {"select": 0.5}],
    ids=lambda options: " ".join(options) or "plain",
)
def test_the_trainer_tells_the_losses_that_it_sees(options):
    trainer, loader = make_trainer(**options), make_loader(classes=5, batch_size=8)
    plain, expected = make_trainer(**options), torch.full((40,), math.inf)
    own = make_loader(classes=5, batch_size=8)
    for batch in own:
        images, labels = batch
        each = F.cross_entropy(plain.model(images), labels, reduction="none")  # not smoothed
        own.observe_losses(each)
        expected[own.last_indices] = each.detach()
        plain.step(batch)
    trainer.fit(loader, 1)
    losses = loader.state_dict()["losses"]
    assert losses.isinf().sum() == 16  # three of five batches were served
    assert torch.allclose(losses, expected, atol=1e-5)


def test_a_run_that_goes_on_chooses_as_it_would_have(tmp_path):
    options = {"classes": 5, "batch_size": 8}
    whole = make_trainer(lr=one_cycle(0.1, 15))
    whole.fit(make_loader(**options), 5)
    first = make_trainer(lr=one_cycle(0.1, 15))
    first.fit(make_loader(**options), 2, checkpoints=tmp_path)
    again = make_trainer(lr=one_cycle(0.1, 15))
    again.fit(make_loader(**options), 5, checkpoints=tmp_path, resume=True)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_trials_leave_its_losses_as_they_were():
    trainer, loader = make_trainer(), make_loader(classes=5)
    trainer.fit(loader, 1)
    before = loader.state_dict()
    lr_range_test(trainer, loader=loader, num_steps=10)
    precompile(trainer, loader)
    trainer.step(next(iter(loader)))
    after = loader.state_dict()
    assert torch.equal(after.pop("losses"), before.pop("losses"))
    assert after == before


class Tries(Callback):
    def on_epoch_start(self, trainer):
        lr_range_test(trainer, loader=self.loader, num_steps=10)


class Looks(Callback):
    def on_step_start(self, trainer):
        trainer.evaluate(self.loader)


@pytest.mark.parametrize(("make", "epochs"), [(Tries, 3), (Looks, 2)])
def test_a_trial_or_a_look_within_a_run_tells_it_nothing(make, epochs):
    states = []
    for callbacks in ([], [make()]):
        loader = make_loader(classes=5, batch_size=8)
        for callback in callbacks:
            callback.loader = loader
        make_trainer(callbacks=callbacks).fit(loader, epochs)
        states.append(loader.state_dict()["losses"])
    assert torch.equal(*states)


def test_it_grows_and_mixes_as_any_loader():
    sizes = ProgressiveResize({0: 6, 2: None})
    loader = make_loader(classes=5, transforms=[*TRANSFORMS, sizes], mix=CutMix(1.0))
    trainer = make_trainer()
    trainer.fit(loader, 3)
    assert loader.epoch == 3
    assert loader.state_dict()["losses"].isfinite().all()


def test_a_loss_that_is_not_told_by_image_is_refused():
    trainer = make_trainer(loss=lambda outputs, targets: F.cross_entropy(outputs, targets))
    with pytest.raises(
        ValueError, match="a PrunedLoader must come with a loss of reduction='mean'"
    ):
        trainer.fit(make_loader(classes=5), 1)


def test_processes_share_each_of_its_batches():
    options = {"classes": 5, "batch_size": 6, "share": 0.5}
    shares = [make_loader(rank=rank, world_size=2, **options) for rank in (0, 1)]
    whole = make_loader(**options)
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(batch[1][0::2], parts[0][1])
        assert torch.equal(batch[1][1::2], parts[1][1])
        assert torch.equal(whole.last_indices[1::2], shares[1].last_indices)
