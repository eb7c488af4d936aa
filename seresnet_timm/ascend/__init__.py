"""Everything that needs torch_npu. No other part of the package imports it."""
