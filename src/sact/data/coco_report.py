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
LEFT_OUT = "left out"
_CORRECT = "correct what is listed, or where this is meant raise max_left_out (a recipe's data_options)"


class Kind(NamedTuple):
    """A kind of problem: the list it is in, what is wrong, what is done, and for fatal ones the remedy."""

    section: str
    wrong: str
    done: str
    remedy: str = ""


KINDS: dict[str, Kind] = {
    "not_json": Kind("", "the file is not readable JSON", FATAL, "download or write it again"),
    "no_section": Kind(
        "", "a list of the format is missing", FATAL, "give a file with images, annotations, categories"
    ),
    "bad_category": Kind("categories", "a category has no usable id or name", FATAL, "give each a whole id and a name"),
    "duplicate_category": Kind("categories", "two categories have the same id", FATAL, "number them anew"),
    "same_name": Kind(
        "categories", "two categories have the same name", "kept as two classes, a number behind the second name"
    ),
    "bad_image": Kind("images", "an image has no usable id or file name", LEFT_OUT),
    "duplicate_image": Kind("images", "two images have the same id", FATAL, "number the images anew, and image_id too"),
    "same_file": Kind("images", "two images have the same file", "kept as two images"),
    "no_size": Kind("images", "an image has no usable width and height", "read from the file"),
    "missing_file": Kind("images", "an image file is missing", LEFT_OUT),
    "unreadable_file": Kind("images", "an image file is no readable JPEG, PNG or WebP", LEFT_OUT),
    "other_size": Kind("images", "an image file has another size than the annotations say", LEFT_OUT),
    "missing_mask": Kind("images", "an image has no semantic mask although others have", LEFT_OUT),
    "too_few_images": Kind("images", "too many images had to be left out", FATAL, _CORRECT),
    "bad_annotation": Kind("annotations", "an annotation lacks a field or has one of a wrong type", LEFT_OUT),
    "duplicate_annotation": Kind("annotations", "two annotations have the same id", FATAL, "number them anew"),
    "no_annotation_id": Kind("annotations", "an annotation has no usable id", "kept"),
    "unknown_image": Kind("annotations", "an annotation is of an image that is not listed", LEFT_OUT),
    "unknown_category": Kind(
        "annotations", "an annotation is of a category that is not listed", FATAL, "list it in categories"
    ),
    "bad_box": Kind("annotations", "a box is not four finite numbers", LEFT_OUT),
    "zero_area": Kind("annotations", "a box has no area", LEFT_OUT),
    "outside": Kind("annotations", "a box lies outside the image", LEFT_OUT),
    "sticks_out": Kind("annotations", "a box sticks out of the image by more than a pixel", "clipped"),
    "no_area": Kind("annotations", "an area is missing or not positive", "width times height of the box"),
    "bad_segmentation": Kind("annotations", "a segmentation is missing or unusable", "its box counts as not known"),
    "too_few_annotations": Kind("annotations", "too many annotations had to be left out", FATAL, _CORRECT),
    "nothing_left": Kind("annotations", "no image has a usable object", FATAL, "give a file in which some have"),
}


class Problem(NamedTuple):
    """One case: its kind, the field in the file, the entry's id, and what stands there."""

    kind: str
    field: str
    id: str | None
    text: str

    def __str__(self) -> str:
        of = "" if self.id is None else f" (id {self.id})"
        return f"{self.field}{of}{': ' if self.field or of else ''}{self.text}"


@dataclass
class Report:
    """The problems of one annotation file; its text form is for people.

    Attributes:
        file: the annotation file.
        counts: cases per kind.
        problems: the first hundred cases of each kind.
        totals: what is used: "images", "annotations", "categories", "crowd regions" and "images without objects".
    """

    file: Path
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, where: str, id: object, text: str) -> None:
        """Note a case: the field, the entry's id if it has one, and what stands there."""
        self.counts[kind] += 1
        if self.counts[kind] <= KEPT_CASES:
            self.problems.append(Problem(kind, where, None if id is None else shown(id), " ".join(text.split())[:300]))

    def limit(self, kind: str, total: int, share: float) -> None:
        """Note the fatal `kind` if more than a share of its section's `total` entries is left out."""
        section = KINDS[kind].section
        kinds = [each for each in KINDS if KINDS[each].section == section and KINDS[each].done == LEFT_OUT]
        count = sum(self.counts[each] for each in kinds)
        if count > share * total:
            first = next(problem for problem in self.problems if problem.kind in kinds)
            which = f"{count} of {total}, of which the first is {first}, {KINDS[first.kind].wrong}"
            self.add(kind, section, None, which)

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
        used = ", ".join(f"{name}: {count}" for name, count in self.totals.items())
        head = f"{self.file}: {used or 'not usable'}; problems: {sum(self.counts.values()) or 'none'}"
        return "\n".join([head, *(self._line(kind, cases) for kind in KINDS if self.counts[kind])])

    def _line(self, kind: str, cases: int) -> str:
        found = [str(problem) for problem in self.problems if problem.kind == kind][:cases]
        more = ["..."] if self.counts[kind] > len(found) else []
        return f"  {self.counts[kind]} x {KINDS[kind].wrong}; {KINDS[kind].done}: {'; '.join(found + more)}"

    __str__ = text


def shown(value: object) -> str:
    """A value of the file in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
