"""Lets the tests here have the small models and the NumPy reference of tests/models."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "models"))
