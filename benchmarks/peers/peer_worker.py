"""Runs one recipe in a process and environment of its own: `python -P peer_worker.py`, in a folder with its job.json.

It is told files and answers with files (answer.json, its error empty where all went well), and imports nothing of
colorpress, which need not be there. A recipe is a module with one function,
`make_files(graph, calibration, folder, options)`:

    graph: the float32 ONNX file, reads `L` (1, 1, H, W) in [0, 1].
    calibration: a folder of .npy files, each a whole training photograph's L, float32 (1, 1, H, W).
    folder: where its files go.
    options: of the peer.
"""

from __future__ import annotations

import json
import runpy
import traceback
from pathlib import Path


def main() -> None:
    work = Path.cwd()
    job, error = json.loads((work / "job.json").read_text(encoding="utf-8")), ""
    try:
        recipe = runpy.run_path(job["recipe"])
        recipe["make_files"](Path(job["graph"]), Path(job["calibration"]), Path(job["folder"]), job["options"])
    except Exception as caught:  # a tool of any kind fails in any way
        traceback.print_exc()
        error = f"{type(caught).__name__}: {' '.join(str(caught).split())[:500]}"
    (work / "answer.json").write_text(json.dumps({"error": error}), encoding="utf-8")


if __name__ == "__main__":
    main()
