"""Pictures as people have them, and as nobody wants them."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image, kind="PNG", **options):
    """Return a picture, an array or a PIL image, as the content of a file."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(mode, color, size=(4, 4), kind="PNG", **options):
    """Return a picture of one color as the content of a file."""
    image = Image.new(mode, size, color)
    if mode == "P":
        image.putpalette(RED)
    return encode(image, kind, **options)


def turned(kind, **options):
    """Return a picture, red above blue, that lies on its side but for its EXIF."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4], pixels[:, 4:] = RED, BLUE
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(pixels, kind, exif=exif, **options)


def stripes():
    """Return a picture three times as wide as high: red, green, blue."""
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, :4], pixels[:, 4:8], pixels[:, 8:] = RED, GREEN, BLUE
    return encode(pixels)


def png(width, height, depth, color_type, row, chunks=()):
    """Return a PNG, by hand: each row is `row`; further chunks come first."""

    def chunk(name, content):
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * min(height, 4))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def flip(content, place):
    """Return the content with one bit flipped."""
    damaged = bytearray(content)
    damaged[place] ^= 1
    return bytes(damaged)


def many_frames(kind):
    """Return an animation whose first frame is red and whose second is blue."""
    first, second = (Image.new("RGB", (4, 4), color) for color in (RED, BLUE))
    options = {} if kind == "PNG" else {"lossless": True}
    return encode(first, kind, save_all=True, append_images=[second], **options)


NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
BOMB = b"a\0\0" + zlib.compress(bytes(2 << 20))  # Of text.
DEEP = struct.pack(">HHHH", 40000, 255, 256, 65535)
RGB16 = {"row": DEEP[:6] * 4, "depth": 16, "color_type": 2}

# Files, and the color (R, G, B) of the pixel at the bottom left of each.
READABLE = {
    "gray.png": (plain("L", 100), (100,) * 3),
    "gray.jpg": (plain("L", 100, kind="JPEG"), (100,) * 3),
    "gray and alpha.png": (plain("LA", (0, 0)), WHITE),
    "gray of 16 bits.png": (encode(np.full((4, 4), 40000, np.uint16)), (156,) * 3),
    "RGB of 16 bits.png": (png(4, 4, **RGB16), (156, 0, 1)),
    "RGBA of 16 bits.png": (png(4, 4, 16, 6, DEEP * 4), (156, 0, 1)),
    "1 bit.png": (plain("1", 1), WHITE),
    "palette.png": (plain("P", 0), RED),
    "transparent palette.png": (plain("P", 0, transparency=0), WHITE),
    "transparent color.png": (plain("RGB", RED, transparency=RED), WHITE),
    "RGBA.png": (plain("RGBA", (255, 0, 0, 255)), RED),
    "half transparent.png": (plain("RGBA", (255, 0, 0, 128)), (255, 127, 127)),
    "CMYK.jpg": (plain("CMYK", (0, 255, 255, 0), kind="JPEG"), RED),
    "progressive.jpeg": (plain("RGB", RED, kind="JPEG", progressive=True), RED),
    "turned.jpg": (turned("JPEG", quality=100, subsampling=0), BLUE),
    "turned.png": (turned("PNG"), BLUE),
    "turned.webp": (turned("WEBP", lossless=True), BLUE),
    "broken exif.jpg": (plain("RGB", RED, kind="JPEG", exif=b"Exif\0\0II*\0\xff"), RED),
    "lossless.webp": (plain("RGB", RED, kind="WEBP", lossless=True), RED),
    "animated.webp": (many_frames("WEBP"), RED),
    "animated.png": (many_frames("PNG"), RED),
    "a png.jpg": (plain("RGB", RED), RED),
    "LOUD.PNG": (plain("RGB", RED), RED),
    "one pixel.png": (plain("RGB", RED, (1, 1)), RED),
    "thread.png": (plain("RGB", RED, (400, 1)), RED),
    "stripes.png": (stripes(), GREEN),
    "\u05d0\u4e2d\N{GRINNING FACE} $x$<b>,;=\n.png": (plain("RGB", RED), RED),
}
NO_PICTURE = "not a PNG, JPEG or WebP picture"
# Files, and what is said of each; Pillow's words are its own, and change.
UNREADABLE = {
    "empty.png": (b"", NO_PICTURE),
    "text.png": (b"hello", NO_PICTURE),
    "a gif.png": (plain("L", 0, kind="GIF"), NO_PICTURE),
    "a bitmap.jpg": (plain("L", 0, kind="BMP"), NO_PICTURE),
    "no pixels.png": (png(0, 0, 8, 0, b""), NO_PICTURE),
    "header.png": (encode(NOISE)[:20], "runcated"),
    "cut.png": (encode(NOISE)[:300], "truncated"),
    "cut.jpg": (encode(NOISE, "JPEG")[:-40], "truncated"),
    "cut.webp": (encode(NOISE, "WEBP")[:-9], ""),
    "flipped.png": (flip(encode(NOISE), 200), "broken"),
    "bomb.png": (png(30000, 30000, 8, 0, b"\0"), "limit"),
    "bomb of text.png": (png(4, 4, chunks=[(b"zTXt", BOMB)], **RGB16), "too large"),
    "dangling.png": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "pipe.png": (os.mkfifo, "no such file"),
}


def write(path, content):
    """Write a file; its content may also be a function that makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
