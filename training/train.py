"""Train the shipped model from scratch: `python -m training.train`.

Runs on two CPU cores in a couple of hours and on a GPU in minutes; `--resume` continues where a
run stopped (also with other `--steps`: the learning rate is constant until the last share `--decay`
of the steps, so a run can be extended until then). Every batch comes from the generator and depends
only on the seed and the step.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shutil
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from training import fast_attention
from training.cores import CoreWatch
from training.curriculum import STAGES, Supply
from training.decode import load_weights
from training.export import EMBEDDED, export
from training.model import Shape, Weights, init_weights, loss_and_hits, rope_tables
from training.optimizer import Optimizer
from training.packing import Batch, fork_mask
from training.tokenizer import train_tokenizer
from training.validate import Validation

RUNS = Path(__file__).parent / "runs"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8000, help="total optimiser steps")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the run's last checkpoint"
    )
    parser.add_argument(
        "--start", type=Path, help="begin with the weights and tokenizer of this exported model"
    )
    parser.add_argument(
        "--run", type=Path, default=RUNS / "default", help="folder of checkpoints and log"
    )
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="folder for the exported model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument(
        "--decay", type=float, default=0.28, help="last share of the steps, in which the rate falls"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--stage", type=int, default=None, help="enter this stage of the curriculum now"
    )
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--no-compile", action="store_true", help="run the forward pass eagerly")
    parser.add_argument("--no-export", action="store_true", help="leave --out unchanged")
    return parser.parse_args()


def learning_rate(step: int, steps: int, peak: float, decay: float) -> float:
    """Warm up over 150 steps, stay constant, and decay along a cosine over the share `decay`."""
    hold = (1 - decay) * steps
    if step < 150:
        return peak * (step + 1) / 150
    if step < hold:
        return peak
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - hold) / (steps - hold))))


def to_compute(weights: Weights) -> Weights:
    """Return bf16 copies of the matrices (norms and biases stay fp32), as leaves of a new graph."""
    return {
        name: (w if "norm" in name or "bias" in name else w.bfloat16()).detach().requires_grad_()
        for name, w in weights.items()
    }


def to_inputs(batch: Batch, shape: Shape, device: str) -> tuple[Tensor | int, ...]:
    """Return the arguments of `loss_and_hits` after `weights, shape`."""
    tokens, positions, segments, parents, targets, weights = (
        torch.from_numpy(a).to(device)
        for a in (
            batch.tokens,
            batch.positions,
            batch.segments,
            batch.parents,
            batch.targets,
            batch.weights,
        )
    )
    cos, sin = rope_tables(shape, positions, torch.bfloat16)
    mask = fork_mask(segments, parents, batch.root, torch.bfloat16)
    return tokens, cos, sin, mask, batch.root, targets, weights


def save(path: Path, **state: object) -> None:
    """Write a checkpoint atomically: a crash leaves the old one or the new one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def main() -> None:
    """Train until `--steps`, with a checkpoint every `--save-every` of them, then export."""
    args = parse()
    args.run.mkdir(parents=True, exist_ok=True)
    shape = Shape()
    if args.start is not None and not (args.run / "tokenizer.json").exists():
        shutil.copy(args.start / "tokenizer.json", args.run)
    if (args.run / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(args.run / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer()
        tokenizer.save(str(args.run / "tokenizer.json"))
    if args.start is not None:
        first, shape = load_weights(args.start)
    else:
        first = init_weights(shape, torch.Generator().manual_seed(args.seed))
    weights = {k: w.to(args.device) for k, w in first.items()}
    optimizer = Optimizer(weights)
    step, stage, tokens_seen, seconds = 0, 0, 0, 0.0
    checkpoint = args.run / "checkpoint.pt"
    if args.resume and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=args.device)
        step, stage, tokens_seen, seconds = (
            saved[k] for k in ("step", "stage", "tokens", "seconds")
        )
        weights = saved["weights"]
        optimizer.load(saved["optimizer"])
    if args.stage is not None:
        stage = args.stage

    fast = fast_attention.available(args.device, torch.bfloat16)
    run = loss_and_hits
    if not args.no_compile:
        torch._dynamo.config.recompile_limit = 64
        run = torch.compile(loss_and_hits, dynamic=False)
    run = functools.partial(run, fast=fast)
    validation = Validation(
        tokenizer, shape, run, functools.partial(to_inputs, shape=shape, device=args.device)
    )
    supply = Supply(args.run / "tokenizer.json", args.seed)
    watch = CoreWatch([supply.pid], torch.get_num_threads())
    target = args.run / "steps"
    log = (args.run / "log.jsonl").open("a")
    bar = tqdm(total=args.steps, initial=step, smoothing=0.05, mininterval=5)
    started = time.monotonic()
    window: list[float] = []
    threads = torch.get_num_threads()
    stop = threading.Event()  # on a signal: finish the step, save, exit
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while step < args.steps and not stop.is_set():
        batch = supply.get(step, stage)
        compute = to_compute(weights)
        loss, _ = run(compute, shape, *to_inputs(batch, shape, args.device))
        grads = dict(zip(compute, torch.autograd.grad(loss, list(compute.values())), strict=True))
        value = float(loss)
        if math.isfinite(value):
            norm = optimizer.step(
                weights, grads, learning_rate(step, args.steps, args.rate, args.decay), step + 1
            )
        else:
            norm = math.inf
        step += 1
        tokens_seen += batch.tokens.size
        window.append(value)
        bar.update()
        if step % 10 == 0 and args.device == "cpu":
            threads = watch.adapt()
        if step % 25 == 0 or step >= args.steps or stop.is_set():
            now = seconds + time.monotonic() - started
            if target.exists():  # the number of steps can be changed during a run
                args.steps = int(target.read_text())
            entry = {
                "step": step,
                "stage": stage,
                "loss": round(sum(window) / len(window), 4),
                "norm": round(norm, 3),
                "tokens": tokens_seen,
                "seconds": round(now, 1),
                "threads": threads,
            }
            window = []
            saving = step % args.save_every == 0 or step >= args.steps
            if saving:
                entry["validation"] = validation(to_compute(weights), stage)
                stage = STAGES[stage].next(stage, step / args.steps, entry["validation"])
            if saving or stop.is_set():
                save(
                    checkpoint,
                    step=step,
                    stage=stage,
                    tokens=tokens_seen,
                    seconds=now,
                    shape=asdict(shape),
                    weights=weights,
                    optimizer=optimizer.state(),
                )
            log.write(json.dumps(entry) + "\n")
            log.flush()
            bar.set_postfix(loss=entry["loss"], stage=stage)
    supply.close()
    bar.close()
    if not args.no_export and not stop.is_set():
        export(checkpoint, args.run / "tokenizer.json", args.out)


if __name__ == "__main__":
    main()
