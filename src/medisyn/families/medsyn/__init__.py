"""MedSyn: 3D chest CT with its lobes, airways and vessels, from a report (Xu et al., 2024)."""
