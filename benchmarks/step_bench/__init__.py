"""The parts of ``benchmarks/step.py``: one optimizer step against TRL's."""
