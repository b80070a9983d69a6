"""The words by which a corpus is counted: medical specialties and image types (MediSyn v1 Table 1, v2 section 4.1)."""

SPECIALTIES = (
    "radiology",
    "dermatology",
    "cardiology",
    "gastroenterology",
    "pathology",
    "hematology",
    "surgery",
    "ophthalmology",
    "pulmonology",
    "neurology",
    "anesthesiology",
)

IMAGE_TYPES = (
    "chest X-ray",
    "computed tomography",
    "magnetic resonance imaging",
    "ultrasound",
    "mammography",
    "dermoscopy",
    "histopathology",
    "blood smear microscopy",
    "optical coherence tomography",
    "fundus photography",
    "endoscopy",
    "laparoscopy",
    "surgical footage",
    "clinical photography",
    "electrocardiogram",
    "spectrogram",
)

# Modality code of DICOM PS3.3 C.7.3.1.1.1 -> image type, where the code alone decides it.
IMAGE_TYPE_OF_MODALITY = {
    "CT": "computed tomography",
    "MR": "magnetic resonance imaging",
    "US": "ultrasound",
    "MG": "mammography",
    "OPT": "optical coherence tomography",
    "ES": "endoscopy",
    "ECG": "electrocardiogram",
}
