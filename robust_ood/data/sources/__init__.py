"""Sources of images: array files, image files, folders, image lists, data sets by class path, and
sets that need no file.

Each module turns one kind of source into an `ImageSet`; `robust_ood.data.named` chooses among them.
"""
