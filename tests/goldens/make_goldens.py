"""Write the .npz files here: what transformers answers for the tiny random models that the tests make.

A developer's tool; the tests only read its results. It needs torch and transformers, in the versions that the files
then name:

    python tests/goldens/make_goldens.py

gemma_tiny is the folder of `bench/data/make_gemma.py --size tiny`, llama_tiny that of `tests/runtime/tiny_llama.py`.
For each variant of config.json: a prompt of 32 ids, 64 greedy steps, and for each of the 65 last positions the float32
logits of 64 fixed ids, the 8 best ids with their logits, and the L2 norm of all logits. float32, eager, without a
cache: the plainest way to ask is the one to compare with.
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
MAKE_LLAMA = HERE.parent / "runtime" / "tiny_llama.py"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "gemma_tiny": {
        "as_made": {},
        "window_16": {"sliding_window": 16},
        "linear_rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    },
    "llama_tiny": {
        "untied": {},
        "tied": {"tie_word_embeddings": True},
        "llama3_rope": {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        "linear_rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        "wide_heads": {"head_dim": 32, "num_key_value_heads": 1},
    },
}
PROMPT, STEPS, SUBSET, BEST = 32, 64, 64, 8


def main() -> None:
    for name, variants in VARIANTS.items():
        random = np.random.default_rng(20)
        arrays, digests = {}, {}
        for variant, changes in variants.items():
            with tempfile.TemporaryDirectory() as folder_name:
                folder = Path(folder_name)
                config = make_folder(name, folder, changes)
                if not arrays:
                    arrays["subset"] = np.sort(random.choice(config["vocab_size"], SUBSET, replace=False))
                    arrays["prompt"] = random.integers(0, config["vocab_size"], PROMPT)
                digests[variant] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
                logits, greedy = answer(folder, arrays["prompt"].tolist())
            best = np.argsort(-logits, axis=1, kind="stable")[:, :BEST]
            arrays[f"{variant}.greedy"] = np.array(greedy)
            arrays[f"{variant}.logits"] = logits[:, arrays["subset"]]
            arrays[f"{variant}.best"] = best
            arrays[f"{variant}.best_logits"] = np.take_along_axis(logits, best, axis=1)
            arrays[f"{variant}.norm"] = np.linalg.norm(logits.astype(np.float64), axis=1)
        about = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "model_sha256": digests,
            "variants": variants,
        }
        np.savez_compressed(HERE / f"{name}.npz", about=np.array(json.dumps(about)), **arrays)


def make_folder(name: str, folder: Path, changes: dict[str, object]) -> dict[str, int]:
    if name == "llama_tiny":
        subprocess.run([sys.executable, MAKE_LLAMA, folder, json.dumps(changes)], check=True)
        return json.loads((folder / "config.json").read_text())
    subprocess.run([sys.executable, MAKE_GEMMA, folder, "--size", "tiny"], check=True, stdout=subprocess.DEVNULL)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return config


def answer(folder: Path, prompt: list[int]) -> tuple[np.ndarray, list[int]]:
    """Logits of the last position after the prompt and after each greedy step, and the ids of the steps."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids, rows = list(prompt), []
    with torch.no_grad():
        for _ in range(STEPS + 1):
            rows.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy())
            ids.append(int(rows[-1].argmax()))
    return np.stack(rows), ids[len(prompt) : -1]


if __name__ == "__main__":
    main()
