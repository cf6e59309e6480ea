"""Images from files and back: one record of a scan, one list of readers, one gate for all commands.

A reader is one file here and its line in READERS (docs/how-to/add-a-reader.md); help, messages, `sam-segment`,
`sam-train`, `sam-bench` and `--calibration` know it then.

    scan, forms     what everybody sees: voxels, affine, and what a mask takes over
    frames          where a file says that its voxels lie, and whether left and right are known
    reader          the record of a reader, and what it tells before a voxel is read
    gate            what every scan and label has to be
    pictures        what every picture and every mask in one has to be
    reading         a scan, a label or a picture from a path
    study           what is segmented together
    in_memory       the same from what a session is given instead of a file
    writing         masks, logits and volumes, complete or not at all
    results         a mask and its table, checked before and written
"""

from importlib import import_module

from samkit.imageio.reader import Reader

_FILES = (
    "nifti",
    "freesurfer",
    "itk",
    "pillow",
)
READERS: tuple[Reader, ...] = tuple(import_module(f"{__name__}.{file}").READER for file in _FILES)
"""Every kind of file that is read; of two that know an end of a name the first one is taken."""
