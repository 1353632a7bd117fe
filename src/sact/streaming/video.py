"""Frames of a video, one at a time, and what is wrong with it where it is damaged."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import InputError, require

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

_CUT_SHORT = 0.5
"""Seconds that a video may end earlier than it says: containers round, and count the sound too."""
_USUAL_RATE = 25
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@dataclass(frozen=True)
class Mark:
    """A place in a video, from where reading can go on.

    Attributes:
        number: of the frame in the video, from 0.
        time: seconds since the video's start.
        pts: the container's time stamp, if there is one.
        damaged: pieces up to here that could not be decoded.
        damaged_at: seconds of the first of them; -1 where there is none.
    """

    number: int
    time: float
    pts: int | None
    damaged: int = 0
    damaged_at: float = -1.0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


class Video:
    """A video file; see `open_video`.

    Args:
        path: of the file.
        every: keep every so manieth frame.
        fps: keep so many frames per second instead, at most all.

    Attributes:
        rate: frames per second that are kept.
        count: frames that are kept, as far as the container says; 0 where it does not.

    Raises:
        InputError: this is no video, or none that PyAV reads.
    """

    def __init__(self, path: Path, every: int = 1, fps: float | None = None) -> None:
        self._av = require("av", "video")
        self._path, self._every, self._fps = path, every, fps
        self._container = self._open()
        stream = self._stream
        rate = Fraction(stream.average_rate or stream.guessed_rate or _USUAL_RATE)
        self._stated = self._stated_seconds()
        frames = stream.frames or int((self._stated or 0) * rate)
        kept = Fraction(every) if fps is None else max(Fraction(1), rate / Fraction(fps).limit_denominator(1000))
        self.rate = rate / kept
        self.count = math.ceil(frames / kept)
        self._damage, self._damage_at = 0, -1.0
        self._reached = self._time = 0.0
        self._broken_off = False
        self._coded_size = (stream.codec_context.width, stream.codec_context.height)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    @property
    def problem(self) -> str:
        """What was wrong with it, once all frames are read; "" if nothing."""
        found = []
        if self._damage:
            found.append(f"damaged at {self._damage_at:.2f} s: {self._damage} frames or packets could not be decoded")
        stated = self._stated
        if self._broken_off or (stated is not None and max(self._reached, self._time) < stated - _CUT_SHORT):
            of = f" of {stated:.2f} s" if stated is not None else ""
            found.append(f"cut short: its last frame is at {self._time:.2f} s{of}")
        return "; ".join(found)

    def frames(self, after: Mark | None = None) -> Generator[tuple[Mark, Image.Image], None, None]:
        """The frames that are kept, upright RGB, in the order they are shown, all of one size.

        Args:
            after: the last one that was read by an earlier call, perhaps of another process; reading goes on behind it.
        """
        last = after
        self._time = after.time if after is not None else 0.0
        for number, frame in self._after(after):
            self._time = time = self._seconds(frame, number)
            mark = Mark(number, time, frame.pts, self._damage, self._damage_at)
            if self._is_kept(mark, last):
                last = mark
                yield mark, self._picture(frame)

    def _is_kept(self, mark: Mark, last: Mark | None) -> bool:
        if self._fps is None:
            return mark.number % self._every == 0
        slots = [math.floor(each.time * self._fps + 1e-6) for each in (mark, last) if each is not None]
        return len(slots) == 1 or slots[0] > slots[1]

    def _picture(self, frame: VideoFrame) -> Image.Image:
        picture: Image.Image = frame.to_image()
        if picture.size != self._coded_size:
            picture = picture.resize(self._coded_size, Image.Resampling.BILINEAR)
        turn = _TURNS.get(int(getattr(frame, "rotation", 0)) % 360)
        return picture if turn is None else picture.transpose(turn)

    def _seconds(self, frame: VideoFrame, number: int) -> float:
        if frame.pts is None or frame.time_base is None:
            return float(number / Fraction(self._stream.average_rate or _USUAL_RATE))
        return float((frame.pts - (self._stream.start_time or 0)) * frame.time_base)

    def _after(self, mark: Mark | None) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their numbers, from the first, or behind a mark: from the key frame before it, if that works."""
        if mark is None:
            yield from enumerate(self._decoded())
            return
        if mark.pts is not None and self._seek(mark.pts):
            frames = self._decoded()
            for frame in frames:
                if frame.pts == mark.pts:
                    self._damage, self._damage_at = mark.damaged, mark.damaged_at
                    yield from enumerate(frames, mark.number + 1)
                    return
                if frame.pts is not None and frame.pts > mark.pts:
                    break
        self._container.close()
        self._container = self._open()
        for number, frame in enumerate(self._decoded()):
            if number == mark.number:
                self._damage, self._damage_at = mark.damaged, mark.damaged_at
            if number > mark.number:
                yield number, frame

    def _seek(self, pts: int) -> bool:
        try:
            self._container.seek(pts, stream=self._stream)
        except self._av.error.FFmpegError:
            return False
        return True

    def _decoded(self) -> Iterator[VideoFrame]:
        """All that can be decoded from here on."""
        packets = self._container.demux(*self._container.streams.video, *self._container.streams.audio)
        while True:
            try:
                packet = next(packets, None)
            except self._av.error.FFmpegError:
                self._broken_off = True
                yield from self._frames_of(lambda: self._stream.decode(None))  # what the decoder still holds
                return
            if packet is None:
                return
            if packet.pts is not None and packet.time_base is not None:
                start = packet.stream.start_time or 0
                end = packet.pts - start + (packet.duration or 0)
                self._reached = max(self._reached, float(end * packet.time_base))
            if packet.stream.index == self._stream.index:
                yield from self._frames_of(packet.decode)

    def _frames_of(self, decode: Callable[[], list[Any]]) -> Iterator[VideoFrame]:
        try:
            frames = decode()
        except self._av.error.FFmpegError:
            self._note_damage()
            return
        for frame in frames:
            if frame.is_corrupt:
                self._note_damage()
            yield frame

    def _note_damage(self) -> None:
        self._damage_at = self._time if self._damage == 0 else self._damage_at
        self._damage += 1

    @property
    def _stream(self) -> Any:
        return self._container.streams.video[0]

    def _stated_seconds(self) -> float | None:
        """How long the pictures last as far as the container says: the least where it says several things."""
        stream, container = self._stream, self._container
        if container.format.name == "avi" and stream.frames and stream.average_rate:
            return float(stream.frames / stream.average_rate)  # FFmpeg shortens other numbers to what is there
        stated = [] if container.duration is None else [container.duration / self._av.time_base]
        if stream.duration and stream.time_base:
            stated.append(float(stream.duration * stream.time_base))
        return min(stated, default=None)

    def _open(self) -> InputContainer:
        try:
            container: InputContainer = self._av.open(str(self._path))
        except (self._av.error.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            if _lacks_index(self._path):
                raise InputError(
                    f"{self._path} has no index, which is at an MP4's end: it was cut short; record or fetch it again"
                ) from error
            raise InputError(f"{self._path} is no video that can be read ({reason}); check the file") from error
        if not container.streams.video:
            container.close()
            raise InputError(f"{self._path} holds no pictures, perhaps sound alone; name a video")
        container.streams.video[0].thread_type = "SLICE"  # with threads for frames, those before damage get lost
        return container


@contextlib.contextmanager
def open_video(path: Path, every: int = 1, fps: float | None = None) -> Iterator[Video]:
    """A video that is closed with the block; see `Video`."""
    video = Video(path, every, fps)
    try:
        yield video
    finally:
        video.close()


def _lacks_index(path: Path) -> bool:
    """Whether this is an MP4 without the box that says where its pictures are."""
    kinds = []
    try:
        with open(path, "rb") as file:
            while len(head := file.read(8)) == 8:
                size, kind = struct.unpack(">I4s", head)
                kinds.append(kind)
                rest = struct.unpack(">Q", file.read(8))[0] - 16 if size == 1 else size - 8
                if rest < 0:  # 0 stands for the rest of the file
                    break
                file.seek(rest, 1)
    except (OSError, struct.error):
        return False
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds
