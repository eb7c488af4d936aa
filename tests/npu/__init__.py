"""Tests on an emulated Ascend server, see conftest.py."""
