"""`sact.files`: whole or not at all. That a failure leaves the old file is tested with checkpoints."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path

import pytest

from sact.errors import InputError
from sact.files import give_permissions, make_folder, replacing, write_json, write_text


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "name.png"
    with replacing(path) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == path.parent
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert [(entry.name, entry.read_bytes()) for entry in path.parent.iterdir()] == [("name.png", b"new")]


def test_text_and_json_are_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "é\n")
    assert (tmp_path / "text").read_bytes() == "é\n".encode()
    write_json(tmp_path / "values.json", {"a": [1, 2.5, None]})
    assert json.loads((tmp_path / "values.json").read_text()) == {"a": [1, 2.5, None]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "values.json", {"a": object()})
    assert json.loads((tmp_path / "values.json").read_text()) == {"a": [1, 2.5, None]}


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_are_those_of_ordinary_files(tmp_path: Path, umask: int, file: int, folder: int) -> None:
    private = Path(tempfile.mkdtemp(dir=tmp_path))
    before = os.umask(umask)
    try:
        write_text(tmp_path / "text", "")
        give_permissions(private)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "text").stat().st_mode) == file
    assert stat.S_IMODE(private.stat().st_mode) == folder


def test_make_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be written") as caught:
            make_folder(path)
        assert str(path) in str(caught.value)
