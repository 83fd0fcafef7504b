"""Code that comes with a tokenizer runs where the operator asks for it, and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.errors import ModelLoadError
from paged_backend.models.folder import resolve_folder

CODE = """
import pathlib
from transformers import PreTrainedTokenizerFast

pathlib.Path({mark!r}).touch()

class Own(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    shutil.copytree(resolve_folder("paged-tiny"), folder)
    config = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **own}))
    (folder / "own.py").write_text(CODE.format(mark=str(tmp_path / "it-ran")))
    return folder


def test_it_is_refused_by_itself(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="trust_remote_code"):
        Tokenizer.load(folder)
    assert not (tmp_path / "it-ran").exists()


def test_it_runs_where_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder, trust_remote_code=True)
    assert (tmp_path / "it-ran").exists()
    assert tokenizer.decode(tokenizer.encode("Once upon a time")) == "Once upon a time"
