"""A chest CT's organs by classical means: thresholds, region growing, filters and a model. Approximate, and said so.

`segment_ct` gives the masks; `benchmarks/segment_ct.py` measures them against phantoms, whose truth is exact.
"""

from medisyn.evaluation.segment_ct.segment import SOURCE, Segmentation, segment_ct

__all__ = ["SOURCE", "Segmentation", "segment_ct"]
