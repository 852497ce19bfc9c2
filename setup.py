"""What pyproject.toml cannot say: the folder configs/ is installed as part of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["robust_ood", "robust_ood.*"]), "robust_ood.configs"],
    package_dir={"robust_ood.configs": "configs"},
    package_data={
        "robust_ood": ["py.typed"],
        "robust_ood.configs": ["**/*.yaml"],
        "robust_ood.reporting": ["**/*.css", "**/*.csv", "**/*.html", "**/*.j2", "**/*.js", "**/*.json", "**/*.yaml"],
    },
)
