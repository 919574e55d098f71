"""The cards of docs/tricks: every one has its sections and is listed, and its code runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

import fasttricks as ft

FOLDER = Path(__file__).parents[1] / "docs" / "tricks"
CARDS = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")
every_card = pytest.mark.parametrize("name", CARDS)


def text_of(name):
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def code_of(name):
    (block,) = re.findall(r"^```python\n(.*?)^```$", text_of(name), flags=re.MULTILINE | re.DOTALL)
    return block


def image_set(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    return ft.ImageSet(images, torch.arange(count) % 10, classes=tuple("abcdefghij"), name="noise")


@pytest.fixture
def names():
    """What the cards' code begins with, small."""
    train = image_set(64)
    normalize = ft.Normalize(*train.mean_std())
    loader = ft.DeviceLoader(train, batch_size=32, transforms=[normalize], shuffle=True)
    tests = ft.DeviceLoader(image_set(20), batch_size=10, transforms=[normalize])
    model = ft.resnet9(width=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9, nesterov=True)
    return {
        "torch": torch,
        "ft": ft,
        "train": train,
        "test": image_set(20),
        "normalize": normalize,
        "loader": loader,
        "tests": tests,
        "model": model,
        "optimizer": optimizer,
        "epochs": 10,
        "steps": 20,
    }


def bound(source):
    """The names that a piece of code binds at its top level."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.alias):
            yield node.asname or node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_the_names_that_the_cards_begin_with_are_those_of_the_index(names):
    assert set(bound(code_of("index"))) == set(names)


@every_card
def test_the_code_of_a_card_runs_and_its_trainer_trains(name, names):
    exec(code_of(name), names)
    trainer = names.get("trainer")
    if trainer is not None:
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, ft.Progress)]
        trainer.fit(names["loader"], epochs=1)
    assert next(iter(names["loader"]))[0].is_floating_point()


@every_card
def test_a_card_says_where_it_comes_from_where_it_helped_and_where_not(name):
    text = text_of(name)
    assert "**Source.**" in text
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == [
        "Here",
        "Where it helped",
        "Where it did not",
    ]


def test_the_index_lists_every_card():
    tables = re.findall(r"^```\{toctree\}\n(.*?)^```$", text_of("index"), flags=re.M | re.S)
    lines = [line for table in tables for line in table.splitlines()]
    assert sorted(line for line in lines if line and not line.startswith(":")) == CARDS
