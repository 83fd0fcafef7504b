"""Where the peers are installed, and the model in each one's own format.

`make bench-peers` installs into one folder: a virtual environment with the peers, in it `convert/`, a second one for
the converter to OpenVINO (it asks for another version of transformers), and `llama.cpp/`, its source and programs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.models import default_cache_folder

ROOT: Final = Path(__file__).resolve().parent.parent.parent
CONVERT_TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True)
class PeerTools:
    """The folder that `make bench-peers` fills.

    Attributes:
        folder: such as .venv-peers.
    """

    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter that has transformers, OpenVINO GenAI and gguf."""
        return self.folder / "bin" / "python"

    @property
    def optimum_cli(self) -> Path:
        """The converter to OpenVINO."""
        return self.folder / "convert" / "bin" / "optimum-cli"

    @property
    def llama_source(self) -> Path:
        """llama.cpp's source, for its converter."""
        return self.folder / "llama.cpp" / "source"

    @property
    def llama_server(self) -> Path:
        """llama.cpp's server."""
        return self.folder / "llama.cpp" / "build" / "bin" / "llama-server"

    @property
    def llama_quantize(self) -> Path:
        """Makes a quantised GGUF file of a larger one."""
        return self.folder / "llama.cpp" / "build" / "bin" / "llama-quantize"


def in_format(model: Path, kind: str, tools: PeerTools) -> Path:
    """The model as a peer wants it, converted and kept in the cache when it is asked for the first time.

    Args:
        model: a Hugging Face folder.
        kind: "hf" (the folder itself), "openvino-" and a weight format of optimum-cli's ("fp32", "int8", "int4"), or
            "gguf-" and a type of llama.cpp's ("f32", "bf16", "q8_0", "q4_0").

    Raises:
        RuntimeError: the conversion failed; its own messages say why.
    """
    if kind == "hf":
        return model
    library, _, weights = kind.partition("-")
    if library == "openvino":
        return _kept(model, kind, lambda target: _to_openvino(model, weights, target, tools))
    assert library == "gguf", kind
    if weights in ("f32", "bf16"):
        return _kept(model, f"{kind}.gguf", lambda target: _to_gguf(model, weights, target, tools))
    whole = in_format(model, "gguf-bf16", tools)
    command = [str(tools.llama_quantize), str(whole)]
    return _kept(model, f"{kind}.gguf", lambda target: _call([*command, str(target), weights.upper()]))


def _kept(model: Path, name: str, convert: Callable[[Path], None]) -> Path:
    """The converted model's place in the cache; the name of its folder changes with the checkpoint."""
    weights = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in model.glob("*.safetensors")]
    mark = hashlib.sha256(repr((str(model.resolve()), sorted(weights))).encode()).hexdigest()[:12]
    place = default_cache_folder() / "converted" / f"{model.name}-{mark}" / name
    if not place.exists():
        print(f"converting {model.name} to {name}", file=sys.stderr, flush=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_name(f"unfinished-{os.getpid()}-{place.name}")
        try:
            convert(unfinished)
            unfinished.rename(place)
        finally:
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            else:
                unfinished.unlink(missing_ok=True)
    return place


def _to_openvino(model: Path, weights: str, target: Path, tools: PeerTools) -> None:
    command = [str(tools.optimum_cli), "export", "openvino", "--model", str(model)]
    command += ["--task", "text-generation-with-past", "--weight-format", weights]
    if weights == "int4":
        # optimum's default ratio leaves some layers in int8, and its group of 128 does not divide every width.
        command += ["--ratio", "1.0", "--group-size", "64", "--sym"]
    _call([*command, str(target)])


def _to_gguf(model: Path, weights: str, target: Path, tools: PeerTools) -> None:
    command = [str(tools.python), "-m", "benchmarks.peers.hf_to_gguf", str(tools.llama_source), str(model)]
    _call([*command, "--outfile", str(target), "--outtype", weights])


def _call(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=CONVERT_TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
