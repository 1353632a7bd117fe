"""JSON lists that grow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sact.result_files import json_list, predictions_file


def test_records_of_images(tmp_path: Path) -> None:
    file = tmp_path / "new" / "list.json"
    with json_list(file) as add:
        add({"a": 1}, {"b": "ü\n"})
        add()
        add({"c": None})
        assert not file.exists()
    assert json.loads(file.read_text()) == [{"a": 1}, {"b": "ü\n"}, {"c": None}]
    with predictions_file(file, 'a "model"') as add:
        add({"a": 1})
    assert json.loads(file.read_text()) == {"model": 'a "model"', "predictions": [{"a": 1}]}
    with predictions_file(file, "none") as add:
        add()
    assert json.loads(file.read_text()) == {"model": "none", "predictions": []}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_is_done_is_kept(tmp_path: Path, error: type[BaseException]) -> None:
    file = tmp_path / "list.json"
    with pytest.raises(error), json_list(file) as add:
        add({"a": 1})
        raise error
    assert json.loads(file.read_text()) == [{"a": 1}]
    with pytest.raises(error), json_list(file):
        raise error
    assert json.loads(file.read_text()) == [{"a": 1}]  # nothing was done: the file stays as it was
    with pytest.raises(error), json_list(file) as add:
        add()
        raise error
    assert json.loads(file.read_text()) == []
    assert list(tmp_path.iterdir()) == [file]
