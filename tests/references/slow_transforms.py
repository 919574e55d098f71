"""Slow twins of the transforms: plain numbers, a loop per pixel, no code of the package."""

from __future__ import annotations

WORD = 2**32


def scramble(word):
    """16, multiply, 15, multiply, 15, on unsigned 32-bit words."""
    word ^= word >> 16
    word = word * 0x21F0AAAD % WORD
    word ^= word >> 15
    word = word * 0xD35A2D97 % WORD
    return word ^ (word >> 15)


def draw(*, seed, epoch, stream, index, column):
    """The 24-bit whole number behind one draw; ``uniform`` is this over 2**24."""
    keys = []
    for key in (0x243F6A88, 0x85A308D3):
        for word in (seed % WORD, seed // WORD, epoch, stream):
            key = scramble(key ^ word)
        keys.append(key)
    image = scramble(index % WORD ^ keys[0])
    image = scramble((image + (index // WORD % WORD ^ keys[1])) % WORD)
    return scramble((image + column * 0x9E3779B9) % WORD) // 2**8


def mirrored(position, size):
    """Walk back from the border without stepping on it twice, as in 2 1 | 0 1 2 | 1 0."""
    if position < 0:
        return -position
    if position >= size:
        return 2 * (size - 1) - position
    return position


def translate(image, dy, dx, *, mode):
    """``image`` as nested lists [C][H][W]."""
    height, width = len(image[0]), len(image[0][0])

    def pixel(plane, y, x):
        if mode == "zero":
            return plane[y][x] if 0 <= y < height and 0 <= x < width else 0
        return plane[mirrored(y, height)][mirrored(x, width)]

    return [
        [[pixel(plane, y + dy, x + dx) for x in range(width)] for y in range(height)]
        for plane in image
    ]


def erased_pixels(shape, size, place, *, inside):
    """The pixels of one square as a set; ``place`` is the centre, or the first corner if inside."""
    (height, width), (tall, wide), (y, x) = shape, size, place
    if inside:
        rows, columns = range(y, y + min(tall, height)), range(x, x + min(wide, width))
    else:
        rows = range(y - tall // 2, y - tall // 2 + tall)
        columns = range(x - wide // 2, x - wide // 2 + wide)
    return {(r, c) for r in rows for c in columns if 0 <= r < height and 0 <= c < width}


def cutout_pixels(shape, size, *, holes, p, inside, seed, epoch, stream, index):
    """The pixels that Cutout erases in image ``index``."""

    def number(column, below):
        bits = draw(seed=seed, epoch=epoch, stream=stream, index=index, column=column)
        return bits * below // 2**24

    if number(0, 2**24) / 2**24 >= p:
        return set()
    (height, width), (tall, wide) = shape, size
    below_y, below_x = (
        (height - min(tall, height) + 1, width - min(wide, width) + 1) if inside else shape
    )
    erased = set()
    for hole in range(holes):
        place = number(1 + hole, below_y), number(1 + holes + hole, below_x)
        erased |= erased_pixels(shape, size, place, inside=inside)
    return erased
