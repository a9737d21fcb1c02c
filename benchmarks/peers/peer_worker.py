"""Runs one recipe in a process and environment of its own: `python -P peer_worker.py job.json`.

It is told files and answers with files, and imports nothing of colorpress, which need not be there. A recipe is a
module with one function, `make_files(graph, calibration, folder, options)`:

    graph: the float32 ONNX file, reads `L` (1, 1, H, W) in [0, 1].
    calibration: a folder of .npy files, each a whole training photograph's L, float32 (1, 1, H, W).
    folder: where its files go.
    options: of the peer.
"""

from __future__ import annotations

import json
import runpy
import sys
import traceback
from pathlib import Path


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = {"status": "ok", "error": ""}
    try:
        recipe = runpy.run_path(job["recipe"])
        recipe["make_files"](Path(job["graph"]), Path(job["calibration"]), Path(job["folder"]), job["options"])
    except Exception as error:  # a tool of any kind fails in any way
        traceback.print_exc()
        answer = {"status": "error", "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
