"""A generated CT and its masks as files: NIfTI, a DICOM CT series with a segmentation, a three-plane picture."""

from medisyn.generation.volume_files.dicom import write_dicom_ct
from medisyn.generation.volume_files.grid import resample
from medisyn.generation.volume_files.nifti import write_nifti
from medisyn.generation.volume_files.planes import planes, write_planes
from medisyn.generation.volume_files.segmentation import write_dicom_seg

__all__ = ["planes", "resample", "write_dicom_ct", "write_dicom_seg", "write_nifti", "write_planes"]
