"""What `--help` says: what is needed to begin. `--help-all` lists every setting."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

TRAIN = """\
usage: train.py {fit,validate,test} -c FILE [-c FILE ...] [--SETTING VALUE ...]

Train (fit), validate or test a network. YAML files compose, later ones win, and options win over files.

what a run needs:
  -c, --config FILE          data, network and method, or an experiment that has all three (see configs/)
  --output DIR               run folder: last.ckpt, config.yaml, metrics.csv, TensorBoard events
                             (default: runs/NAME of the experiment)

what is often changed:
  --ckpt_path last           continue from DIR/last.ckpt, or name any checkpoint of a run
  --resume_changed true      continue although settings differ from those of the run
  --replace true             begin anew in a folder that holds a run, and remove that
  --init_from FILE           fine-tune: begin with the weights of a checkpoint
  --data.root DIR            folder of array files (.npz, .npy)
  --data.batch_size N        inliers per batch; --data.outlier_batch_size N outliers
  --trainer.max_epochs N     length of the run; --trainer.max_steps N in optimiser steps
  --trainer.accelerator gpu  where to compute (auto, cpu, gpu); --trainer.devices N how many
  --seed_everything N        the one seed of order, augmentation, attacks and initial weights (default: 0)
  --model.outlier_weight X   any setting of the method, here lambda; a radius may be written 8/255
  --print_config             show the settings that would be used, and stop
  --help-all                 list every setting

examples:
  python train.py fit -c configs/experiments/digits_aloe.yaml
  python train.py fit -c configs/data/cifar10_arrays.yaml -c configs/models/wrn_40_2.yaml \\
      -c configs/methods/aloe.yaml --data.root DIR --output runs/aloe
  python train.py test -c runs/digits_aloe/config.yaml --ckpt_path last
"""

EVALUATE = """\
usage: evaluate.py -c FILE --checkpoint FILE [--SETTING VALUE ...]

Score a saved network's detectors on clean and attacked images, in- and out-of-distribution.
Prints a table and writes results.json, results.csv and report.html. What is computed is kept at once: the
same command goes on where it was stopped, and a changed one computes only what is missing.

what an evaluation needs:
  -c, --config FILE      test data, detectors and attacks (see configs/evaluate/)
  --checkpoint FILE      checkpoint of a training run, an export, or any file of weights (then also --net);
                         given again, one more network
  --output DIR           folder of the results and of what is computed (default: results)

for networks of others (docs/networks.md):
  --net CLASS            class path of any torch.nn.Module, here or installed, that takes pixels in [0, 1];
                         or Wrapped, with --net.module CLASS, --net.mean, --net.std, --net.head, --net.layers;
                         or Torchvision, Timm, RobustBench with --net.name NAME
  --key_map NAME         how the file names our weights, where it is not found by itself

what is often changed:
  --detectors '[msp, odin, {name: pro-gen, steps: 3}]'
  --attacks '[{name: pgd, norm: Linf, radius: [4/255, 8/255], steps: 20, restarts: 2}]'
  --models '{aloe: FILE, oe: [FILE, FILE, FILE]}'   names; several files are one recipe: mean and deviation
  --limit N              use only the first N images of each set
  --data.root DIR        folder of array files (.npz, .npy)
  --device NAME          auto, cpu, cuda or cuda:N
  --figures '[curves]'   which figures of a few images to draw: true, false, or of shift, curves, landscape, strips
  --report false         do not end with report.html
  --tensorboard true     also write its tables and figures for TensorBoard (tensorboard --logdir DIR)
  --sanity false         do not look for signs that an attack failed (masked gradients, too few steps)
  --name NAME            what the table calls the network (default: the checkpoint's folder)
  --replace true         replace results of other networks or data in the output folder
  --print_config         show the settings that would be used, and stop
  --help-all             list every setting

example:
  python evaluate.py -c configs/evaluate/digits.yaml --checkpoint runs/digits_aloe/last.ckpt --output results/aloe
"""

EXPORT = """\
usage: robust-ood export --checkpoint FILE --output DIR [--format {pt,safetensors}]

Write a checkpoint's network on its own: plain weights, and network.json, which says what they are weights of
(architecture, classes, normalisation, training). evaluate.py --checkpoint DIR reads it.

  --checkpoint FILE      checkpoint of a training run, or weights of a network of ours (then also --net)
  --output DIR           folder of weights.pt or weights.safetensors, and network.json
  --format NAME          pt (default) or safetensors
  --net CLASS            network of a file that does not say which it holds, such as WideResNet
  --key_map NAME         how that file names our weights, where it is not found by itself
  --help-all             list every setting

example:
  robust-ood export --checkpoint runs/aloe/last.ckpt --output exports/aloe --format safetensors
"""

HELP = {"train": TRAIN, "evaluate": EVALUATE, "export": EXPORT}


def print_all_settings(run: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Print the parser's own help, without its lists of every network class that any library has,
    and return 0.
    """
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            return run(
                ["--help" if argument == "--help-all" else argument for argument in arguments]
            )
    finally:
        print(re.sub(r", known subclasses:([^)]*)\)", _ours, text.getvalue()), end="")


def _ours(found: re.Match[str]) -> str:
    """Return the list of known classes with ours alone, wrapped as the help is."""
    names = [
        name for name in "".join(found[1].split()).split(",") if name.startswith("robust_ood.")
    ]
    if not names:
        return ")"
    return textwrap.fill(
        f"; known: {', '.join(names)})", 78, subsequent_indent=" " * 24, break_long_words=False
    )
