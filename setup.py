"""Compiles what is native; where that fails, perseid is installed all the same and runs in Python alone."""

import os

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

# No flag of the building machine's own processor: images and wheels travel.
FLAGS = ["-O3", "-fno-math-errno", "-ffp-contract=fast"]


def native(name: str, source: str, *macros: tuple[str, str]) -> Pybind11Extension:
    """A module that may be missing."""
    return Pybind11Extension(
        name,
        [source],
        cxx_std=17,
        extra_compile_args=FLAGS,
        define_macros=[*macros],
        depends=["index/items/products.hpp"],
        optional=True,
    )


setup(
    options={"build_ext": {"parallel": os.cpu_count()}},
    ext_modules=[
        native("encoder.inference._native", "encoder/inference/forward.cpp"),
        native("encoder.inference._native_wide", "encoder/inference/forward.cpp", ("WIDE", "1")),
        native("index.items._native", "index/items/first_stage.cpp"),
        native("index.ranking._native", "index/ranking/second_stage.cpp"),
    ],
)
