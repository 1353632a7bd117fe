"""What a recipe may say: the fields that every task has, and those of each task."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from .data import create_dataset, list_datasets
from .engines import NormStatistics
from .models import Detector, Network, Segmenter, create_detector, create_model, create_segmenter
from .models.network import MIN_SIZE
from .scores import Halting

DETECTOR_OPTIONS = (
    *("fpn_channels", "representation_size", "max_size", "anchor_sizes"),
    *("rpn_pre_nms_top_n_train", "rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_train", "rpn_post_nms_top_n_test"),
    *("rpn_batch_size_per_image", "box_batch_size_per_image"),
    *("box_score_thresh", "box_nms_thresh", "box_detections_per_img"),
)
"""Fields that are options of `create_detector`."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]

CLASSIFIED = tuple(name for name in list_datasets() if not name.startswith("coco"))
"""Data sets with one class per image."""

SECTIONS = {
    "task": "the model",
    "data": "the data",
    "optimizer": "the optimisation",
    "precision": "the machine",
}
"""The groups of fields that every task has, by the first field of each."""


class Recipe(BaseModel, ABC):
    """Everything that defines a training run. Steps are optimiser steps, epochs are passes over the training set."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    data_names: ClassVar[tuple[str, ...]] = ()

    task: Literal["classification", "detection", "segmentation"] = Field(
        "classification", description="one class per image, boxes of objects, or one class per pixel"
    )
    model: str = Field(description='a name of sact.list_models(), or "resnet" or "cifar_resnet" with units')
    units: list[int] | None = Field(None, description="units per block; by default those of the named model")
    base_channels: int | None = Field(None, description="width of the first block; by default the paper's")
    num_classes: int | None = Field(None, ge=2, description="by default the data set's number of classes")
    halting: Halting = Field("none", description="act: per image; sact: per position; none: every unit runs")
    eps: float = Field(0.01, gt=0, lt=1, description="a position halts once its cumulative score reaches 1 - eps")
    tau: float = Field(
        0.0, ge=0, le=1, description="weight of the ponder cost in the loss; larger means less computation"
    )
    init: str | None = Field(
        None,
        description="checkpoint to start from, by default none; a plain one gives an adaptive network fresh heads, and "
        "a classifier gives a detector or segmenter its extractor",
    )

    data: str = Field(
        description=f"a data set: {', '.join(CLASSIFIED)}; for detection coco, for segmentation coco_segmentation"
    )
    data_dir: str | None = Field(
        None, description="folder of the data, for scenes of the photographs; by default where they lie on this machine"
    )
    data_options: dict[str, Any] = Field({}, description="further arguments of the data set, like scale of scenes")
    train_length: int | None = Field(None, ge=1, description="images per epoch; by default all")
    val_length: int | None = Field(None, ge=1, description="validation images; by default all")
    val_every: int | None = Field(
        None, ge=1, description="epochs between two validations; by default so many that there are at most 20"
    )

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="adamw takes momentum as its first beta")
    lr: float = Field(0.1, gt=0, description="learning rate, with one_cycle its peak")
    score_lr_scale: float = Field(1.0, gt=0, description="learning rate of the score heads relative to the rest")
    momentum: float = Field(0.9, ge=0, lt=1, description="of the optimiser")
    weight_decay: float = Field(2e-4, ge=0, description="on convolution weights only, as in the paper")
    batch_size: int = Field(128, ge=1, description="images per step and process")
    max_epochs: int | None = Field(None, ge=1, description="length of the run; give either this or max_steps")
    max_steps: int | None = Field(None, ge=1, description="length of the run; give either this or max_epochs")
    schedule: Literal["step", "one_cycle", "poly", "constant"] = Field(
        "step", description="how lr changes: drops at milestones, rises and falls once, falls to 0, not at all"
    )
    milestones: list[int] = Field([], description="where lr drops, in steps if max_steps is given, else in epochs")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of lr at each milestone")
    warmup_steps: int = Field(0, ge=0, description="steps in which lr rises linearly to its value")
    gradient_clip: float | None = Field(
        None, gt=0, description="longest gradient, all parameters together; longer ones are shortened to it"
    )
    norm_momentum: float | None = Field(
        None, gt=0, le=1, description="momentum of the norms' running statistics; by default the model family's"
    )
    freeze_norms: bool = Field(
        False, description="keep norms in evaluation mode, as when fine-tuning a detector; steps then skip what halted"
    )
    norm_statistics: NormStatistics = Field(
        "all",
        description="positions whose statistics norms take in training: all, as the authors; active: those that are "
        "read, so that steps skip what has halted, which changes the method",
    )

    precision: Precision = Field("32-true", description="of the arithmetic, as in Lightning")
    accelerator: str = Field("auto", description="cpu, cuda, mps, ..., as in Lightning")
    devices: int | Literal["auto"] = Field("auto", description="how many devices train together")
    channels_last: bool = Field(True, description="memory format in which convolutions are fastest")
    workers: int = Field(0, ge=0, description="processes that load data; 0: the training process itself")
    seed: int = Field(0, ge=0, description="of the weights, the order of images, augmentation, and scenes")
    log_every: int = Field(50, ge=1, description="steps between two rows of the log")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.data not in self.data_names:
            raise ValueError(f'data is "{self.data}", but for {self.task} it must be {" or ".join(self.data_names)}')
        taken = sorted(set(inspect.signature(create_dataset).parameters) & set(self.data_options))
        if taken:
            raise ValueError(
                f"data_options may not hold {taken[0]}; there are the fields data, data_dir, image_size, train_length, "
                "val_length and seed"
            )
        if (self.max_epochs is None) == (self.max_steps is None):
            raise ValueError("give either max_epochs or max_steps (and not both)")
        if self.tau > 0 and self.halting == "none":
            raise ValueError(f'tau is {self.tau}, but halting is "none"; set halting to "act" or "sact"')
        if self.freeze_norms and self.init is None and self.task != "classification":
            raise ValueError(
                "freeze_norms is true, but without init norms know nothing yet; give init, or set freeze_norms: false"
            )
        if self.norm_statistics == "active" and (self.halting != "sact" or self.freeze_norms):
            raise ValueError(
                f'norm_statistics is "active", but halting is "{self.halting}" and freeze_norms {self.freeze_norms}; '
                'it is for halting "sact" with norms that are not frozen'
            )
        if self.warmup_steps and self.schedule == "one_cycle":
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but the schedule one_cycle rises by itself; leave one out"
            )
        return self

    @abstractmethod
    def create(self, num_classes: int, class_names: Sequence[str] | None = None) -> nn.Module:
        """Its model, with fresh weights, for so many classes, counted as its task does.

        Args:
            num_classes: a detector's without the background, a segmenter's with it.
            class_names: of detectors and segmenters.

        Raises:
            InputError: a field is out of range.
        """


class ClassificationRecipe(Recipe):
    """A run of a classifier."""

    data_names: ClassVar[tuple[str, ...]] = CLASSIFIED

    task: Literal["classification"] = "classification"
    image_size: int | None = Field(
        None, ge=MIN_SIZE, description="side of the images in pixels; by default the data set's"
    )
    cache: bool = Field(False, description="draw the training images once and keep them as uint8 on disk")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label spread over all classes")

    @model_validator(mode="after")
    def _check_data(self) -> ClassificationRecipe:
        if self.cache and self.data != "scenes":
            raise ValueError(f'cache is true, but data is "{self.data}"; only scenes are drawn, leave cache out')
        return self

    def create(self, num_classes: int, class_names: Sequence[str] | None = None) -> Network:
        """As `Recipe.create`."""
        return create_model(
            self.model,
            self.halting,
            num_classes=num_classes,
            eps=self.eps,
            units=self.units,
            base_channels=self.base_channels,
        )


class DetectionRecipe(Recipe):
    """A run of a detector, Faster R-CNN. Fields that torchvision has too bear its names and have its defaults."""

    data_names: ClassVar[tuple[str, ...]] = ("coco",)

    task: Literal["detection"] = "detection"
    num_classes: int | None = Field(None, ge=1, description="without background; by default the data set's")
    lr: float = Field(0.02, gt=0, description="learning rate, with one_cycle its peak")
    batch_size: int = Field(16, ge=1, description="images per step and process")
    freeze_norms: bool = Field(
        True, description="keep norms in evaluation mode, as is customary here; steps then skip what halted"
    )
    form: Literal["fpn", "c4"] = Field(
        "fpn", description="fpn: a pyramid over all blocks; c4: the paper's, block 4 classifies boxes"
    )
    fpn_channels: int = Field(256, ge=1, description="channels of the pyramid")
    representation_size: int = Field(1024, ge=1, description="width of the two layers that classify boxes, with fpn")
    min_sizes: list[int] = Field(
        [800], min_length=1, description="shorter sides of training images in pixels, one of them drawn for each step"
    )
    test_size: int = Field(800, ge=MIN_SIZE, description="shorter side of images in evaluation")
    max_size: int = Field(1333, ge=MIN_SIZE, description="most that the longer side may have; the shorter one follows")
    anchor_sizes: list[list[int]] | None = Field(
        None, description="sides of anchors in pixels, a list per feature map; by default the form's"
    )
    rpn_pre_nms_top_n_train: int = Field(2000, ge=1, description="proposals per map before suppression, in training")
    rpn_pre_nms_top_n_test: int = Field(1000, ge=1, description="the same in evaluation")
    rpn_post_nms_top_n_train: int = Field(2000, ge=1, description="proposals after it, in training")
    rpn_post_nms_top_n_test: int = Field(1000, ge=1, description="the same in evaluation")
    rpn_batch_size_per_image: int = Field(256, ge=1, description="anchors of an image that the loss sees")
    box_batch_size_per_image: int = Field(512, ge=1, description="proposals of an image that the loss sees")
    box_score_thresh: float = Field(0.05, ge=0, lt=1, description="boxes of a lower score are left out")
    box_nms_thresh: float = Field(0.5, gt=0, le=1, description="overlap (IoU) from which the better box stays alone")
    box_detections_per_img: int = Field(100, ge=1, description="most boxes in an image")

    @model_validator(mode="after")
    def _check_sizes(self) -> DetectionRecipe:
        for name, sizes in (("min_sizes", self.min_sizes), ("test_size", [self.test_size])):
            if not all(MIN_SIZE <= size <= self.max_size for size in sizes):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but sides must be from {MIN_SIZE} to max_size, {self.max_size}"
                )
        return self

    def create(self, num_classes: int, class_names: Sequence[str] | None = None) -> Detector:
        """As `Recipe.create`."""
        return create_detector(
            self.model,
            num_classes,
            self.halting,
            self.form,
            eps=self.eps,
            units=self.units,
            base_channels=self.base_channels,
            class_names=class_names,
            min_size=self.test_size,
            **{name: getattr(self, name) for name in DETECTOR_OPTIONS},
        )


class SegmentationRecipe(Recipe):
    """A run of a segmenter."""

    data_names: ClassVar[tuple[str, ...]] = ("coco_segmentation",)

    task: Literal["segmentation"] = "segmentation"
    num_classes: int | None = Field(None, ge=2, description="with background; by default the data set's")
    lr: float = Field(0.02, gt=0, description="learning rate, with one_cycle its peak")
    batch_size: int = Field(16, ge=1, description="images per step and process")
    head: Literal["fcn", "deeplabv3"] = Field("fcn", description="torchvision's head on the last block")
    output_stride: Literal[8, 16, 32] = Field(8, description="pixels per position of the last block")
    image_size: int = Field(
        480, ge=MIN_SIZE, description="side of what training cuts out of images, which evaluation sees whole"
    )

    @model_validator(mode="after")
    def _check_batch(self) -> SegmentationRecipe:
        if self.head == "deeplabv3" and self.batch_size == 1:
            raise ValueError("batch_size is 1, but the norms of deeplabv3 see one number per image; make it at least 2")
        return self

    def create(self, num_classes: int, class_names: Sequence[str] | None = None) -> Segmenter:
        """As `Recipe.create`."""
        return create_segmenter(
            self.model,
            num_classes,
            self.halting,
            self.head,
            output_stride=self.output_stride,
            eps=self.eps,
            units=self.units,
            base_channels=self.base_channels,
            class_names=class_names,
        )


RECIPES: dict[str, type[Recipe]] = {
    "classification": ClassificationRecipe,
    "detection": DetectionRecipe,
    "segmentation": SegmentationRecipe,
}
"""What a recipe is, by its task."""


def own_fields(recipe: type[Recipe]) -> list[str]:
    """The fields that a task has for itself, and those whose meaning or default differs from the other tasks'."""
    return [name for name in recipe.__annotations__ if name in recipe.model_fields and name != "task"]
