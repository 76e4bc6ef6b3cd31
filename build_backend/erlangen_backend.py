"""setuptools' build backend, which asks for a torch only where the target environment has none."""

from setuptools.build_meta import *  # noqa: F403
from target_torch import build_requirements


def get_requires_for_build_wheel(config_settings=None):
    return build_requirements()


def get_requires_for_build_editable(config_settings=None):
    return build_requirements()


def get_requires_for_build_sdist(config_settings=None):
    return []
