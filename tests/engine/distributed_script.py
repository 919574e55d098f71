"""What the tests of several processes run, alone and under torchrun: training that is compared."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from heated_loss import Heated
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

import fasttricks as ft
from fasttricks.engine import World, distributed

IMAGES = 21  # batches of 8, 8 and 5: the last one's shares differ


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.CELU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def make_set():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (IMAGES, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return ft.ImageSet(pixels, torch.arange(IMAGES) % 5, classes=tuple("abcde"), name="noise")


def make_loader(world, **options):
    transforms = [ft.RandomTranslate(1), ft.RandomHorizontalFlip(), ft.Normalize(0.5, 0.25)]
    options = {"batch_size": 8, "transforms": transforms, "shuffle": True, **options}
    return ft.DeviceLoader(make_set(), rank=world.rank, world_size=world.size, **options)


def make_val():
    return ft.DeviceLoader(make_set(), batch_size=4, transforms=[ft.Normalize(0.5, 0.25)])


def error_of(outputs, targets):
    return (outputs.argmax(1) != targets).float().mean()


def make_trainer(model, optimizer, **options):
    options = {"precision": "fp32", "metrics": {"error": error_of}, "progress": False, **options}
    return ft.Trainer(model, optimizer, **options)


def plain(world, folder):
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = make_trainer(model, sgd)
    trainer.fit(make_loader(world), 3, val=make_val())
    return trainer


def parts_clipped_and_frozen(world, folder):
    model = make_model()
    adamw = torch.optim.AdamW(model.parameters(), lr=0.01)
    freeze = ft.FreezeAfter([model[0].weight], steps=4)
    options = {"micro_batch_size": 8 // world.size - 1, "grad_clip": 0.5, "callbacks": [freeze]}
    trainer = make_trainer(model, adamw, lr=ft.one_cycle(0.01, 9), **options)
    trainer.fit(make_loader(world), 3, val=make_val())
    return trainer


def compiled(world, folder):
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = make_trainer(model, sgd, compile="eager")
    trainer.fit(make_loader(world), 2)
    return trainer


def sampler(world, folder):
    model = make_model()
    data = TensorDataset(make_set().images[:16].float() / 255, make_set().labels[:16])
    rank_sampler = DistributedSampler(data, num_replicas=world.size, rank=world.rank)
    loader = DataLoader(data, batch_size=8 // world.size, sampler=rank_sampler)
    trainer = make_trainer(model, torch.optim.SGD(model.parameters(), lr=0.05))
    trainer.fit(loader, 2)
    return trainer


def batch_sampler(world, folder):
    """What ``sampler`` does, by a batch sampler around it: the loader's own sampler is idle."""
    model = make_model()
    data = TensorDataset(make_set().images[:16].float() / 255, make_set().labels[:16])
    inner = DistributedSampler(data, num_replicas=world.size, rank=world.rank)
    loader = DataLoader(data, batch_sampler=BatchSampler(inner, 8 // world.size, drop_last=False))
    trainer = make_trainer(model, torch.optim.SGD(model.parameters(), lr=0.05))
    trainer.fit(loader, 2)
    return trainer


def resumed(world, folder):
    for resume, epochs in ((False, 2), (True, 4)):
        model = make_model()
        sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        trainer = make_trainer(model, sgd)
        options = {"checkpoints": folder / "checkpoints", "keep": 1, "resume": resume}
        trainer.fit(make_loader(world), epochs, **options)
    return trainer


def straight(world, folder):
    """What ``resumed`` must equal."""
    model = make_model()
    trainer = make_trainer(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    trainer.fit(make_loader(world), 4)
    return trainer


def weighted_and_looking_ahead(world, folder):
    """A loss that counts some images more and some not at all, and a start that differs."""
    torch.manual_seed(world.rank)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.CELU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0]), ignore_index=4)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {"micro_batch_size": 3, "callbacks": [ft.Lookahead(every=3)]}
    trainer = make_trainer(model, sgd, loss=loss, **options)
    trainer.fit(make_loader(world), 3)
    return trainer


def learned_loss(world, folder):
    model, loss = make_model(), Heated(float(world.rank))
    sgd = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.05, momentum=0.9)
    trainer = make_trainer(model, sgd, loss=loss, micro_batch_size=3)
    trainer.fit(make_loader(world), 3, val=make_val())
    return trainer


def summed(world, folder):
    """A loss that is a sum, and the best epoch kept, by all processes together."""
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.005)
    keep = ft.KeepBest(folder / "best", metric="loss")
    loss = nn.CrossEntropyLoss(reduction="sum")
    trainer = make_trainer(model, sgd, loss=loss, micro_batch_size=3, callbacks=[keep])
    trainer.fit(make_loader(world), 3, val=make_val())
    return trainer


class Log(ft.Callback):
    """What the first process alone has, with a state."""

    def state_dict(self):
        return {"lines": 3}


def logged(world, folder):
    """A resumed run whose first process has a logger before its average."""
    for resume, epochs in ((False, 2), (True, 4)):
        model = make_model()
        loggers = [Log()] if world.rank == 0 else []
        callbacks = [*loggers, ft.WeightAverage(decay=0.8)]
        sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        trainer = make_trainer(model, sgd, callbacks=callbacks)
        options = {"checkpoints": folder / "logged", "keep": 1, "resume": resume}
        trainer.fit(make_loader(world), epochs, **options)
    return trainer


class Preempted(ft.Callback):
    """Stops one process, as a signal or a time limit would."""

    def __init__(self, world):
        self.is_last = world.rank == world.size - 1

    def on_epoch_end(self, trainer, row):
        trainer.stop = self.is_last and row["epoch"] == 2


def stopped(world, folder):
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = make_trainer(model, sgd, callbacks=[Preempted(world)])
    trainer.fit(make_loader(world), 3)
    assert len(trainer.history) == 2
    return trainer


def normed(world, folder):
    """Batch norm, whose statistics are each process's own between two updates."""
    model = make_model()
    model.insert(1, nn.BatchNorm2d(4))
    # A view with gaps, of other numbers in each process.
    wide = torch.arange(6.0).view(2, 3) + 100 * world.rank
    model.register_buffer("view", wide[:, ::2])
    model.wide = [wide]
    swa = ft.StochasticWeightAverage(make_loader(world), start_fraction=0.5)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = make_trainer(model, sgd, callbacks=[swa])
    trainer.fit(make_loader(world), 3, val=make_val())
    return trainer


def pruned(world, folder):
    """A loader that chooses by the losses of all processes, in a run that goes on."""
    transforms = [ft.RandomHorizontalFlip(), ft.Normalize(0.5, 0.25)]
    for resume, epochs in ((False, 2), (True, 5)):
        model = make_model()
        own = {"rank": world.rank, "world_size": world.size}
        options = {"batch_size": 5, "share": 0.5, "transforms": transforms, **own}
        loader = ft.PrunedLoader(make_set(), **options)
        sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        trainer = make_trainer(model, sgd, micro_batch_size=2)
        trainer.fit(loader, epochs, checkpoints=folder / "pruned", keep=1, resume=resume)
    trainer.model.register_buffer("losses", loader.state_dict()["losses"])
    return trainer


def proxied(world, folder):
    """A proxy that learns beside, from the images of all processes, begun as the first one's."""
    model, proxy = make_model(), make_model()
    with torch.no_grad():
        proxy[0].bias += world.rank
    own = torch.optim.SGD(proxy.parameters(), lr=0.05, momentum=0.9)
    options = {"share": 1.0, "every": 2, "precision": "fp32"}
    loader = ft.ProxyLoader(make_loader(world), proxy, own, **options)
    trainer = make_trainer(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    trainer.fit(loader, 3, val=make_val())
    for name, value in proxy.named_parameters():
        model.register_buffer(f"proxy_{name}".replace(".", "_"), value.detach())
    return trainer


def faults(world):
    """The messages of what must fail in every process, and where."""
    messages = {}
    model = make_model()
    trainer = make_trainer(model, torch.optim.SGD(model.parameters(), lr=0.05))
    if world.size > 1:
        images = torch.zeros(4, 3, 8, 8)
        data = TensorDataset(images, torch.zeros(4, dtype=torch.int64))
        loaders = {
            "whole": make_loader(World(0, 1, "cpu")),
            "sampler": DataLoader(data, batch_size=2, shuffle=True),
        }
        for name, loader in loaders.items():
            try:
                trainer.fit(loader, 1)
            except ValueError as error:
                messages[name] = str(error)
        rank_sampler = DistributedSampler(data, num_replicas=world.size, rank=world.rank)
        vals = {
            "val": make_loader(world),
            "val_sampler": DataLoader(data, batch_size=2, sampler=rank_sampler),
            "val_shuffled": DataLoader(data, batch_size=2, shuffle=True),
        }
        for name, val in vals.items():
            try:
                trainer.fit(make_loader(world), 1, val=val)
            except ValueError as error:
                messages[name] = str(error)
        try:
            trainer.evaluate(vals["val_sampler"])
        except ValueError as error:
            messages["evaluate"] = str(error)
        try:
            trainer.fit([(images, data.tensors[1])] * (1 + world.rank), 1)
        except ValueError as error:
            messages["lengths"] = str(error)
    batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])) for _ in range(3)]
    if world.rank == world.size - 1:  # only the last process sees it
        batches[1][0][0] = torch.nan
    try:
        trainer.fit(batches, 1)
    except FloatingPointError as error:
        messages["nan"] = str(error)
    return messages


CASES = [plain, parts_clipped_and_frozen, compiled, sampler, batch_sampler, resumed, straight]
CASES += [weighted_and_looking_ahead, normed, learned_loss, summed, logged, stopped, pruned]
CASES += [proxied]


def run(world, folder):
    for case in CASES:
        trainer = case(world, folder)
        name = f"{case.__name__}-{world.rank}"
        weights = {k: v.contiguous() for k, v in trainer.model.state_dict().items()}
        weights |= {f"loss.{k}": v.detach() for k, v in trainer.loss.named_parameters()}
        weights["logits"] = trainer.predict(make_val())
        for wide in getattr(trainer.model, "wide", []):
            weights["beside"] = wide[:, 1].clone()
        save_file(weights, folder / f"{name}.safetensors")
        ft.write_json(folder / f"{name}.json", trainer.history.rows)
    ft.write_json(folder / f"faults-{world.rank}.json", faults(world))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed() as world:
        Path(sys.argv[1]).mkdir(exist_ok=True)
        run(world, Path(sys.argv[1]))
