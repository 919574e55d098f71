from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fasttricks.data import DataError
from fasttricks.data._decode import MAX_PIXELS, decode_image

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (7, 7, 7)


def decoded(tmp_path, image, suffix="png", **options):
    path = tmp_path / f"image.{suffix}"
    image.save(path, **options)
    return decode_image(path)


def palette_image():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA"])
def test_every_mode_becomes_three_channels(tmp_path, mode):
    array = decoded(tmp_path, Image.new(mode, (3, 2)))
    assert (array.shape, array.dtype) == ((2, 3, 3), np.uint8)


def test_palette_images_get_their_colours(tmp_path):
    assert decoded(tmp_path, palette_image()).tolist() == [[list(RED), list(GREEN)]]


def test_palette_with_transparency_gets_its_colours_without_a_warning(tmp_path):
    array = decoded(tmp_path, palette_image(), transparency=bytes([0, 128]))
    assert array.tolist() == [[list(RED), list(GREEN)]]


def test_alpha_is_dropped_and_the_colour_below_it_kept(tmp_path):
    assert decoded(tmp_path, Image.new("RGBA", (1, 1), (*BLUE, 0))).tolist() == [[list(BLUE)]]


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert (decoded(tmp_path, image, "jpg", quality=100) == 255).all()


def test_sixteen_bit_grey_keeps_its_upper_eight_bits(tmp_path):
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], dtype=np.uint16)
    array = decoded(tmp_path, Image.fromarray(values))
    assert array[0].tolist() == [[v, v, v] for v in (0, 0, 1, 0x12, 255)]


@pytest.mark.parametrize(("orientation", "expected"), [(1, "rg"), (3, "gr"), (2, "gr")])
def test_exif_orientation_is_applied(tmp_path, orientation, expected):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    exif = Image.Exif()
    exif[0x0112] = orientation
    colours = {"r": list(RED), "g": list(GREEN)}
    array = decoded(tmp_path, image, "png", exif=exif)
    assert array.tolist() == [[colours[letter] for letter in expected]]


def test_exif_rotation_swaps_height_and_width(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decoded(tmp_path, Image.new("RGB", (3, 2)), "jpg", exif=exif).shape == (3, 2, 3)


def png_header_only(path, width, height):
    """A PNG that claims a size and holds no pixels: decoding it would fail in another way."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pieces = chunk(b"IHDR", header), chunk(b"IDAT", b""), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(pieces))


@pytest.mark.parametrize("width", [4097, 40_000, 2**31 - 1])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, width):
    path = tmp_path / "huge.png"
    png_header_only(path, width, 4096)
    with pytest.raises(DataError, match=rf"huge\.png must have at most {MAX_PIXELS} pixels"):
        decode_image(path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot decode the image .*odd\.png"):
        decode_image(path)


def test_a_format_with_another_suffix_is_not_opened(tmp_path):
    path = tmp_path / "really_a_gif.png"
    Image.new("L", (2, 2)).save(path, format="GIF")
    with pytest.raises(DataError, match=r"really_a_gif\.png"):
        decode_image(path)


def test_floating_point_pixels_are_refused(tmp_path):
    with pytest.raises(DataError, match="its pixels are floating-point numbers"):
        decoded(tmp_path, Image.new("F", (3, 2), 0.5), "tif")
