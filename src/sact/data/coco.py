"""COCO-format data sets for detection and segmentation, of any origin (extra "tasks"; segmentations: "detection")."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError, require
from ..preprocessing import open_image
from .coco_check import MAX_LEFT_OUT, CocoFile, read_coco, told_apart
from .coco_images import mask_name
from .coco_masks import IGNORED, draw_mask, draw_semantic, read_semantic
from .coco_report import Report
from .splits import used_length
from .transforms import detection_training, segmentation_training

OBJECT = "object"
"""The one class there is where categories are not told apart."""
BROKEN_IN_A_ROW = 20
MULTIPLE = 32
"""Sides of whole images for segmentation are padded to a multiple of this, so that no stride leaves a rest."""
Target = dict[str, Any]


class _Coco:
    """What both data sets share: the file, which of its images are used, and how a picture is read."""

    class_names: tuple[str, ...]

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None,
        split: str,
        train: bool,
        length: int | None,
        class_agnostic: bool,
        **options: Any,
    ) -> None:
        if data_dir is None:
            raise InputError(
                "COCO cannot be downloaded; give the folder that has annotations/ and the images (data_dir in a "
                "recipe, --data-dir on the command line)"
            )
        self.content: CocoFile = read_coco(data_dir, split, **options)
        self.train = train
        self.annotation_file = self.content.report.file
        self.category_ids = (1,) if class_agnostic else self.content.category_ids
        self.labels = self.content.objects.labels.clip(max=1) if class_agnostic else self.content.objects.labels
        count = used_length(length, len(self.content.images))
        # An even spread, as files may be sorted.
        self.rows = [index * len(self.content.images) // count for index in range(count)]
        if self.problems.counts:
            warnings.warn(str(self.problems), stacklevel=3)

    @property
    def problems(self) -> Report:
        """What was found wrong with the annotation file and the images, and what is done about it."""
        return self.content.report

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, index: int) -> tuple[int, Tensor]:
        """A picture's row in the file and its pixels, uint8 [3, H, W].

        In training a picture that is damaged further on than its header gives way to the next one.
        """
        at = range(len(self))[index]
        for turn in range(BROKEN_IN_A_ROW):
            row = self.rows[(at + turn) % len(self)]
            try:
                picture = self._open(row)
            except InputError as error:
                if not self.train:
                    raise
                warnings.warn(f"left out of training: {error}", stacklevel=2)
                continue
            return row, torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        raise InputError(f"{BROKEN_IN_A_ROW} image files in a row are broken in {str(self.content.folder)!r}; check it")

    def _open(self, row: int) -> Image.Image:
        image = self.content.images[row]
        file = self.content.folder / image.name
        for upright in (True, False):
            picture = open_image(file, upright=upright)
            if picture.size == image.size:
                return picture
        raise InputError(
            f"the image {str(file)!r} has {picture.width} x {picture.height} pixels, but images[{image.position}] of "
            f"{str(self.annotation_file)!r} says {image.size[0]} x {image.size[1]}; it was changed meanwhile"
        )

    def _of(self, row: int) -> slice:
        first = self.content.objects.first
        return slice(int(first[row]), int(first[row + 1]))


class CocoDetection(_Coco, Dataset[tuple[Tensor, Target]]):
    """Images with the boxes of their objects, as torchvision's detectors take them.

    Args:
        data_dir: folder of the data set, see docs/data.md for layouts.
        split: "train", "val" or "test".
        train: reflect and recolour at random; crowd regions are left out of the targets.
        length: number of images, an even spread over the file; None for all.
        size: None; detectors resize images themselves.
        annotations: the annotation file, relative to `data_dir`, where it is not in a usual place.
        images: folder of the images, likewise.
        max_left_out: share of images, and of annotations, that may be left out because something is wrong with them.
        masks: targets have "masks" as well.
        class_agnostic: all categories are one class, "object".

    Each element is (image float32 [3, H, W] in [0, 1], target) with

    - "boxes": float32 [K, 4], x1, y1, x2, y2 in pixels, of positive area; K is 0 for an image without objects;
    - "labels": int64 [K] from 1; `class_names[label - 1]`, and `category_ids[label - 1]` is COCO's id;
    - "area": float32 [K], of the segmentation; "iscrowd": int64 [K];
    - "image_id": int, COCO's;
    - "masks": uint8 [K, H, W], empty where the file's is unusable.

    Attributes:
        problems: the report; also given as a warning if there is any.

    Raises:
        InputError: the data cannot be had, is in another layout, or has problems with which it is not safe to go on.
        MissingExtraError: torchvision, or with masks faster-coco-eval, is not installed.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None,
        split: str = "train",
        train: bool = False,
        length: int | None = None,
        size: int | None = None,
        annotations: str | None = None,
        images: str | None = None,
        max_left_out: float = MAX_LEFT_OUT,
        masks: bool = False,
        class_agnostic: bool = False,
    ) -> None:
        if size is not None:
            raise InputError(
                f"size is {size!r}, but images of detection keep theirs; leave image_size out and give the detector "
                "its size instead"
            )
        options = {"annotations": annotations, "images": images, "max_left_out": max_left_out}
        super().__init__(
            data_dir, split, train, length, class_agnostic, masks="objects" if masks else "none", **options
        )
        self.class_names = (OBJECT,) if class_agnostic else self.content.class_names
        self._augment = detection_training() if train else None

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        row, pixels = self._read(index)
        target = self._target(row)
        if self._augment is not None:
            tensors = require("torchvision.tv_tensors", "tasks")
            canvas = tuple(pixels.shape[-2:])
            boxes = tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=canvas)
            moved = {"boxes": boxes} | {key: tensors.Mask(target[key]) for key in ("masks",) if key in target}
            pixels, moved = self._augment(tensors.Image(pixels), moved)
            target |= {name: value.as_subclass(Tensor) for name, value in moved.items()}
        return pixels.as_subclass(Tensor).float() / 255, target

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of every image in its file."""
        return [self.content.images[row].size for row in self.rows]

    def _target(self, row: int) -> Target:
        objects = self.content.objects
        chosen = np.arange(len(objects.labels))[self._of(row)]
        if self.train:
            chosen = chosen[~objects.crowds[chosen]]
        target: Target = {
            "boxes": torch.from_numpy(objects.boxes[chosen]),
            "labels": torch.from_numpy(self.labels[chosen]),
            "image_id": self.content.images[row].id,
            "area": torch.from_numpy(objects.areas[chosen]),
            "iscrowd": torch.from_numpy(objects.crowds[chosen].astype(np.int64)),
        }
        if objects.segmentations is not None:
            width, height = self.content.images[row].size
            drawn = [draw_mask(objects.segmentations[each], width, height) for each in chosen]
            target["masks"] = torch.from_numpy(np.stack(drawn) if drawn else np.zeros((0, height, width), np.uint8))
        return target

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
        """A batch: images and targets as lists, since sizes differ."""
        return [image for image, _ in items], [target for _, target in items]


class CocoSegmentation(_Coco, Dataset[tuple[Tensor, Tensor]]):
    """Images with the class of every position.

    The masks are those of the folder `semantic/SPLIT` where there is one, and otherwise drawn from the objects'
    segmentations: of overlapping objects the one of smaller area is on top, crowd regions are ignored.

    Args:
        data_dir: folder of the data set, see docs/data.md for layouts.
        split: "train", "val" or "test".
        train: scale, reflect and recolour at random, and crop to `size`.
        length: number of images, an even spread over the file; None for all.
        size: side of the training crops. In evaluation images are whole.
        annotations: the annotation file, relative to `data_dir`, where it is not in a usual place.
        images: folder of the images, likewise.
        max_left_out: share of images, and of annotations, that may be left out because something is wrong with them.
        class_agnostic: all categories are one class, "object".

    Each element is (image float32 [3, H, W] in [0, 1], mask int64 [H, W]). In training H = W = size; in evaluation the
    right and lower edge are padded with black to multiples of 32. A mask has 0 for background, a label from 1, and 255
    where the class is not known, the padding included.

    Attributes:
        class_names: "background" first.
        problems: the report; also given as a warning if there is any.

    Raises:
        InputError: the data cannot be had, is in another layout, or has problems with which it is not safe to go on.
        MissingExtraError: torchvision, or without semantic masks faster-coco-eval, is not installed.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None,
        split: str = "train",
        train: bool = False,
        length: int | None = None,
        size: int = 480,
        annotations: str | None = None,
        images: str | None = None,
        max_left_out: float = MAX_LEFT_OUT,
        class_agnostic: bool = False,
    ) -> None:
        options = {"annotations": annotations, "images": images, "max_left_out": max_left_out}
        super().__init__(data_dir, split, train, length, class_agnostic, masks="semantic", **options)
        names = self.content.class_names
        self.class_names = tuple(told_apart(["background", *((OBJECT,) if class_agnostic else names)]))
        if self.num_classes > IGNORED:
            raise InputError(f"there are {self.num_classes} classes with background, but a mask can have 255 at most")
        # Labels follow the ids of categories, the files' indices their order in the list.
        self._labels = np.zeros(len(names) + 1, np.uint8)
        self._labels[np.array(self.content.positions) + 1] = 1 if class_agnostic else np.arange(1, len(names) + 1)
        self._augment = segmentation_training(size, IGNORED) if train else None

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row, pixels = self._read(index)
        classes = torch.from_numpy(self._classes(row))
        if self._augment is None:
            height, width = (side + -side % MULTIPLE for side in classes.shape)
            return _padded(pixels.float() / 255, height, width, 0), _padded(classes.long(), height, width, IGNORED)
        tensors = require("torchvision.tv_tensors", "tasks")
        pixels, classes = self._augment(tensors.Image(pixels), tensors.Mask(classes))
        return pixels.as_subclass(Tensor).float() / 255, classes.as_subclass(Tensor).long()

    def _classes(self, row: int) -> np.ndarray:
        image, objects = self.content.images[row], self.content.objects
        if self.content.semantic is not None:
            return read_semantic(self.content.semantic / mask_name(image.name), self._labels, image.size)
        assert objects.segmentations is not None
        of = self._of(row)
        found = objects.boxes[of], self.labels[of], objects.areas[of], objects.crowds[of]
        return draw_semantic(objects.segmentations[of], *found, image.size)

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """A batch: images [N, 3, H, W] and masks [N, H, W], padded at the right and below to the largest."""
        height, width = (max(mask.shape[side] for _, mask in items) for side in (0, 1))
        images = [_padded(image, height, width, 0) for image, _ in items]
        return torch.stack(images), torch.stack([_padded(mask, height, width, IGNORED) for _, mask in items])


def _padded(values: Tensor, height: int, width: int, fill: int) -> Tensor:
    rest = (0, width - values.shape[-1], 0, height - values.shape[-2])
    return torch.nn.functional.pad(values, rest, value=fill)
