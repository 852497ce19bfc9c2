#!/usr/bin/env python3
"""Train, validate or test: `python train.py fit -c configs/experiments/digits_aloe.yaml`."""

import sys

from robust_ood.cli import train

if __name__ == "__main__":
    sys.exit(train())
