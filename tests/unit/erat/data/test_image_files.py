"""Tests image files that are small and claim to be huge: limits for one file, and over all readers together."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erat.data import image_files
from erat.data.image_files import Decoded, decode, decode_all, scale_deep


def bomb(path: Path, side: int, channels: int = 4) -> Path:
    """Write a PNG of zeros: side x side pixels of 8 bit."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    packer = zlib.compressobj(9)
    row = bytes(1 + channels * side)
    content = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", content), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_more_pixels_than_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "a.png", 60)
    assert isinstance(decode(path, 8), Decoded)
    monkeypatch.setattr(image_files, "MOST_PIXELS", 3599)
    assert decode(path, 8) == "60 x 60 pixels, more than 0 million"
    assert "more than 0 million pixels" in str(decode(np.zeros((60, 60), np.uint8), 8))


@pytest.mark.parametrize(
    ("mode", "name", "more", "needed"),
    [
        ("L", "a.png", {}, 2),
        ("RGB", "a.png", {}, 8),
        ("RGBA", "a.png", {}, 12),
        ("LA", "a.png", {}, 17),
        ("P", "a.gif", {}, 11),
        ("F", "a.tif", {}, 13),
        ("RGB", "a.webp", {"lossless": True}, 20),
        ("RGB", "a.jpg", {}, 8 / 64),
        ("RGB", "a.jpg", {"progressive": True}, 8 + 8 / 64),
    ],
)
def test_memory_is_known_before_an_image_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, name: str, more: dict[str, bool], needed: float
) -> None:
    """This holds even if a draft decodes fewer pixels: a progressive JPEG is first held in full."""
    Image.new(mode, (640, 640)).save(tmp_path / name, **more)
    monkeypatch.setattr(image_files, "MOST_MEMORY", round(needed * 640**2) - 1)
    assert f"of 0 million pixels takes {needed * 0.4096:.0f} MB to decode" in str(decode(tmp_path / name, 8))
    monkeypatch.setattr(image_files, "MOST_MEMORY", round(needed * 640**2))
    assert isinstance(decode(tmp_path / name, 8), Decoded)


def test_readers_share_one_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [bomb(tmp_path / f"{k}.png", 50) for k in range(8)]
    at_once, most, lock, real = 0, 0, threading.Lock(), image_files.to_eight_bit

    def counted(image: Image.Image) -> Image.Image:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        return real(image)

    monkeypatch.setattr(image_files, "to_eight_bit", counted)
    monkeypatch.setattr(image_files, "READERS", 8)
    monkeypatch.setattr(image_files, "_MEMORY", image_files._Memory(2 * 12 * 2500 + 5))
    assert all(isinstance(image, Decoded) for image in decode_all(paths, 8))
    assert most == 2


@pytest.mark.slow
def test_two_bombs_take_what_one_may(tmp_path: Path) -> None:
    """Two PNGs of 8,900 x 8,900 transparent pixels, some 300 kB each, once took 3.2 GB: 20 bytes per pixel of each."""
    paths = [bomb(tmp_path / f"{k}.png", 8900) for k in range(2)]
    assert all(path.stat().st_size < 400_000 for path in paths)
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom erat.data import image_files\n"
        "image_files.READERS = 2\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "images = image_files.decode_all(list(map(Path, sys.argv[1:])), 32)\n"
        "print(*(getattr(image, 'pixels', image).shape for image in images))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    root = Path(__file__).parents[4]
    said = subprocess.run([sys.executable, "-c", script, *paths], cwd=root, capture_output=True, text=True, check=True)
    shapes, kilobytes = said.stdout.splitlines()
    assert shapes == "(32, 32, 3) (32, 32, 3)"
    assert int(kilobytes) * 1024 < image_files.MOST_MEMORY


def test_a_file_of_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bmp"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert decode(path, 8) == "1048576 MiB, more than 256"


def test_only_the_first_frame_counts(tmp_path: Path) -> None:
    first, others = Image.new("RGB", (40, 40), "red"), [Image.new("RGB", (40, 40), (0, 0, k)) for k in range(200)]
    for name in ("a.gif", "a.tif", "a.webp"):
        first.save(tmp_path / name, save_all=True, append_images=others)
        began = time.process_time()
        image = decode(tmp_path / name, 8)
        assert isinstance(image, Decoded)
        assert abs(image.pixels.astype(int) - [255, 0, 0]).max() < 8
        assert time.process_time() - began < 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.gif", "a.bmp", "a.ppm"])
def test_a_truncated_or_flipped_file_is_said_or_read(tmp_path: Path, name: str) -> None:
    path, random = tmp_path / name, np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (24, 24, 3), np.uint8)).save(path)
    content = path.read_bytes()
    for _ in range(60):
        changed = bytearray(content[: random.integers(len(content))] if random.random() < 0.3 else content)
        for at in random.integers(0, max(len(changed), 1), 4):
            if changed:
                changed[at] = random.integers(256)
        image = decode(bytes(changed), 8)
        assert isinstance(image, str | Decoded)
        assert not isinstance(image, str) or "\n" not in image


def test_deep_greys_are_scaled_alike_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for values in (
        random.integers(0, 65536, (50, 7)).astype(np.uint16),
        random.integers(0, 200, (50, 7)),
        random.random((50, 7)),
        random.random((50, 7)).astype(np.float32) * 300,
        np.array([[np.nan, np.inf], [0.5, -np.inf]]),
    ):
        whole = scale_deep(values)
        monkeypatch.setattr(image_files, "_PIECE", 10)
        assert np.array_equal(scale_deep(values), whole)
        monkeypatch.undo()
