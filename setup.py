"""What pyproject.toml cannot say yet: the turbo engine's kernel is built where there are a compiler and libjpeg-turbo.

Where they are not, everything else installs all the same, and the loader decodes with Pillow and says so.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "wv_loader._turbo",
            sources=["loader/wv_loader/_turbo.c"],
            libraries=["jpeg", "m"],
            extra_compile_args=["-O3", "-Wall", "-Wextra"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
