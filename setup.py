"""What pyproject.toml cannot say: the folder configs/ is installed as part of the package."""

from setuptools import find_namespace_packages, setup

# Namespaces, so that folders without code count: setuptools takes them for packages, and warns of
# those left out.
FOLDERS = [
    "robust_ood.configs",
    *(f"robust_ood.configs.{folder}" for folder in find_namespace_packages("configs")),
]

setup(
    packages=[*find_namespace_packages(include=["robust_ood", "robust_ood.*"]), *FOLDERS],
    package_dir={"robust_ood.configs": "configs"},
    package_data={
        "": [
            "py.typed",
            "*.yaml",
            "*.css",
            "*.csv",
            "*.html",
            "*.j2",
            "*.js",
            "*.json",
            "*.safetensors",
        ]
    },
)
