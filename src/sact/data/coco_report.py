"""What is wrong with an annotation file: each kind of problem, what is done about it, and the cases that were found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError

KEPT_CASES = 100
"""Cases of one kind that a report names; of more it keeps the number."""
FATAL = "fatal"


class Kind(NamedTuple):
    """A kind of problem: what is wrong, what is done, and for fatal ones the remedy."""

    wrong: str
    done: str
    remedy: str = ""


KINDS: dict[str, Kind] = {
    "not_json": Kind("the file is not readable JSON", FATAL, "download or write it again"),
    "no_section": Kind("a list of the format is missing", FATAL, "give a file in COCO's format for object detection"),
    "bad_category": Kind("a category has no usable id or name", FATAL, "give every category a whole id and a name"),
    "duplicate_category": Kind("two categories have the same id", FATAL, "number the categories anew"),
    "same_name": Kind("two categories have the same name", "kept as two classes"),
    "bad_image": Kind("an image has no usable id or file name", "left out"),
    "duplicate_image": Kind("two images have the same id", FATAL, "number the images anew, and with them image_id"),
    "same_file": Kind("two images have the same file", "kept as two images"),
    "no_size": Kind("an image's width or height is missing or no positive whole number", "read from the file"),
    "missing_file": Kind("an image file is missing", "left out"),
    "unreadable_file": Kind("an image file is no readable JPEG, PNG or WebP", "left out"),
    "other_size": Kind("an image file has another size than the annotations say", "left out"),
    "missing_mask": Kind("an image has no semantic mask", "left out"),
    "too_few_images": Kind(
        "too many images had to be left out", FATAL, "correct what is listed, or raise max_left_out if this is meant"
    ),
    "bad_annotation": Kind("an annotation lacks a field or has one of a wrong type", "left out"),
    "duplicate_annotation": Kind("two annotations have the same id", FATAL, "number the annotations anew"),
    "no_annotation_id": Kind("an annotation has no usable id", "kept"),
    "unknown_image": Kind("an annotation is of an image that is not listed", "left out"),
    "unknown_category": Kind("an annotation is of a category that is not listed", FATAL, "list the category"),
    "bad_box": Kind("a box is not four finite numbers", "left out"),
    "zero_area": Kind("a box has no area", "left out"),
    "outside": Kind("a box lies outside the image", "left out"),
    "sticks_out": Kind("a box sticks out of the image by more than a pixel", "clipped"),
    "no_area": Kind("an object's area is missing or not positive", "width times height of its box"),
    "bad_segmentation": Kind("a segmentation is missing or unusable", "its box is ignored (255), its mask empty"),
    "too_few_annotations": Kind(
        "too many annotations had to be left out",
        FATAL,
        "correct what is listed, or raise max_left_out if this is meant",
    ),
    "nothing_left": Kind("there is no image with a usable object", FATAL, "give a file that has some"),
}


class Problem(NamedTuple):
    """One case: its kind, the field in the file, the entry's id, and what stands there."""

    kind: str
    field: str
    id: int | str | None
    value: str

    def __str__(self) -> str:
        of = "" if self.id is None else f" (id {self.id})"
        return f"{self.field}{of}{': ' if self.field or of else ''}{self.value}"


@dataclass
class Report:
    """The problems of one annotation file; its text form is for people.

    Attributes:
        file: the annotation file.
        counts: cases per kind.
        problems: the first hundred cases of each kind.
        totals: "images", "annotations", "categories", "crowds" and "empty" (images without objects) that are used.
    """

    file: Path
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, where: str, id: object = None, value: object = "") -> None:
        """Note a case."""
        self.counts[kind] += 1
        if self.counts[kind] <= KEPT_CASES:
            known = id if id is None or type(id) is int else _short(id)
            self.problems.append(Problem(kind, where, known, value if isinstance(value, str) else _short(value)))

    @property
    def fatal(self) -> list[Problem]:
        """The cases with which the file cannot be used."""
        return [problem for problem in self.problems if KINDS[problem.kind].done == FATAL]

    def check(self) -> None:
        """Raise InputError if there is a fatal problem; the sentence names the first one, its field and the remedy."""
        if not self.fatal:
            return
        first = self.fatal[0]
        kind, count = KINDS[first.kind], self.counts[first.kind]
        also = f" ({count} cases)" if count > 1 else ""
        raise InputError(f"{self.file}: {kind.wrong}{also}, {first}; {kind.remedy}")

    def text(self, cases: int = 3) -> str:
        """The report, a line per kind with its first cases; of a file without problems one line.

        Args:
            cases: cases of each kind that are named.
        """
        used = ", ".join(f"{count} {name}" for name, count in self.totals.items())
        head = f"{self.file}: {used or 'not usable'}; {sum(self.counts.values()) or 'no'} problems"
        return "\n".join([head, *(self._line(kind, cases) for kind in KINDS if self.counts[kind])])

    def _line(self, kind: str, cases: int) -> str:
        found = [str(problem) for problem in self.problems if problem.kind == kind][:cases]
        more = ["..."] if self.counts[kind] > len(found) else []
        return f"  {self.counts[kind]} x {KINDS[kind].wrong}; {KINDS[kind].done}: {'; '.join(found + more)}"

    __str__ = text


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
