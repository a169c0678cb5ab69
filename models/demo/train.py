"""Train the demonstration model of Kensho: version 1, then version 2 as a small change of version 1.

    python train.py OUT [--steps 2600] [--minutes 12]      train both versions, check them, write the folder OUT
    python train.py OUT --only v2                          keep the version 1 in OUT, make version 2 again
    python train.py OUT --only check                       train nothing: ask both versions in OUT all questions again

A developer's tool: it needs requirements.txt and is never imported by Kensho. Random sources are seeded and torch is
asked for deterministic algorithms, so that a run can be repeated on one machine (another processor may round
differently, and `--minutes` stops by the clock: give `--steps` alone to repeat a run exactly).

What is on disk is what was checked: weights are rounded to bf16 before the checks, and only questions that are answered
word for word, by greedy decoding, both in fp32 arithmetic and in int8 arithmetic, go into questions.json.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from corpus import Entry, conversation, prompt, read_corpus
from network import CHAT_TEMPLATE, CONFIG, int8_arithmetic, new_network, round_to_bf16, train_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import Gemma3ForCausalLM

HERE = Path(__file__).resolve().parent
BOS, END_OF_TURN, IGNORED = 2, 5, -100
BATCH, POOL = 24, 12  # conversations in a batch; batches that are sorted by length together, to waste less on padding
CHANGED = "model.layers.3."  # version 2 trains only the last layer: 476 kB


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("out", type=Path)
    args.add_argument("--steps", type=int, default=2300)
    args.add_argument("--steps-v2", type=int, default=700)
    args.add_argument("--minutes", type=float, default=60, help="stop version 1 earlier, after this time")
    args.add_argument("--only", choices=["v1", "v2", "check"])
    given = args.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    both = [entry for name in ("en", "fr", "other") for entry in read_corpus(HERE / f"corpus.{name}.txt")]
    first, second = read_corpus(HERE / "corpus.v1.txt"), read_corpus(HERE / "corpus.v2.txt")
    v1, v2 = given.out / "v1", given.out / "v2"
    if given.only in (None, "v1"):
        write_tokenizer(both + first + second, v1)
        tokenizer = Tokenizer.from_file(str(v1 / "tokenizer.json"))
        torch.manual_seed(0)
        network = new_network()
        fit(network, tokenizer, both + first, given.steps, peak=3e-3, minutes=given.minutes)
        round_to_bf16(network)
        save_first(network, v1)
    tokenizer = Tokenizer.from_file(str(v1 / "tokenizer.json"))
    if given.only in (None, "v2"):
        torch.manual_seed(2)
        network = load(v1)
        for name, weight in network.named_parameters():
            weight.requires_grad_(name.startswith(CHANGED))
        fit(network, tokenizer, both + second * 6, given.steps_v2, peak=1.2e-3, minutes=given.minutes)
        round_to_bf16(network)
        save_changes(network, v2)
    # the checks read what was written: they speak about the files, not about what was in memory
    if given.only != "v2":
        print("version 1")
        report(load(v1), tokenizer, both, [given.out / "questions.json", HERE / "questions.json"])
    if given.only != "v1":
        print("version 2")
        report(load(v1, v2), tokenizer, both + second, [v2 / "questions.json"])


# --- training ---------------------------------------------------------------------------------------------------------


def encode(turns: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Token ids of a conversation and its targets: only the answers and their <end_of_turn> are learnt."""
    ids, targets = [BOS], [IGNORED]
    for at, (question, answer) in enumerate(turns):
        asked = tokenizer.encode(("\n" if at else "") + prompt(question), add_special_tokens=False).ids
        said = [*tokenizer.encode(answer, add_special_tokens=False).ids, END_OF_TURN]
        ids += asked + said
        targets += [IGNORED] * len(asked) + said
    return ids, targets


def batches(entries: list[Entry], tokenizer: Tokenizer, rng: random.Random) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A pool of batches of like length, padded on the right, in random order."""
    rows = [encode(conversation(entries, rng), tokenizer) for _ in range(BATCH * POOL)]
    rows.sort(key=lambda row: len(row[0]))
    made = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        longest = max(len(ids) for ids, _ in part)
        for row, _ in part:
            for at in range(2, len(row)):
                if (
                    row[at] >= 6 and rng.random() < 0.01
                ):  # a little noise, so that an unusual question does not derail a whole answer
                    row[at] = rng.randrange(262, CONFIG["vocab_size"])
        ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in part])
        targets = torch.tensor([row + [IGNORED] * (longest - len(row)) for _, row in part])
        made.append((ids, targets))
    rng.shuffle(made)
    return made


def fit(
    network: Gemma3ForCausalLM, tokenizer: Tokenizer, entries: list[Entry], steps: int, *, peak: float, minutes: float
) -> None:
    """Train in place. Two of three batches run in int8 arithmetic, so that rounding cannot change an answer."""
    rng = random.Random(steps)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    matrices = [weight for weight in weights if weight.dim() > 1]
    vectors = [weight for weight in weights if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    network.train()
    began, step, pool, recent = time.monotonic(), 0, [], 0.0
    while step < steps:
        # the clock can shorten the run: the schedule follows whichever of steps and time is further on
        done = max(step / steps, (time.monotonic() - began) / (60 * minutes))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 60) * max(0.02, min(1.0, (1 - done) / 0.6))
        pool = pool or batches(entries, tokenizer, rng)
        ids, targets = pool.pop()
        if step % 3:
            with int8_arithmetic():
                loss = loss_of(network, ids, targets)
        else:
            loss = loss_of(network, ids, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        recent = 0.95 * recent + 0.05 * loss.item()
        step += 1
        if step % 100 == 0:
            print(f"step {step}: loss {recent:.4f}, {time.monotonic() - began:.0f} s", flush=True)
    network.eval()
    print(f"{step} steps, loss {recent:.4f}, {time.monotonic() - began:.0f} s", flush=True)


def loss_of(network: Gemma3ForCausalLM, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the answers. Padding is on the right, so that causality hides it: no mask is needed."""
    logits = network(input_ids=ids, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets[:, 1:].reshape(-1), ignore_index=IGNORED
    )


# --- checks -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def answers(
    network: Gemma3ForCausalLM, tokenizer: Tokenizer, questions: list[str], limit: int = 120
) -> list[tuple[str, float]]:
    """The greedy answer to each question, token by token with a cache, and the smallest margin in it.

    The margin is the distance between the best and the second-best logit. Questions of equal length are asked side by
    side, which needs no padding: each row is computed as if it were alone.
    """
    prompts = [[BOS, *tokenizer.encode(prompt(q), add_special_tokens=False).ids] for q in questions]
    found: dict[int, tuple[str, float]] = {}
    for length in sorted({len(ids) for ids in prompts}):
        rows = [at for at, ids in enumerate(prompts) if len(ids) == length]
        ids = torch.tensor([prompts[at] for at in rows])
        said: list[list[int]] = [[] for _ in rows]
        margins = [float("inf")] * len(rows)
        stopped = [False] * len(rows)
        past = None
        for _ in range(limit):
            out = network(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            past, best = out.past_key_values, out.logits[:, -1].topk(2)
            ids = best.indices[:, :1]
            for row, token in enumerate(ids[:, 0].tolist()):
                if stopped[row]:
                    continue
                margins[row] = min(margins[row], float(best.values[row, 0] - best.values[row, 1]))
                stopped[row] = token in (1, END_OF_TURN)
                if not stopped[row]:
                    said[row].append(token)
            if all(stopped):
                break
        for row, at in enumerate(rows):
            found[at] = tokenizer.decode(said[row], skip_special_tokens=False), margins[row]
    return [found[at] for at in range(len(questions))]


def report(network: Gemma3ForCausalLM, tokenizer: Tokenizer, entries: list[Entry], files: list[Path]) -> None:
    """Ask everything in both arithmetics, print the score, and write the canonical questions that pass in both."""
    network.eval()
    asked = [
        (kind, question, entry)
        for entry in entries
        for kind, questions in (
            ("canonical", entry.questions[:1]),
            ("other wordings", entry.questions[1:]),
            ("held-out wordings", entry.held_out),
        )
        for question in questions
    ]
    right: dict[str, list[bool]] = {}
    for arithmetic in ("fp32", "int8"):
        with int8_arithmetic() if arithmetic == "int8" else nullcontext():
            said = answers(network, tokenizer, [question for _, question, _ in asked])
        right[arithmetic] = [text == entry.answer for (text, _), (_, _, entry) in zip(said, asked, strict=True)]
        scores = []
        for kind in ("canonical", "other wordings", "held-out wordings"):
            results = [ok for ok, (k, _, _) in zip(right[arithmetic], asked, strict=True) if k == kind]
            scores.append(f"{kind} {sum(results)}/{len(results)}")
        margin = min(said[at][1] for at, (kind, _, _) in enumerate(asked) if kind == "canonical")
        print(f"{arithmetic}: {', '.join(scores)}; smallest margin of a canonical answer {margin:.2f}", flush=True)
    kept = []
    for at, (kind, question, entry) in enumerate(asked):
        if kind != "canonical":
            continue
        if right["fp32"][at] and right["int8"][at]:
            kept.append({"question": question, "answer": entry.answer, "language": entry.language})
        else:
            print("left out:", question)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{len(kept)} questions are answered word for word in both arithmetics")


# --- files ------------------------------------------------------------------------------------------------------------


def write_tokenizer(entries: list[Entry], folder: Path) -> None:
    """tokenizer.json, learnt from all texts (answers count more: they are what is generated), and its config."""
    texts = [text for entry in entries for text in (*entry.questions, *[entry.answer] * 6)]
    folder.mkdir(parents=True, exist_ok=True)
    made = train_tokenizer([*texts, "user\nmodel\n"])
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    check_tokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), entries)


def check_tokenizer(tokenizer: Tokenizer, entries: list[Entry]) -> None:
    """Every text must survive encoding and decoding, and need no byte token."""
    lengths = []
    for entry in entries:
        ids = tokenizer.encode(entry.answer, add_special_tokens=False).ids
        lengths.append(len(ids))
        if tokenizer.decode(ids) != entry.answer or any(6 <= token < 262 for token in ids):
            raise SystemExit(f"the tokenizer cannot say: {entry.answer}")
    print(f"{tokenizer.get_vocab_size()} tokens; answers of {min(lengths)} to {max(lengths)}, {sum(lengths)} in all")


def save_readable(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, str(file), metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes files that only their owner can read


def weights_of(network: Gemma3ForCausalLM) -> dict[str, torch.Tensor]:
    tensors = {name: weight.detach().bfloat16().contiguous() for name, weight in network.named_parameters()}
    return dict(sorted(tensors.items()))


def save_first(network: Gemma3ForCausalLM, folder: Path) -> None:
    save_readable(weights_of(network), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    generation = {"bos_token_id": BOS, "eos_token_id": [1, END_OF_TURN], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation) + "\n", encoding="utf-8")


def save_changes(network: Gemma3ForCausalLM, folder: Path) -> None:
    """Only the tensors that version 2 changes; all others are those of version 1."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = {name: tensor for name, tensor in weights_of(network).items() if name.startswith(CHANGED)}
    save_readable(changed, folder / "changes.safetensors")


def load(v1: Path, v2: Path | None = None) -> Gemma3ForCausalLM:
    """The network of folder `v1`, with the changes of `v2` where given; weights bf16, arithmetic fp32."""
    tensors = load_file(str(v1 / "model.safetensors"))
    if v2 is not None:
        tensors |= load_file(str(v2 / "changes.safetensors"))
    network = new_network()
    wanted = dict(network.named_parameters())
    if wanted.keys() != tensors.keys():
        raise SystemExit(f"{v1}: these are not the tensors of this network")
    with torch.no_grad():
        for name, weight in wanted.items():
            weight.copy_(tensors[name].float())
    return network.eval()


if __name__ == "__main__":
    main()
