"""File formats of volumes and segmentations, read and written without loss or a clear sentence.

imagefile   one door to all formats, by a file's name
nifti       NIfTI, read strictly: NaN, truncated and sheared files are refused
dicom       DICOM series in a folder
segnrrd     Slicer's .seg.nrrd
dicom_seg   DICOM segmentation objects
"""
