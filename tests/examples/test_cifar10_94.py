"""The example as a user runs it: real training on small sets, its files, its one-line errors."""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import fasttricks as ft

EXAMPLE = Path(__file__).parents[2] / "examples" / "cifar10_94.py"
KILO = 1024 * (1 + 1 / 0.15)  # airbench's rates are for so many images, less what momentum adds
NARROW = {"widths": (16, 16, 16), "depths": (2, 2, 2)}
RUN_FILES = ["curves.png", "history.csv", "model.safetensors", "record.json"]


def coloured_images(count, seed, side=12):
    """Three classes that differ in colour, under noise: easy, but not without training."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 100, (count, side, side, 3))
    images[np.arange(count), :, :, labels] += 100
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    (x_train, y_train), (x_test, y_test) = coloured_images(96, 0), coloured_images(30, 1)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def read_record(folder):
    return json.loads((folder / "record.json").read_text())


@pytest.mark.parametrize("recipe", ["speedrun", "speedrun95", "speedrun96", "article"])
def test_a_run_learns_and_writes_its_folder(run, npz, tmp_path, recipe):
    folder = tmp_path / "run"
    epochs = 3 if recipe == "speedrun96" else 6  # its updates are slow
    arguments = [
        "--recipe",
        recipe,
        "--data",
        npz,
        "--epochs",
        epochs,
        "--output",
        folder,
        "--device",
        "cpu",
    ]
    code, out, _ = run(*arguments)
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == RUN_FILES
    record = read_record(folder)
    assert record["dataset"] == "colours"
    assert record["dataset_size"] == {"train": 96, "test": 30}
    assert (record["device"], record["seed"], record["epochs"]) == ("cpu", 0, epochs)
    assert record["train_seconds"] > 0
    assert record["test_accuracy"] > 0.8  # a third by chance
    assert record["test_accuracy_tta"] > 0.8
    assert len(record["history"]) == epochs
    assert record["target"] == {"speedrun95": 0.95, "speedrun96": 0.96}.get(recipe, 0.94)
    holes = re.findall(r"Cutout\(size=(\d+)", record["transforms"])
    assert holes == {"speedrun95": ["3"], "speedrun96": ["4"], "article": ["3"]}.get(recipe, [])
    moves = re.findall(r"RandomTranslate\(padding=(\d+)", record["transforms"])
    assert moves == ["2" if recipe in ("speedrun96", "article") else "1"]
    weights = load_file(folder / "model.safetensors")
    thirds = [i for i in range(3) if f"groups.{i}.1.body.1.conv.weight" in weights]
    assert thirds == {"speedrun95": [2], "speedrun96": [0, 1, 2]}.get(recipe, [])
    last = out.splitlines()[-1]
    assert last.startswith(f"colours: accuracy {100 * record['test_accuracy_tta']:.2f} % (1 run")
    assert "s of training on cpu" in last


@pytest.fixture
def example(monkeypatch):
    """The example as a module."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLE.parent), *sys.path])
    return importlib.import_module(EXAMPLE.stem)


def make_plan(example, images, labels, *, batch_size, epochs=4):
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    train = ft.ImageSet(
        torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels), classes, "test"
    )
    return example.Plan(
        train,
        whiten_images=train.subset(range(0, len(train), -(-len(train) // 5000))),
        flips=True,
        epochs=epochs,
        batch_size=batch_size,
        device="cpu",
        seed=0,
        target=94.0,
        resume=False,
        switches={"precision": "fp32"},
    )


def average_of(trainer):
    return next(c for c in trainer.callbacks if isinstance(c, ft.WeightAverage))


def test_images_in_the_order_of_their_classes_give_no_other_statistics(example):
    """Class folders are read class by class, but each batch of the last pass holds every class."""
    images, labels = coloured_images(2100, 0)
    order = labels.argsort(kind="stable")
    plan = make_plan(example, images[order], labels[order], batch_size=105)
    trainer, _, _ = example.speedrun(plan)
    batches = [targets for _, targets in average_of(trainer).batches]
    assert [len(targets) for targets in batches] == [1000, 1000]  # none of a few images alone
    for targets in batches:
        assert torch.bincount(targets).min() > 250


@pytest.mark.parametrize(("images", "epochs", "decay"), [(40, 1, 0.0), (320, 2, 0.85)])
def test_a_run_of_few_updates_averages_over_fewer_of_them(example, images, epochs, decay):
    plan = make_plan(example, *coloured_images(images, 0), batch_size=16, epochs=epochs)
    trainer, _, _ = example.speedrun(plan)
    assert average_of(trainer).decay == pytest.approx(decay)


@pytest.mark.parametrize(("side", "translate", "part"), [(12, 1, 768), (32, 2, 768), (64, 4, 192)])
def test_distances_and_memory_follow_the_size(example, side, translate, part):
    plan = make_plan(example, *coloured_images(40, 0, side), batch_size=20)
    trainer, loader, _ = example.speedrun(plan)
    assert f"RandomTranslate(padding={translate}," in repr(loader.pipeline)
    assert trainer.micro_batch_size == part
    trainer, _, _ = example.article(plan)
    assert trainer.micro_batch_size == part * 2 // 3
    trainer, loader, _ = example.speedrun96(plan, **NARROW)
    assert f"RandomTranslate(padding={max(1, round(side / 8))}," in repr(loader.pipeline)
    assert f"Cutout(size={max(1, round(side * 3 / 8))}," in repr(loader.pipeline)
    assert (trainer.micro_batch_size, loader.micro_batch_size) == (part, part)


@pytest.mark.parametrize(("count", "size", "chosen"), [(96, 20, 20), (40, 30, 20)])
def test_speedrun96_trains_on_what_its_proxy_chooses(example, count, size, chosen):
    plan = make_plan(example, *coloured_images(count, 0), batch_size=size, epochs=2)
    trainer, loader, _ = example.speedrun96(plan, **NARROW)
    assert loader.batch_size == min(count, 2 * size)
    assert [len(targets) for _, targets in loader] == [chosen] * (count // loader.batch_size)
    assert example._shared.images_by_size(loader, 3, plan.train) == {"12": 3 * chosen}
    # Rates follow the images that are trained on.
    for sgd in (*trainer.optimizers, *loader.optimizers):
        assert sgd.param_groups[1]["initial_lr"] == pytest.approx(chosen * 9 / KILO, rel=1e-3)


def test_speedrun96_ends_with_the_statistics_of_what_its_proxy_chooses(example):
    plan = make_plan(example, *coloured_images(96, 0), batch_size=20, epochs=2)
    trainer, loader, _ = example.speedrun96(plan, **NARROW)
    last = average_of(trainer).batches
    assert last.proxy is loader.proxy
    assert repr(last.pipeline) == repr(loader.pipeline)
    trainer.fit(loader, 2)
    last.set_epoch(0)
    with torch.no_grad():  # by hand: of 96 images one batch, of which a half is chosen
        ((images, targets),) = list(last.loader)
        losses = torch.nn.functional.cross_entropy(
            loader.proxy.train()(images), targets, reduction="none", label_smoothing=0.2
        )
        hard = images[losses.argsort(descending=True)[:48]]
        first = trainer.model.groups[0][0]
        maps = first.conv(trainer.model.act(trainer.model.whiten(hard)))
        maps = torch.nn.functional.max_pool2d(maps, 2)
    mean = maps.mean((0, 2, 3))
    torch.testing.assert_close(first.norm.running_mean, mean, atol=1e-4, rtol=1e-3)


def test_speedrun96_has_the_numbers_of_airbench96_faster(example):
    plan = make_plan(example, *coloured_images(96, 0), batch_size=8, epochs=10)
    trainer, loader, _ = example.speedrun96(plan, **NARROW)
    steps = 10 * len(loader)
    freeze, lookahead = trainer.callbacks[:2]
    assert (freeze.steps, lookahead.every, lookahead.rise) == (steps // 15, 5, 3)
    assert lookahead.decay == pytest.approx(0.774, abs=1e-3)
    assert not loader.proxy.whiten.bias.requires_grad
    for model, sgd, scheduler in (
        (trainer.model, trainer.optimizers[0], trainer.schedulers[0]),
        (loader.proxy, loader.optimizers[0], loader.schedulers[0]),
    ):
        norms, others = sgd.param_groups
        assert {p.ndim for p in norms["params"]} == {1}
        held = [p for group in sgd.param_groups for p in group["params"]]
        assert set(held) == {p for p in model.parameters() if p.requires_grad}
        assert not any(p is model.whiten.bias for p in norms["params"])
        for group in sgd.param_groups:
            # 0.012 for 1024 images and a step without momentum, here of 8.
            decay = group["initial_lr"] * group["weight_decay"]
            assert decay == pytest.approx(0.012 * 1024 / KILO * 8 / 512, rel=2e-3)
        rates = []
        for _ in range(steps):
            rates.append(others["lr"])
            assert norms["lr"] == pytest.approx(64 * others["lr"])
            sgd.step()
            scheduler.step()
        assert max(rates) == pytest.approx(8 * 9 / KILO, rel=0.05)
        assert rates[0] == pytest.approx(8 * 9 / KILO / 5, rel=1e-3)
        assert rates.index(max(rates)) == pytest.approx(0.1 * steps, abs=1)
        assert 0 < rates[-1] < 0.03 * max(rates)


def test_a_channel_that_is_the_same_everywhere_is_no_error(run, tmp_path):
    images, labels = coloured_images(96, 0)
    images[..., 2] = 0
    data = tmp_path / "no-blue.npz"
    np.savez(data, x_train=images, y_train=labels, x_test=images, y_test=labels)
    for recipe in ("speedrun", "speedrun96", "article"):
        options = ["--recipe", recipe, "--epochs", 1, "--output", tmp_path / recipe]
        code, _, error = run("--data", data, *options)
        assert (code, error) == (0, "")
        assert math.isfinite(read_record(tmp_path / recipe)["history"][-1]["loss"])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(run, npz, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run("--data", npz, "--epochs", 2, "--seed", seed, "--output", tmp_path / name)
    first, again, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert first == again
    assert first != other


@pytest.mark.parametrize("recipe", ["speedrun", "speedrun96"])
def test_a_run_goes_on_where_it_was_stopped_and_ends_as_if_it_had_not(run, npz, tmp_path, recipe):
    arguments = ["--data", npz, "--epochs", 3, "--resume", "--device", "cpu", "--output"]
    arguments = ["--recipe", recipe, *arguments]
    assert run(*arguments, tmp_path / "whole")[0] == 0
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "cut" / "checkpoints")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "epoch-0003")
    code, out, _ = run(*arguments, tmp_path / "cut")
    assert code == 0
    assert sum(line.startswith("epoch") for line in out.splitlines()) == 1
    whole, cut = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "cut"))
    assert whole == cut
    code, _, error = run(*arguments, tmp_path / "cut", "--seed", 1)
    assert code == 2
    assert "seed must be that of the loader whose state is loaded, 0, got seed=1" in error
    code, _, error = run(*arguments, tmp_path / "cut", "--no-flips")
    assert (code, error.count("\n")) == (2, 1)
    assert "transforms must be that of the loader" in error
    arrays = dict(np.load(npz))
    arrays["x_train"][0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "other.npz", **arrays)
    arguments[3] = tmp_path / "other.npz"
    code, _, error = run(*arguments, tmp_path / "cut")
    assert (code, error.count("\n")) == (2, 1)
    assert re.search("images must be .* got images=96 of 3x12x12 .* with checksum", error)


@pytest.mark.parametrize("recipe", ["speedrun", "speedrun96"])
def test_compiling_comes_before_the_clock_and_is_said(run, npz, tmp_path, recipe):
    arguments = ["--data", npz, "--epochs", 3, "--device", "cpu", "--output", tmp_path / "run"]
    code, out, _ = run(*arguments, "--recipe", recipe, "--compile", "eager")
    assert code == 0
    assert "compiling ..." in out
    record = read_record(tmp_path / "run")
    assert record["compiled"] == "eager"
    assert record["cuda_graph"] is False
    assert record["precompile_seconds"] > 0


@pytest.mark.parametrize("recipe", ["speedrun", "speedrun96", "article"])
def test_images_are_not_mirrored_where_that_is_asked_for(run, npz, tmp_path, recipe):
    arguments = ["--recipe", recipe, "--data", npz, "--epochs", 1]
    assert run(*arguments, "--output", tmp_path / "with")[0] == 0
    assert run(*arguments, "--no-flips", "--output", tmp_path / "without")[0] == 0
    mirrored, plain = (read_record(tmp_path / name) for name in ("with", "without"))
    assert "Flip" in mirrored["transforms"]
    assert "mirror" in mirrored["tta"]
    assert "Flip" not in plain["transforms"]
    assert plain["tta"] == "translate"


def test_several_runs_are_summed_up(run, npz, tmp_path):
    folder = tmp_path / "runs"
    code, out, _ = run(
        "--data", npz, "--epochs", 1, "--runs", 2, "--seed", 5, "--target", 1, "--output", folder
    )
    assert code == 0
    accuracies = [100 * read_record(folder / f"seed-{s}")["test_accuracy_tta"] for s in (5, 6)]
    summary = json.loads((folder / "summary.json").read_text())["test_accuracy_tta"]
    assert summary["mean"] == pytest.approx(sum(accuracies) / 2)
    assert summary["share_at_target"] == 1
    assert "2 runs, 100% at the target" in out.splitlines()[-1]


def test_without_network_it_trains_on_digits_and_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTTRICKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    code, out, _ = run("--epochs", 1, "--output", tmp_path / "run")
    assert code == 0
    lines = out.splitlines()
    assert "digits" in lines[1]
    assert lines.index(next(x for x in lines if x.startswith("epoch"))) > 1
    assert lines[-1].startswith("handwritten digits of scikit-learn (not CIFAR-10): accuracy")
    record = read_record(tmp_path / "run")
    assert "digits" in record["dataset"]
    assert record["tta"] == "translate"
    assert "Flip" not in record["transforms"]


def test_with_a_target_there_is_no_fall_back(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTTRICKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    code, _, error = run("--target", 94, "--output", tmp_path / "run")
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def damaged(kind, folder):
    """Make a data set that has something wrong with it and return its path."""
    images, labels = coloured_images(12, 0)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    if kind == "labels":
        arrays["y_test"] = labels.astype(np.float32)
    elif kind == "keys":
        del arrays["y_test"]
    if kind in ("labels", "keys"):
        np.savez(folder / "bad.npz", **arrays)
        return folder / "bad.npz"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            if not (kind == "empty class" and (split, name) == ("train", "b")):
                Image.fromarray(images[0]).save(folder / split / name / "0.png")
    if kind == "corrupt image":
        (folder / "train" / "a" / "1.png").write_bytes(b"not a picture")
    elif kind == "sizes":
        Image.fromarray(images[0][:8]).save(folder / "train" / "a" / "1.png")
    return folder


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("labels", "y_test"),
        ("keys", "y_test"),
        ("empty class", "b"),
        ("corrupt image", "1.png"),
        ("sizes", "1.png"),
    ],
)
def test_bad_data_is_one_line_that_names_it(run, tmp_path, kind, word):
    (tmp_path / "data").mkdir()
    path = damaged(kind, tmp_path / "data")
    code, _, error = run("--data", path, "--output", tmp_path / "run")
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert word in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "missing"], "missing"),
        (["--batch-size", "1"], "--batch-size must be greater than 1 and at most 96, got 1"),
        (["--batch-size", "97"], "--batch-size must be greater than 1 and at most 96, got 97"),
        (["--epochs", "0"], "--epochs must be greater than 0 and at most 1e+06, got 0"),
        (["--epochs", "nan"], "--epochs must be greater than 0 and at most 1e+06, got nan"),
        (["--epochs", "many"], "--epochs: invalid float value: 'many'"),
        (["--runs", "0"], "--runs must be greater than 0 and at most 1e+09, got 0"),
        (["--recipe", "fast"], "--recipe: invalid choice: 'fast'"),
        (["--device", "tpu"], "device must be one of"),
        (["--precision", "fp16", "--device", "cpu"], "precision"),
        (["--target", "-1"], "--target must be greater than 0 and at most 100, got -1"),
        (["--seed", "-1"], "--seed must be greater than -1"),
        (["--epochs", "1e308"], "--epochs"),
    ],
)
def test_bad_arguments_are_one_line_that_names_them(run, npz, tmp_path, arguments, words):
    code, _, error = run("--data", npz, "--output", tmp_path / "run", *arguments)
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "run").exists()


def test_images_of_one_class_are_refused_before_training(run, tmp_path):
    images, labels = coloured_images(40, 0)
    arrays = {"x_train": images, "y_train": 0 * labels, "x_test": images, "y_test": 0 * labels}
    np.savez(tmp_path / "alike.npz", **arrays)
    code, out, error = run("--data", tmp_path / "alike.npz", "--output", tmp_path / "run")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "data must have at least two classes, got ImageSet('alike'" in error


def test_going_on_needs_the_folder_of_the_run(run, npz):
    code, _, error = run("--data", npz, "--resume")
    assert (code, error.count("\n")) == (2, 1)
    assert "--resume must come with --output" in error


def test_an_output_that_is_a_file_is_refused_before_training(run, npz, tmp_path):
    (tmp_path / "taken").write_text("mine")
    code, out, error = run("--data", npz, "--output", tmp_path / "taken")
    assert code == 2
    assert "output must be a folder, got the file" in error
    assert "epoch  " not in out
    assert (tmp_path / "taken").read_text() == "mine"


def test_help_explains_every_argument_with_its_default(run):
    code, out, _ = run("--help")
    assert code == 0
    options = ("recipe", "data", "output", "epochs", "batch-size", "seed", "runs", "target")
    for name in (*options, "device", "precision"):
        entry = out.split(f"\n  --{name} ")[1].split("\n  --")[0]
        assert "default" in entry, name
    assert "95 for speedrun95, 96 for speedrun96" in " ".join(out.split())


@pytest.mark.parametrize(
    ("side", "count", "expected"),
    [(8, 2000, 1000), (32, 2000, 1000), (64, 2000, 250), (96, 9, 111)],
)
def test_large_images_are_evaluated_in_smaller_batches(example, side, count, expected):
    pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(count, -1, -1, -1)
    images = ft.ImageSet(pixels[:, :1], torch.zeros(count, dtype=torch.int64), ("a",), "black")
    loader = example._shared.evaluation_loader(images, ft.Normalize(0.5, 0.5), "cpu")
    assert loader.batch_size == expected
