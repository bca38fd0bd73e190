"""What is opened as an image and as which pixels, and what in a folder is refused before it is opened."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from PIL import UnidentifiedImageError
from tests.data.images import encoded, write_folder

from lowbit.data import DataConfig, loaders, open_dataset
from lowbit.data.images import open_image, to_channels
from lowbit.errors import LowbitError

WIDE = np.array([[0, 255, 256, 4095], [4096, 32768, 65279, 65535]])


def file_of(pixels: np.ndarray, mode: str | None = None, kind: str = "png", **more) -> bytes:
    buffer = io.BytesIO()
    image = PIL.Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(buffer, kind, **more)
    return buffer.getvalue()


def png(pixels: np.ndarray, bits: int, colour: int) -> bytes:
    """A PNG written by hand: Pillow writes no colours of 16 bits. Pixels [H, W, channels]."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "file",
    [
        png(WIDE[..., None], 16, 0),
        file_of(WIDE.astype(np.uint16)),
        file_of(WIDE.astype(np.uint16), kind="tiff"),
        file_of(WIDE.astype(np.uint16).byteswap().view(WIDE.astype(">u2").dtype), kind="tiff"),
        b"P5 4 2 65535\n" + WIDE.astype(">u2").tobytes(),
    ],
    ids=["png", "Pillow's png", "tiff", "big-endian tiff", "pgm"],
)
def test_of_16_bits_the_high_byte_is_taken(file):
    for channels, shape in ((1, (2, 4)), (3, (2, 4, 3))):
        pixels = np.asarray(to_channels(open_image(file), channels))
        assert pixels.shape == shape
        assert np.array_equal(pixels.reshape(2, 4, -1)[..., 0], WIDE // 256)


def test_colours_of_16_bits_are_read_alike():
    image = to_channels(open_image(png(np.stack([WIDE, WIDE[::-1], WIDE // 2], 2), 16, 2)), 3)
    assert np.array_equal(np.asarray(image), np.stack([WIDE // 256, WIDE[::-1] // 256, WIDE // 512], 2))


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        (file_of(np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4), kind="tiff"), "floating-point"),
        (file_of((WIDE - 32768).astype(np.int32), kind="tiff"), r"integer \(I\)"),
        (b"Pf 4 2 -1.0\n" + WIDE.astype("<f4").tobytes(), "floating-point"),
    ],
    ids=["float tiff", "int32 tiff", "pfm"],
)
def test_numbers_without_a_known_range_are_refused(file, kind, tmp_path):
    with pytest.raises(ValueError, match=f"{kind} pixels have no range"):
        to_channels(open_image(file), 3)
    write_folder(tmp_path, {"train": {"a": 2}, "test": {"a": 1}}, size=(2, 4))
    (tmp_path / "train" / "a" / "2.tiff").write_bytes(file)
    with pytest.raises(LowbitError, match=rf"2\.tiff: not a readable image \(its {kind} pixels"):
        loaders(DataConfig(str(tmp_path), batch_size=1, workers=0))


def test_white_as_zero_is_refused_where_it_would_be_read_inverted():
    image = PIL.Image.fromarray(WIDE.astype(np.uint16))
    buffer = io.BytesIO()
    image.save(buffer, "tiff", tiffinfo={262: 0})
    opened = open_image(buffer.getvalue())
    assert opened.tag_v2[262] == 0
    with pytest.raises(ValueError, match="black being 0"):
        to_channels(opened, 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_other_modes_are_pillows(mode):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    file = file_of(pixels, mode, "tiff" if mode == "CMYK" else "png")
    for channels, name in ((1, "L"), (3, "RGB")):
        expected = PIL.Image.open(io.BytesIO(file)).convert(name)
        assert to_channels(open_image(file), channels).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp", "tiff", "ppm"])
def test_the_formats_that_are_meant(kind):
    image = to_channels(open_image(file_of(np.full((8, 8, 3), 128, np.uint8), kind=kind)), 3)
    assert image.size == (8, 8) and abs(int(np.asarray(image).mean()) - 128) <= 1


@pytest.mark.parametrize("kind", ["eps", "gif", "ico", "pdf"])
def test_other_formats_start_nothing(kind, tmp_path, monkeypatch):
    """An EPS under the name of a PNG would start Ghostscript."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    file = file_of(np.zeros((8, 8, 3), np.uint8), kind=kind)
    with pytest.raises(UnidentifiedImageError):
        open_image(file)
    write_folder(tmp_path, {"train": {"a": 2}, "test": {"a": 1}})
    (tmp_path / "train" / "a" / "1.png").write_bytes(file)
    with pytest.raises(LowbitError, match=r"1\.png: not a readable image \(none of JPEG, PNG"):
        loaders(DataConfig(str(tmp_path), batch_size=1, workers=0))


# ---------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "data", {"train": {"a": 2, "b": 3}, "test": {"a": 1, "b": 1}})
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/a/loop", "."),
        ("train/a/loop", ".."),
        ("train/a/up", "../.."),
        ("train/a/all", "/"),
        ("train/b/a", "../a"),
    ],
    ids=["itself", "its split", "the data set", "everything", "another class"],
)
def test_a_link_that_would_count_images_again_is_refused(folder, link, target):
    (folder / link).symlink_to(target)
    with pytest.raises(LowbitError, match=f"{folder / link}: leads to the folder .* again"):
        open_dataset(folder, "train")


def test_a_class_that_is_another_one_under_a_second_name_is_refused(folder):
    for split in ("train", "test"):
        (folder / split / "c").symlink_to("a")
    with pytest.raises(LowbitError, match=r"train/c: leads to the folder .*train/a again"):
        open_dataset(folder, "train")


def test_links_to_classes_folders_and_files_elsewhere_are_followed(folder, tmp_path):
    (tmp_path / "images").mkdir()
    (folder / "train" / "b").rename(tmp_path / "images" / "b")
    (folder / "train" / "b").symlink_to(tmp_path / "images" / "b")
    (tmp_path / "images" / "more").mkdir()
    (tmp_path / "images" / "more" / "9.png").write_bytes(encoded(9))
    (folder / "train" / "a" / "more").symlink_to(tmp_path / "images" / "more")
    (folder / "train" / "a" / "5.png").symlink_to(tmp_path / "images" / "b" / "0.png")
    source = open_dataset(folder, "train")
    assert [os.path.relpath(source.where(i), folder / "train") for i in range(len(source))] == [
        "a/0.png", "a/1.png", "a/5.png", "a/more/9.png", "b/0.png", "b/1.png", "b/2.png",
    ]  # fmt: skip
    assert source.labels.tolist() == [0] * 4 + [1] * 3


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_is_no_file_is_refused_before_it_is_opened(folder, kind, monkeypatch):
    import socket

    path = folder / "train" / "a" / "7.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(path.parent)  # a socket's address is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    with pytest.raises(LowbitError, match=r"7\.png: is a pipe, a device or a socket"):
        open_dataset(folder, "train")


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(folder):
    (folder / "train" / "a" / "7.png").symlink_to("nowhere")
    config = DataConfig(str(folder), batch_size=1, corrupt="skip", workers=0)
    train, _ = loaders(config)
    assert train.num_images == 5 and len(train.skipped) == 1 and "7.png" in train.skipped[0]


def test_a_name_beyond_the_systems_limit(tmp_path):
    with pytest.raises(LowbitError, match="File name too long"):
        open_dataset(tmp_path / ("x" * 300), "train")


# ---------------------------------------------------------------- what a data set is recognized by


def test_the_digest_is_that_of_names_sizes_labels_and_classes(folder, tmp_path):
    def digest() -> str:
        return open_dataset(folder, "train").digest()

    first = digest()
    folder.rename(tmp_path / "moved")
    assert open_dataset(tmp_path / "moved", "train").digest() == first
    (tmp_path / "moved").rename(folder)
    found = {first}
    image = folder / "train" / "b" / "2.png"
    image.write_bytes(image.read_bytes() + b"\0")
    found.add(digest())
    image.rename(image.with_name("3.png"))
    found.add(digest())
    image.with_name("3.png").rename(folder / "train" / "a" / "3.png")
    found.add(digest())
    (folder / "train" / "b").rename(folder / "train" / "c")
    found.add(digest())
    assert len(found) == 5
