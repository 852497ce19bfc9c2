"""The papers' tables and figures as commands: items, their steps, and how the steps run."""
