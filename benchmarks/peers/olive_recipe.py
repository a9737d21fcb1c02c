"""Olive's workflow with its static quantization pass; the workflow loads its calibration data by this file, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from olive.data.registry import Registry
from olive.workflows import run


class _Photos:
    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npy"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[dict[str, NDArray[np.float32]], int]:
        # Its loader adds the dimension of the batch, and wants labels.
        return {"L": np.load(self.paths[index])[0]}, 0


@Registry.register_dataset()  # type: ignore[untyped-decorator]
def calibration_photos(data_dir: str, **_: Any) -> _Photos:
    """What the workflow finds by this function's name."""
    return _Photos(Path(data_dir))


def make_files(graph: Path, calibration: Path, folder: Path, options: Mapping[str, Any]) -> None:
    """Write model.onnx."""
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    photos = {
        "name": "photos",
        "user_script": __file__,
        "load_dataset_config": {"type": calibration_photos.__name__, "data_dir": str(calibration)},
        "pre_process_data_config": {"type": "skip_pre_process"},
        "post_process_data_config": {"type": "skip_post_process"},
        "dataloader_config": {"type": "default_dataloader", "batch_size": 1},
    }
    run({
        "input_model": {"type": "ONNXModel", "model_path": str(graph)},
        "systems": {"local": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "data_configs": [photos],
        "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "photos"}},
        "target": "local",
        "output_dir": str(folder),
        "cache_dir": str(folder / "cache"),
    })  # fmt: skip
