"""tenfold: ten times fewer labels.

Turns a bucket of unlabelled images and a handful of labels into a small, accurate classifier, by the
recipe of SimCLRv2 (pretrain without labels, fine-tune on few, distil into a student) with an EMA-Teacher
stage after Semi-ViT. README.md says how to run it.
"""

from importlib.metadata import version

__version__ = version("tenfold")
