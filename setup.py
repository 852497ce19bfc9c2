"""What pyproject.toml cannot say: the folder configs/ is installed as part of the package."""

from setuptools import find_namespace_packages, find_packages, setup

# Folders without code are named, too: setuptools takes them for packages, and warns of those left out.
FOLDERS = ["robust_ood.configs", *(f"robust_ood.configs.{folder}" for folder in find_namespace_packages("configs"))]

setup(
    packages=[*find_packages(include=["robust_ood", "robust_ood.*"]), "robust_ood.reporting.template", *FOLDERS],
    package_dir={"robust_ood.configs": "configs"},
    package_data={"": ["py.typed", "*.yaml", "*.css", "*.csv", "*.html", "*.j2", "*.js", "*.json"]},
)
