"""The short `--help` of the commands, written by hand. `--help-all` lists every setting."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

TRAIN = """\
usage: train.py {fit,validate,test} -c FILE [-c FILE ...] [--SETTING VALUE ...]

Train (fit), validate or test a network. YAML files compose: later files override earlier ones, and
options override files.

what a run needs:
  -c, --config FILE          data, network and method, or an experiment of all three (see configs/)
  --output DIR               run folder: last.ckpt, config.yaml, metrics.csv, TensorBoard events
                             (default: runs/NAME of the experiment)

frequent settings:
  --ckpt_path last           continue from DIR/last.ckpt, or from any checkpoint of a run
  --resume_changed true      continue although settings differ from those of the run
  --replace true             overwrite the existing run in the output folder
  --init_from FILE           fine-tune: start with the weights of a checkpoint
  --data.root DIR            folder of array files (.npz, .npy)
  --data.batch_size N        inliers per batch; --data.outlier_batch_size N outliers
  --trainer.max_epochs N     length of the run; --trainer.max_steps N in optimiser steps
  --trainer.accelerator gpu  device: auto, cpu or gpu; --trainer.devices N how many
  --seed_everything N        seed of order, augmentation, attacks and initial weights (default: 0)
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
Prints a table and writes results.json, results.csv and report.html. Everything computed is stored
at once: the same command continues where it stopped, and a changed one computes only what is
missing.

what an evaluation needs:
  -c, --config FILE      test data, detectors and attacks (see configs/evaluate/)
  --checkpoint FILE      checkpoint of a training run, an export, or any file of weights (then also
                         --net); or zoo:NAME (robust-ood zoo list); repeat it for several networks
  --output DIR           folder of the results and of everything computed (default: results)

other people's networks (docs/networks.md):
  --net CLASS            class path of any torch.nn.Module that takes pixels in [0, 1], here or
                         installed, or of a function that builds one; or Wrapped, with
                         --net.module CLASS, --net.mean, --net.std, --net.head, --net.layers; or
                         Torchvision, Timm, HuggingFace, RobustBench with --net.name NAME
  --key_map NAME         how the file names our weights, where that is not detected
  --averaged true        take the running average (EMA) that the file holds beside its weights

frequent settings:
  --detectors '[msp, odin, {name: pro-gen, steps: 3}]'
  --attacks '[{name: pgd, norm: Linf, radius: [4/255, 8/255], steps: 20, restarts: 2}]'
  --models '{aloe: FILE, oe: [FILE, FILE, FILE]}'
                         names; several files are one recipe, reported as mean and deviation
  --limit N              use only the first N images of each set
  --data.root DIR        folder of array files (.npz, .npy)
  --device NAME          auto, cpu, cuda or cuda:N
  --figures '[curves]'   figures of a few images: true, false, or some of shift, curves, landscape,
                         strips, errors
  --report false         do not write report.html
  --table full           print every set, attack and warning (default: summary, one page)
  --tensorboard true     also write tables and figures for TensorBoard (tensorboard --logdir DIR)
  --sanity false         do not look for signs of a failed attack (masked gradients, too few steps)
  --name NAME            name of the network in tables (default: the checkpoint's folder)
  --replace true         replace results of other networks or data in the output folder
  --print_config         show the settings that would be used, and stop
  --help-all             list every setting

example:
  python evaluate.py -c configs/evaluate/digits.yaml --checkpoint runs/digits_aloe/last.ckpt \\
      --output results/aloe
"""

SEARCH = """\
usage: robust-ood search -c FILE --checkpoint FILE [--SETTING VALUE ...]

Try the settings of detectors over ranges (the papers', or yours) on validation sets that share no
image with the test sets. Prints the best, and writes detectors.yaml, a config for evaluate.py, and
search.json with every trial.

what a search needs:
  -c, --config FILE      data: train (to fit), validation, validation_ood, and the test sets to keep
                         apart
  --checkpoint FILE      checkpoint of a training run, an export, or any file of weights (then also
                         --net)
  --output DIR           folder of detectors.yaml and search.json (default: search)

what is often changed:
  --detectors '[odin, {name: react, score: maxlogit, ranges: {percentile: [80, 90, 95]}}]'
                         settings beside `ranges` stay fixed; without ranges, the papers' are tried
  --metric fpr95         what is best: auroc (default) or fpr95
  --attack '{name: pgd, radius: 8/255, steps: 10}'
                         choose by what survives it, with both sides attacked
  --limit N              use only N images of each validation set
  --device NAME          auto, cpu, cuda or cuda:N
  --help-all             list every setting

example:
  robust-ood search -c configs/data/digits.yaml --checkpoint runs/digits_aloe/last.ckpt \\
      --output search
  python evaluate.py -c configs/evaluate/digits.yaml -c search/detectors.yaml \\
      --checkpoint runs/digits_aloe/last.ckpt --output results/chosen
"""

ENCODER_ATTACK = """\
usage: robust-ood encoder-attack -c FILE --checkpoint FILE [--SETTING VALUE ...]

Move OOD images (noise, a picture, another set) within a ball until a network encodes each like the
in-distribution image it is paired with, and say which detectors still tell them apart. Prints a
table and writes encoder_attack.json, pairs.npz and report.html. Everything computed is stored at
once: the same command continues where it stopped.

what it needs:
  -c, --config FILE      test data, and train data where a detector learns (see configs/data/)
  --checkpoint FILE      checkpoint of a training run, an export, or any file of weights (then also
                         --net)
  --output DIR           folder of the results and of everything computed (default: encoder_attack)

what is often changed:
  --match '[features, logits, layers, score, log-score]'
                         what is matched; a score is each detector's own. {code: logits, of: odin}:
                         of the images that a detector reads, or of all networks of an ensemble;
                         of: each does so for each detector by itself
  --starts '[noise, spirals, checkerboard, grey, xray.png, svhn]'
                         each inlier is paired with a drawn image, the picture, or one of the set;
                         {source: xray.png, size: 224} makes a picture fit
  --detectors '[msp, odin, gram]'
  --radius 10 --steps 1000 --restarts 1
                         the paper's L2 ball and iterations of Adamax; of several restarts from
                         random points, each pair keeps its best
  --limit N              only so many pairs
  --batch_size N         pairs that are attacked and stored at a time (default: 100)
  --data.root DIR        folder of the data
  --device NAME          auto, cpu, cuda or cuda:N
  --report false         do not write report.html
  --help-all             list every setting

example:
  robust-ood encoder-attack -c configs/data/digits.yaml \\
      --checkpoint runs/digits_standard/last.ckpt --match '[features, score]' \\
      --starts '[noise, spirals]' --detectors '[msp, mahalanobis]' --limit 100
"""

EXPORT = """\
usage: robust-ood export --checkpoint FILE --output DIR [--format {pt,safetensors}]
       robust-ood export GUARD [--format {torch,onnx}] [--output DIR]

Write a checkpoint's network as plain weights, with a network.json that describes it (architecture,
classes, normalisation, training). evaluate.py --checkpoint DIR reads it.
Of a guard (see robust-ood calibrate), write network, score and threshold as one program, once it
gives PyTorch's decisions on real images.

  --checkpoint FILE      checkpoint of a training run, or weights of our network (then also --net)
  --output DIR           folder of weights.pt or weights.safetensors, and network.json
  --format NAME          pt (default) or safetensors; of a guard torch (default) or onnx
  --net CLASS            network of a file that does not name its own, such as WideResNet
  --key_map NAME         how that file names our weights, where that is not detected
  --averaged true        take the running average (EMA) that the file holds beside its weights
  --help-all             list every setting

example:
  robust-ood export --checkpoint runs/aloe/last.ckpt --output exports/aloe --format safetensors
  robust-ood export guards/aloe --format onnx
"""

CALIBRATE = """\
usage: robust-ood calibrate -c FILE --checkpoint FILE [--SETTING VALUE ...]

Fit detectors on training images and their thresholds on held-out ones, and write a guard: a folder
with network, detector and threshold that robust-ood predict, serve, export and watch take. The
threshold keeps a promise: with --confidence, at least the share --accept of new in-distribution
images is accepted.

what it needs:
  -c, --config FILE      data: validation (the threshold), train (where a detector learns); test and
                         OOD sets are scored, too, if they are given
  --checkpoint FILE      checkpoint of a training run, an export, or weights of our network
  --output DIR           the guard (default: guard); of several detectors, one folder in it for each

what is often changed:
  --detectors '[msp, {name: knn, neighbours: 20}]'
  --accept 0.95          share of new in-distribution images that is accepted at least
  --confidence 0.95      with which it is; too few images for both are refused, with the number
  --calibrate_on test    take the threshold from data.test
  --results DIR          folder of an evaluation of this checkpoint, whose attacked rates are stated
  --help-all             list every setting

example:
  robust-ood calibrate -c configs/data/digits.yaml --checkpoint runs/digits_aloe/last.ckpt \\
      --detectors '[msp]' --output guards/aloe
"""

PAPER = """\
usage: robust-ood paper NAME ITEM [--size small|paper] [--SETTING VALUE ...]
       robust-ood paper list [NAME]

Make a table or figure of one of the five papers: training where needed, search, evaluation, then
the measured numbers beside the printed ones. Finished steps are skipped, and items share them;
after an interruption the same command continues.

  list [NAME]            every item, what it shows, and what it needs at the paper's size
  --size small           (default) the embedded digits and small networks, in minutes
  --size paper           data and networks of the paper
  --root DIR             folder of the data sets (size paper)
  --set NAME=VALUE ...   variables of the item, such as files of weights
  --plan true            only print the commands, and what they need
  --output DIR           folder of all items (default: runs/papers)

example:
  robust-ood paper aloe table-1
"""

HELP = {
    "train": TRAIN,
    "evaluate": EVALUATE,
    "encoder-attack": ENCODER_ATTACK,
    "search": SEARCH,
    "export": EXPORT,
    "calibrate": CALIBRATE,
    "paper": PAPER,
}


def print_all_settings(run: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Print the parser's help and return 0; of network classes, it lists only ours."""
    text = io.StringIO()
    options = list(arguments)
    if "--help-all" in options:
        options[options.index("--help-all")] = "--help"
    try:
        with redirect_stdout(text):
            return run(options)
    finally:
        # jsonargparse lists the network classes of every library that is imported.
        print(re.sub(r", known subclasses:([^)]*)\)", _only_ours, text.getvalue()), end="")


def _only_ours(match: re.Match[str]) -> str:
    """Return a list of known classes without those of libraries, wrapped as the help is."""
    class_paths = "".join(match[1].split()).split(",")
    ours = [path for path in class_paths if path.startswith("robust_ood.")]
    if not ours:
        return ")"
    listed = f"; known: {', '.join(ours)})"
    return textwrap.fill(listed, 78, subsequent_indent=" " * 24, break_long_words=False)
