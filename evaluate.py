#!/usr/bin/env python3
"""Evaluate a checkpoint: `python evaluate.py -c configs/evaluate/digits.yaml --checkpoint FILE`."""

import sys

from robust_ood.cli import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
