"""A generated clip as files: H.264 and GIF for viewing, lossless FFV1 for measuring, a sheet of frames, DICOM."""

from medisyn.generation.clip_files.dicom import write_dicom_clip
from medisyn.generation.clip_files.sheet import write_frame_sheet
from medisyn.generation.clip_files.video import FORMATS, WRITERS, read_record, write_ffv1, write_gif, write_mp4

__all__ = [
    "FORMATS",
    "WRITERS",
    "read_record",
    "write_dicom_clip",
    "write_ffv1",
    "write_frame_sheet",
    "write_gif",
    "write_mp4",
]
