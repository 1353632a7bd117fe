"""Pictures as a video, written in parts so that it can go on where a run ended, and joined without coding them anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import require
from ..files import replacing

# Without frames that refer to later ones ("bf"), parts can be joined packet by packet.
_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "20", "preset": "veryfast", "bf": "0"},
    "mpeg4": {"b": "4000000", "bf": "0"},
}


@lru_cache(maxsize=1)
def encoder() -> str | None:
    """The first encoder that PyAV has here of those that are used; None where it has none of them."""
    codec = require("av.codec", "video")
    for name in _ENCODERS:
        with contextlib.suppress(ValueError):  # PyAV's error for unknown codecs is one
            codec.Codec(name, "w")
            return name
    return None


@contextlib.contextmanager
def encoding(path: Path, rate: Fraction) -> Iterator[Callable[[Image.Image], None]]:
    """A function that adds a picture to an MP4 file, which is there once the block ends well.

    Args:
        path: of the file.
        rate: pictures per second.

    Yields:
        The function. Sides are made even, as the video's colours ask for; all pictures are of one size.
    """
    av = require("av", "video")
    name = encoder()
    assert name is not None
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream(name, rate=rate, options=_ENCODERS[name])
        stream.pix_fmt = "yuv420p"
        started = False

        def add(picture: Image.Image) -> None:
            nonlocal started
            picture = _even(picture)
            if not started:
                stream.width, stream.height = picture.size
                started = True
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))

        yield add
        if started:
            container.mux(stream.encode(None))


def join(parts: Sequence[Path], path: Path, rate: Fraction) -> None:
    """Write the videos of `encoding`, one after the other, as one."""
    av = require("av", "video")
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream: Any = None
        count = 0
        for part in parts:
            with av.open(str(part)) as source:
                if stream is None:
                    stream = container.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size == 0:  # the end
                        continue
                    packet.pts = packet.dts = round(count / rate / packet.time_base)
                    packet.stream = stream
                    container.mux(packet)
                    count += 1


def _even(picture: Image.Image) -> Image.Image:
    width, height = (side + side % 2 for side in picture.size)
    return picture if picture.size == (width, height) else picture.resize((width, height))
