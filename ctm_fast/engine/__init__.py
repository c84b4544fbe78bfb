"""Inference without torch: all ticks of a Continuous Thought Machine in one native call, on the CPU, in float32.

``Engine(model, example_inputs)`` takes the weights of a model, ``engine.save(path)`` writes them, ``load(path)`` reads
them back in a process that needs nothing but NumPy and this package.
"""

from ctm_fast.engine.cell import CellEngine, CellResult
from ctm_fast.engine.engine import Engine, load
from ctm_fast.engine.halt import EngineResult, Halt, Reason

__all__ = ["CellEngine", "CellResult", "Engine", "EngineResult", "Halt", "Reason", "load"]
