"""Write gemma_tiny.npz: what transformers answers for the folder made by `bench/data/make_gemma.py --size tiny`.

A developer's tool; the tests only read its result. It needs torch and transformers, in the versions that the file
then names:

    python tests/goldens/make_gemma_tiny.py

For each variant of config.json: a prompt of 32 ids, 32 greedy steps, and for each of the 33 last positions the float32
logits of 256 fixed ids, the 8 best ids with their logits, and the sum and L2 norm of all logits. float32, eager.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
MAKE_GEMMA = HERE.parents[1] / "bench" / "data" / "make_gemma.py"
VARIANTS = {
    "as_made": {},
    "window_16": {"sliding_window": 16},
    "linear_rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}
PROMPT, STEPS, SUBSET, BEST = 32, 32, 256, 8


def main() -> None:
    arrays = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, MAKE_GEMMA, folder, "--size", "tiny"], check=True)
        config = json.loads((folder / "config.json").read_text())
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        random = np.random.default_rng(20)
        arrays["subset"] = np.sort(random.choice(config["vocab_size"], SUBSET, replace=False))
        arrays["prompt"] = random.integers(0, config["vocab_size"], PROMPT)
        for variant, changes in VARIANTS.items():
            (folder / "config.json").write_text(json.dumps(config | changes))
            logits, greedy = answer(folder, arrays["prompt"].tolist())
            best = np.argsort(-logits, axis=1, kind="stable")[:, :BEST]
            arrays[f"{variant}.greedy"] = np.array(greedy)
            arrays[f"{variant}.logits"] = logits[:, arrays["subset"]]
            arrays[f"{variant}.best"] = best
            arrays[f"{variant}.best_logits"] = np.take_along_axis(logits, best, axis=1)
            arrays[f"{variant}.sum"] = logits.sum(axis=1, dtype=np.float64)
            arrays[f"{variant}.norm"] = np.linalg.norm(logits.astype(np.float64), axis=1)
    about = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "model_sha256": digest,
        "variants": VARIANTS,
    }
    np.savez_compressed(HERE / "gemma_tiny.npz", about=np.array(json.dumps(about)), **arrays)


def answer(folder: Path, prompt: list[int]) -> tuple[np.ndarray, list[int]]:
    """Logits of the last position after the prompt and after each greedy step, and the ids of the steps."""
    model = transformers.Gemma3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids, rows = list(prompt), []
    with torch.no_grad():
        for _ in range(STEPS + 1):
            # Without a cache: the plainest way to ask is the one to compare with.
            rows.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy())
            ids.append(int(rows[-1].argmax()))
    return np.stack(rows), ids[len(prompt) : -1]


if __name__ == "__main__":
    main()
