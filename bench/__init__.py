"""Benchmarks of ``ctm_fast`` against plain PyTorch: ``python -m bench --help``."""
