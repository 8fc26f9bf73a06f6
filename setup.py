"""Compiles what is native; where that fails, perseid is installed all the same and runs in Python alone."""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

# No flag of the building machine's own processor: images and wheels travel.
SECOND_STAGE = Pybind11Extension(
    "index.ranking._native",
    ["index/ranking/second_stage.cpp"],
    cxx_std=17,
    extra_compile_args=["-O3", "-fno-math-errno"],
    optional=True,
)

setup(ext_modules=[SECOND_STAGE])
