"""The benchmarks as they are run, on images so few and small that their figures mean nothing."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import log_loss
from torch._dynamo.utils import counters

FOLDER = Path(__file__).parents[2] / "benchmarks"
REFERENCES = ["airbench94_muon", "airbench95", "airbench96_faster", "fulcrum_e1"]
RECORD = {"seed": 3, "test_accuracy": 0.5, "test_accuracy_tta": 0.6, "tta": "mirror"}
RECORD |= {"device": "cpu", "images_by_size": {"32": 10}, "train_seconds": 2.0, "tta_seconds": 1.0}


@pytest.fixture
def path(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # the scripts add what they import


@pytest.fixture
def run(path, monkeypatch):
    """Runs a script with arguments."""

    def run(name, *arguments):
        script = str(FOLDER / name)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(script, run_name="__main__")

    return run


def test_loader_share_measures_every_recipe_at_every_size(run, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3 * 64, 32, 32, 3)).astype("u1")
    labels = np.arange(len(images)) % 10
    data, output = tmp_path / "noise.npz", tmp_path / "share.json"
    np.savez(data, x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    sys.path.insert(0, str(FOLDER.parent / "examples"))
    example = importlib.import_module("cifar10_94")
    recipes = {name: replace(recipe, batch_size=64) for name, recipe in example.RECIPES.items()}
    monkeypatch.setattr(example, "RECIPES", recipes)
    options = ["--data", data, "--output", output, "--steps", 1, "--device", "cpu"]
    run("loader_share.py", *options)
    rows = json.loads(output.read_text())["rows"]
    sizes = {
        name: [r["image_size"] for r in rows if r["recipe"] == name] for name in example.RECIPES
    }
    same = ("speedrun96", "article")  # whose images do not grow
    assert sizes == {name: [32] if name in same else [24, 28, 32] for name in sizes}
    assert all(0 < row["loading_share"] < 1 for row in rows)


def test_a_trial_is_judged_on_held_out_images_and_added_to_the_others(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.arange(500) % 4
    images = rng.integers(0, 64, (500, 24, 24, 3)) + 48 * labels[:, None, None, None]
    tests = np.zeros((4, 24, 24, 3), "u1")
    data, output = tmp_path / "grey.npz", tmp_path / "new" / "trials.jsonl"
    np.savez(data, x_train=images.astype("u1"), y_train=labels, x_test=tests, y_test=range(4))
    options = ["--data", data, "--output", output, "--held-out", 100, "--images", 300, "--side", 16]
    for rate in ("0.1", "0.2"):
        changes = ["--set", "widths=8,12,12", f"muon_lr={rate}"]
        run("held_out.py", "speedrun", *options, "--epochs", 8, *changes)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["changes"]["muon_lr"] for row in rows] == [0.1, 0.2]
    for row in rows:
        assert (row["images"], row["held_out"], row["image_size"]) == (300, 100, [16, 16])
        assert row["changes"]["widths"] == [8, 12, 12]
        assert row["updates"] == 8 * (300 // row["batch_size"])
        assert row["tta"] == "mirror_translate"
        assert row["accuracy"] > 0.5  # the brightness tells the class
        assert 0 <= row["cross_entropy"] < np.log(4)
    assert "of 100 held-out images" in capsys.readouterr().out


def test_both_ways_to_evaluate_a_run_are_compared(run, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 4
    images = rng.integers(0, 64, (300, 24, 24, 3)) + 48 * labels[:, None, None, None]
    data, output = tmp_path / "grey.npz", tmp_path / "evaluation.json"
    images = images.astype("u1")
    np.savez(data, x_train=images, y_train=labels, x_test=images[:40], y_test=labels[:40])
    options = ["--data", data, "--epochs", 4, "--batch-size", 64, "--device", "cpu"]
    run("../examples/cifar10_94.py", *options, "--output", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    run("evaluation.py", tmp_path / "run", "--data", data, "--output", output, "--repeats", 1)
    rows = json.loads(output.read_text())["rows"]
    by_views = {row["tta"]: row for row in rows if row["precision"] == record["precision"]}
    assert by_views["none"]["accuracy"] == record["test_accuracy"]
    assert by_views["mirror_translate"]["accuracy"] == record["test_accuracy_tta"]
    assert all(row["other_classes"] <= 4 for row in rows)
    assert "in another class" in capsys.readouterr().out


def test_the_loss_of_a_trial_is_that_at_the_best_temperature(script):
    held_out = script("held_out.py")
    rng = torch.Generator().manual_seed(0)
    odds = torch.randn(500, 5, generator=rng)
    labels = torch.distributions.Categorical(logits=odds).sample()
    found = held_out.best_loss(8 * odds, labels)
    fit = minimize_scalar(
        lambda factor: log_loss(labels, softmax(factor * odds.numpy(), axis=1), labels=range(5))
    )
    assert found == pytest.approx(fit.fun, abs=1e-3)


@pytest.mark.parametrize("text", ["widths", "muon_lr=x", "muon_lr=", "muon_lr='a'", "widths=()"])
def test_a_trial_says_which_change_it_does_not_read(run, tmp_path, capsys, text):
    with pytest.raises(SystemExit):
        run("held_out.py", "speedrun", "--data", "x.npz", "--output", tmp_path / "t", "--set", text)
    assert f"must be name=number or name=number,number, got {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speedrun", "--set", "nosuch=1"], "--set must name arguments of speedrun, .*'nosuch'"),
        (["article", "--set", "muon_lr=1"], "--set must name arguments of article, .*'muon_lr'"),
        (["speedrun", "--set", "muon_lr=1,2"], "--set must name arguments of speedrun, "),
        (["speedrun", "--set", "cutout=1", "--set", "cutout=2"], "once, got cutout, cutout"),
        (["speedrun", "--epochs", "nan"], "--epochs must be greater than 0 .* got nan"),
        (["speedrun", "--seed", "-1"], "--seed must be greater than -1 .* got -1"),
        (["speedrun", "--side", "7"], "--side must be greater than 7 .* got 7"),
        (["speedrun", "--output", "{}/data.npz/trials"], "File exists|Not a directory"),
    ],
)
def test_a_trial_is_refused_before_it_trains(run, tmp_path, capsys, arguments, message):
    data, labels = tmp_path / "data.npz", np.arange(100) % 4
    images = np.zeros((100, 12, 12, 3), "u1")
    np.savez(data, x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    arguments = [argument.format(tmp_path) for argument in arguments]
    with pytest.raises(SystemExit):
        run("held_out.py", "--data", data, "--output", tmp_path / "trials", *arguments)
    said = capsys.readouterr()
    assert re.search(message, said.err)
    assert len(said.err.splitlines()) == 1
    assert "epoch" not in said.out


@pytest.fixture
def script(path, monkeypatch):
    """Loads a script as a module."""

    def load(name):
        spec = importlib.util.spec_from_file_location("script", FOLDER / name)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "script", module)  # where dataclasses look
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def race(script):
    return script("time_to_accuracy.py")


def test_a_race_passes_on_what_it_was_asked(race, tmp_path, monkeypatch):
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    commands = []

    def run(command, **_):
        commands.append(command)
        return CompletedProcess(command, 0)

    monkeypatch.setattr(race.subprocess, "run", run)
    for name in ("speedrun", "airbench94_muon"):
        for own in (True, False):
            choices = {"usual_batch": own, "flips": own}
            race.run_contender(name, data=Path("x.npz"), seed=3, folder=tmp_path, **choices)
    batches = [c[c.index("--batch-size") + 1] if "--batch-size" in c else None for c in commands]
    assert batches == ["1536", None, None, None]
    assert ["--no-flips" in command for command in commands] == [False, True] * 2
    assert all(command[command.index("--data") + 1] == "x.npz" for command in commands)


def test_a_race_goes_on_with_the_same_settings_only(race, tmp_path):
    path = tmp_path / "results.json"
    row = {"device": "cpu"}
    report = {"data": "a.npz", "flips": True, "results": [row], race.PEAK: 5}
    path.write_text(json.dumps(report | race.environment("cpu")))
    assert race.previous_race(path, {"data": "a.npz", "flips": True}) == ([row], 5)
    with pytest.raises(SystemExit, match="other flips: move it away"):
        race.previous_race(path, {"data": "a.npz", "flips": False})
    # code was not recorded once
    with pytest.raises(SystemExit, match="other code: move it away"):
        race.previous_race(path, {"data": "a.npz", "flips": True, "code": "0"})
    here = "no CUDA, which is here"
    if not torch.cuda.is_available():
        here = "CUDA, which is not here"
        path.write_text(json.dumps(report | {"results": [{"device": "cuda"}]}))
    with pytest.raises(SystemExit, match=f"measured with {here}: move it away"):
        race.previous_race(path, {})


def test_a_checksum_changes_with_the_text_and_the_names_of_files(race, tmp_path):
    (tmp_path / "a").mkdir()
    found = []
    for name, text in (("x.py", "1"), ("x.py", "2"), ("y.cpp", ""), ("z.h", ""), ("n.txt", "")):
        (tmp_path / "a" / name).write_text(text)
        found.append(race.checksum([tmp_path / "a"]))
    assert len({*found[:4]}) == 4
    assert found[4] == found[3]
    assert race.checksum() == race.checksum()
    assert all(list(folder.rglob("*.py")) for folder in race.SOURCES)


def test_a_race_outlives_a_contender_that_fails(race, tmp_path, monkeypatch, capsys):
    def run(command, stderr, **_):
        folder, seed = (command[command.index(name) + 1] for name in ("--output", "--seed"))
        if "airbench94" in command[1] and seed == "0":
            stderr.write("a line\nerror: no luck today\n")
            return CompletedProcess(command, 9)
        tta = "mirror_translate" if "references" in command[1] else "mirror"
        record = RECORD | {"seed": int(seed), "tta": tta}
        (Path(folder) / "record.json").write_text(json.dumps(record))
        return CompletedProcess(command, 0)

    monkeypatch.setattr(race.subprocess, "run", run)
    data, output = tmp_path / "x.npz", tmp_path / "race"
    data.write_bytes(b"123")
    wanted = ["--runs", "airbench94_muon=2", "--runs", "article=1"]
    arguments = ["race", "--data", data, "--output", output, *wanted]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    with pytest.raises(SystemExit) as end:
        race.main()
    assert end.value.code == "failed: airbench94_muon, seed 0"  # Python prints it and ends with 1
    shown = capsys.readouterr()
    assert "airbench94_muon, seed 0, failed with status 9:\na line\nerror: no luck" in shown.err
    report = json.loads((output / "results.json").read_text())
    rows = [(row["contender"], row["seed"], row["tta"]) for row in report["results"]]
    assert rows == [("article", 0, "mirror"), ("airbench94_muon", 1, "mirror_translate")]
    assert report["data_bytes"] == 3
    assert "| article | 1 | 2 (mirror) | 60.00 |" in shown.out
    assert "| airbench94_muon | 1 | 6 (mirror_translate) | 60.00 |" in shown.out


def test_a_race_counts_the_operations_of_every_contender(race):
    found = {name: race.flops_per_image(name, 32) for name in race.CONTENDERS}
    # Multiply-adds of a forward pass by hand, where the maps have 31, 15, 7 and 3 pixels a side.
    widths, sides = {"speedrun": (64, 256, 256), "airbench95": (128, 384, 384)}, (31, 15, 7, 3)
    for name, (first, second, third) in widths.items():
        convolutions = [(24, first), (first, first), (first, second), (second, second)]
        convolutions += [(second, third), (third, third)]
        where = [sides[i] for i in (0, 1, 1, 2, 2, 3)]
        macs = [9 * a * b * side**2 for (a, b), side in zip(convolutions, where, strict=True)]
        whiten, head = 12 * 24 * 31**2, 10 * third
        # Backward costs twice that, less the gradients of the images, which nothing needs.
        assert found[name] == 2 * (whiten + macs[0] * 2 + 3 * sum(macs[1:]) + 3 * head)
    assert found["speedrun"] == found["airbench94_muon"] == found["fulcrum_e1"]
    for name in ("speedrun", *REFERENCES):
        assert found[name] == found[f"{name}_compiled"]
    assert found["airbench95"] > found["speedrun95"] == found["speedrun95_compiled"]
    assert found["airbench96_faster"] == found["speedrun96"] > found["airbench95"]
    assert found["speedrun95"] > found["speedrun"]


@pytest.fixture
def reference(path, monkeypatch):
    """Returns a reference as a module, whose batches and epochs are few and small."""

    def load(name):
        sys.path.insert(0, str(FOLDER / "references"))
        module = importlib.import_module(name)
        short = {
            "BATCH": 20,
            "PART": 10,
            "CHOSEN": 7,
            "EPOCHS": 2,
            "DECAY_EPOCHS": 1,
            "SIZES": [0.75],
        }
        for constant, value in (short | {"LOOKAHEAD_BEFORE": 1}).items():
            if hasattr(module, constant):
                monkeypatch.setattr(module, constant, value)
        return module

    return load


@pytest.fixture
def noise(tmp_path):
    """An .npz of images that mean nothing, of seven classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (60, 24, 24, 3)).astype("u1")
    images[..., 0] //= 2
    labels = np.arange(60) % 7
    data = tmp_path / "noise.npz"
    np.savez(data, x_train=images[:50], y_train=labels[:50], x_test=images[50:], y_test=labels[50:])
    return str(data)


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_takes_other_data(reference, noise, name, flips):
    module, base = reference(name), reference("airbench94_muon")
    loaded = base.load(noise, "cpu", flips=flips)
    channels = loaded.normalized(loaded.x_train).transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(3), rtol=0, atol=5e-4)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(3), rtol=0, atol=5e-4)
    assert module.Net(loaded.classes).head.out_features == 7
    found = module.train(loaded, "cpu")
    sizes = {"fulcrum_e1": {"18": 40, "24": 40}, "airbench96_faster": {"24": 28}}
    assert found["images_by_size"] == sizes.get(name, {"24": 80})


@pytest.mark.parametrize("name", REFERENCES)
def test_a_compiled_reference_is_reset_and_has_nothing_left_to_compile(
    reference, noise, tmp_path, monkeypatch, name
):
    torch._dynamo.reset()
    module, base = reference(name), reference("airbench94_muon")
    compile, evaluate, compiled, runs = torch.compile, base.accuracies, [], []
    networks = [module.Net, module.Proxy] if name == "airbench96_faster" else [module.Net]
    for network in networks:
        monkeypatch.setattr(network, "widths", (8, 16, 16))

    def record(function, **options):
        compiled.append((getattr(function, "__self__", function), options))
        return compile(function, backend="eager", dynamic=options["dynamic"])

    def accuracies(model, *rest):
        found = evaluate(model, *rest)
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        runs.append((model, weights, counters["stats"]["unique_graphs"]))
        return found

    monkeypatch.setattr(torch, "compile", record)
    monkeypatch.setattr(base, "accuracies", accuracies)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # to be set back
    arguments = [name, "--data", noise, "--output", str(tmp_path), "--device", "cpu"]
    for options in ([], ["--compile"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *options])
        base.main(name, module.train)
        report = json.loads((tmp_path / "record.json").read_text())
        assert report["compile"] == bool(options)
        assert (report["precompile_seconds"] > 0) == bool(options)
    plain, *warm_ups, run = runs
    assert len(warm_ups) == 3
    assert all(model is run[0] for model, *_ in warm_ups)
    functions = [module.orthogonalized] if hasattr(module, "orthogonalized") else []
    assert [type(what) for what, _ in compiled[: len(networks)]] == networks
    assert compiled[0][0] is run[0]
    assert [what for what, _ in compiled[len(networks) :]] == functions
    assert all(options["mode"] == "default" for _, options in compiled[: len(networks)])
    assert plain[2] < warm_ups[0][2] == run[2]
    for key, value in plain[1].items():
        assert torch.equal(value, run[1][key])


@pytest.mark.parametrize("reach", [1, 2, 3, 4])
def test_a_reference_crops_each_image_at_a_place_of_its_own(reference, reach):
    base, count, places = reference("airbench94_muon"), 4000, 2 * reach + 1
    side = 5 + 2 * reach
    numbers = torch.arange(3 * side * side).view(3, side, side)
    padded = 1000 * torch.arange(count).view(-1, 1, 1, 1) + numbers
    torch.manual_seed(0)
    found = base.cropped(padded, reach)
    corners = found[:, 0, 0, 0] % 1000
    y, x = corners // side, corners % side
    wanted = [padded[i, :, y[i] : y[i] + 5, x[i] : x[i] + 5] for i in range(count)]
    assert torch.equal(found, torch.stack(wanted))
    torch.manual_seed(0)
    assert torch.equal(torch.stack([y, x], 1), torch.randint(places, (count, 2)))


def test_where_mirrors_are_wrong_a_reference_shows_none(reference):
    base = reference("airbench94_muon")
    images = torch.zeros(8, 24, 24, 3, dtype=torch.uint8)
    images[:, :, :8] = 255  # bright at the left, more than a translation of 2 pixels can hide
    labels = torch.zeros(8, dtype=torch.long)
    moments = torch.zeros(3), torch.ones(3)
    for flips in (True, False):
        torch.manual_seed(0)
        data = base.Data(images, labels, images, labels, *moments, flips)
        epochs = [moved[:, 0].mean(1) for moved in base.augmented(data, 2)]
        at_the_left = torch.stack([x[:, :5].mean(1) > x[:, -5:].mean(1) for x in epochs])
        assert at_the_left.all() == (not flips)
        assert (at_the_left[0] != at_the_left[1]).all() == flips  # each the other way next time


def test_a_reference_cuts_a_square_out_of_each_image_anywhere_inside(reference):
    base = reference("airbench94_muon")
    images = torch.ones(4000, 3, 9, 9)
    torch.manual_seed(0)
    base.cut_out_(images, 5)
    hole = images == 0
    assert (hole.any((1, 3)).sum(1) == 5).all()
    assert (hole.any((1, 2)).sum(1) == 5).all()
    assert (hole.sum((1, 2, 3)) == 3 * 25).all()
    corners = hole[:, 0].flatten(1).int().argmax(1).bincount(minlength=81).view(9, 9)
    assert (corners[:5, :5] > 100).all()  # 160 of the 4,000, give or take 13
    assert corners[:5, :5].sum() == 4000


def test_a_reference_averages_an_image_and_its_neighbours(reference):
    base = reference("airbench94_muon")
    weights, images = torch.randn(32, 32), torch.randn(2, 1, 32, 32)

    def model(x):
        return (x * weights).sum((2, 3))

    wide = torch.nn.functional.pad(images, (1,) * 4, "reflect")
    views = [(images, 0.5), (wide[..., :32, :32], 0.25), (wide[..., 2:, 2:], 0.25)]
    three = sum(share * model(x) for x, share in views)
    mirrored = sum(share * model(x.flip(3)) for x, share in views)
    torch.testing.assert_close(base.six_views(model, images, flips=False), three)
    torch.testing.assert_close(base.six_views(model, images, flips=True), (three + mirrored) / 2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((40, 8, 9, 3), r"square.*\(40, 8, 9, 3\)"), ((12, 24, 24, 3), "a batch of 20.*got 12")],
)
def test_a_reference_says_which_images_it_takes(reference, tmp_path, shape, message):
    data, images = tmp_path / "images.npz", np.zeros(shape, "u1")
    np.savez(data, x_train=images, y_train=range(len(images)), x_test=images[:1], y_test=[0])
    module, base = reference("fulcrum_e1"), reference("airbench94_muon")
    with pytest.raises(SystemExit, match=message):
        module.train(base.load(str(data), "cpu", flips=True), "cpu")


def test_a_channel_that_is_the_same_everywhere_stays_finite(reference, tmp_path):
    base, images = reference("airbench94_muon"), np.zeros((4, 8, 8, 3), "u1")
    images[::2, ..., 0] = 255
    np.savez(tmp_path / "x.npz", x_train=images, y_train=range(4), x_test=images, y_test=range(4))
    data = base.load(str(tmp_path / "x.npz"), "cpu", flips=True)
    assert data.normalized(data.x_train)[:, :, 0, 0].tolist() == [[1, 0, 0], [-1, 0, 0]] * 2


def test_other_data_is_read_from_class_folders(run, tmp_path):
    source, output = tmp_path / "pets", tmp_path / "pets.npz"
    for part, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(("cat", "dog", "eel")):
            folder = source / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                size = (20 + i, 30 - i)
                Image.new("RGB", size, (100 * label, i, 0)).save(folder / f"{i}.png")
    options = ["--size", 12, "--classes", 2, "--images", 7, "--output", output]
    run("other_data.py", source, *options)
    with np.load(output) as found:
        assert found["x_train"].shape == (7, 12, 12, 3)
        assert found["x_test"].shape == (4, 12, 12, 3)
        for part in ("train", "test"):
            assert found[f"x_{part}"].dtype == np.uint8
            assert (found[f"x_{part}"][:, 0, 0, 0] == 100 * found[f"y_{part}"]).all()
        seen = {(int(red), int(green)) for red, green in found["x_train"][:, 0, 0, :2]}
        assert len(seen) == 7  # no image twice


def test_other_data_tests_on_val_where_test_has_no_labels(run, tmp_path):
    for folder in ("train/cat", "train/dog", "test/images", "val/cat", "val/dog"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "0.png")
    output = tmp_path / "new" / "folder" / "x.npz"
    run("other_data.py", tmp_path, "--size", 8, "--output", output)
    with np.load(output) as found:
        assert found["y_test"].tolist() == [0, 1]
    with pytest.raises(SystemExit, match="expected class folders in test/ or val/ of .*cat"):
        run("other_data.py", tmp_path / "train" / "cat", "--output", output)


class Parts:
    """A data set with the parts of OxfordIIITPet, and one image."""

    def __init__(self, root, split="trainval", download=False):
        if split not in ("trainval", "test"):
            raise ValueError(f"Unknown value {split!r}")
        self.label = ("trainval", "test").index(split)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Image.new("RGB", (8, 8)), self.label


class Digits(Parts):
    """With MNIST's arguments."""

    def __init__(self, root, train=True, download=False):
        self.label = int(not train)


class Letters(Digits):
    """With EMNIST's."""

    def __init__(self, root, split, **options):
        if split != "letters":
            raise ValueError(f"Unknown value {split!r}")
        super().__init__(root, **options)


@pytest.fixture
def small_sets(monkeypatch):
    """Put the data sets above into torchvision."""
    for kind in (Parts, Digits, Letters):
        monkeypatch.setattr(torchvision.datasets, kind.__name__, kind, raising=False)


@pytest.mark.parametrize("arguments", [["Parts"], ["Digits"], ["Letters", "--split", "letters"]])
def test_other_data_takes_the_parts_that_a_data_set_has(run, small_sets, tmp_path, arguments):
    output = tmp_path / "x.npz"
    run("other_data.py", *arguments, "--size", 8, "--output", output)
    with np.load(output) as found:
        assert (found["y_train"].tolist(), found["y_test"].tolist()) == ([0], [1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Letters"], "--split must name one of its data sets for Letters, got None"),
        (["Letters", "--split", "signs"], "Letters: Unknown value 'signs'"),
        (["Digits", "--split", "letters"], "--split must be left out for Digits, got letters"),
    ],
)
def test_other_data_asks_for_a_split_where_there_are_several(
    run, small_sets, tmp_path, arguments, message
):
    with pytest.raises(SystemExit, match=message):
        run("other_data.py", *arguments, "--output", tmp_path / "x.npz")


@pytest.fixture
def many_dogs(tmp_path):
    """A folder with twenty dogs, a cat and an eel."""
    for part, counts in (("train", (1, 20, 1)), ("test", (1, 1, 1))):
        for label, (name, count) in enumerate(zip(("cat", "dog", "eel"), counts, strict=True)):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (100 * label, i, 0)).save(folder / f"{i}.png")
    return tmp_path


def test_fewer_images_of_other_data_leave_out_no_class(run, many_dogs):
    output = many_dogs / "pets.npz"
    for images in (3, 7, 21):
        run("other_data.py", many_dogs, "--size", 8, "--images", images, "--output", output)
        with np.load(output) as found:
            assert np.bincount(found["y_train"]).tolist() == [1, images - 2, 1]
            assert (found["x_train"][:, 0, 0, 0] == 100 * found["y_train"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", 2], "--images must be at least 3, the classes, got 2"),
        (["--images", 23], "--images must be at most 22, got 23"),
        (["--images", 0], "--images must be at least 1, got 0"),
        (["--classes", 0], "--classes must be at least 1, got 0"),
        (["--size", -1], "--size must be at least 1, got -1"),
        (["--output", "pets"], "--output must end with .npz, got pets"),
    ],
)
def test_bad_arguments_of_other_data_are_named(run, many_dogs, options, message):
    with pytest.raises(SystemExit, match=message):
        run("other_data.py", many_dogs, "--output", many_dogs / "pets.npz", *options)
    assert not (many_dogs / "pets.npz").exists()


def test_an_image_of_other_data_that_cannot_be_read_is_named(run, many_dogs):
    (many_dogs / "train" / "dog" / "7.png").write_bytes(b"not a picture")
    with pytest.raises(SystemExit, match=r"dog/7\.png cannot be read"):
        run("other_data.py", many_dogs, "--output", many_dogs / "pets.npz")


@pytest.mark.parametrize("source", ["nosuch", "ImageFolder"])
def test_other_data_names_what_it_does_not_know(run, tmp_path, source):
    with pytest.raises(SystemExit, match=source):
        run("other_data.py", source, "--output", tmp_path / "x.npz")


def test_other_data_refuses_classes_that_differ(run, tmp_path):
    for folder in ("train/cat", "train/dog", "test/dog"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "0.png")
    with pytest.raises(SystemExit, match="same classes.*cat"):
        run("other_data.py", tmp_path, "--output", tmp_path / "x.npz")
