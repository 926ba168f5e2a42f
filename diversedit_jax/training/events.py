"""Event files, which TensorBoard reads: scalars and images, written without TensorFlow.

Only the format of a record is TensorBoard's own writer's. Its `EventFileWriter` imports TensorFlow
wherever that is installed, and tells of a failed write at some later one.
"""

from collections.abc import Iterable, Mapping
import io
import os
import pathlib
import socket
import time

import numpy as np
from PIL import Image
from tensorboard.compat.proto import (
  event_pb2,
  summary_pb2,
  tensor_pb2,
  tensor_shape_pb2,
  types_pb2,
)
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.summary.writer import record_writer

from diversedit_jax.data import growing
from diversedit_jax.training import writers


class EventFile:
  """A new event file in a folder; whatever is written is on its way at once, see `growing.Growing`.

  Raises:
    OSError: from every method, if the file cannot be written.
  """

  def __init__(self, folder: pathlib.Path):
    # TensorBoard knows the file by 'tfevents', and reads a folder's files in the order of time.
    name = f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}'
    self._records = record_writer.RecordWriter(growing.Growing(folder / name, new=True))
    self._write(event_pb2.Event(wall_time=time.time(), file_version='brain.Event:2'))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars of a step, as float32."""
    self._summary(step, (_scalar(tag, value) for tag, value in values.items()))

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes images of a step, [N, H, W, C], uint8 or float in [0, 1]; C is 1, 3 or 4."""
    self._summary(step, (_images(tag, x_NHWC) for tag, x_NHWC in images.items()))

  def close(self) -> None:
    """Closes the file."""
    self._records.close()

  def _summary(self, step, values: Iterable[summary_pb2.Summary.Value]):
    summary = summary_pb2.Summary(value=values)
    self._write(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

  def _write(self, event):
    self._records.write(event.SerializeToString())
    self._records.flush()


def _scalar(tag, value):
  metadata = scalar_metadata.create_summary_metadata(display_name=None, description=None)
  metadata.data_class = summary_pb2.DATA_CLASS_SCALAR
  tensor = tensor_pb2.TensorProto(
    dtype=types_pb2.DT_FLOAT,
    tensor_shape=tensor_shape_pb2.TensorShapeProto(),
    float_val=[value],
  )
  return summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def _images(tag, x_NHWC):
  """A tensor of strings, as TensorBoard wants it: width, height, and a PNG file for each image."""
  metadata = image_metadata.create_summary_metadata(display_name=None, description=None)
  metadata.data_class = summary_pb2.DATA_CLASS_BLOB_SEQUENCE
  _, height, width, _ = x_NHWC.shape
  strings = [str(width).encode(), str(height).encode(), *map(_png, writers.levels(x_NHWC))]
  tensor = tensor_pb2.TensorProto(
    dtype=types_pb2.DT_STRING,
    tensor_shape=tensor_shape_pb2.TensorShapeProto(
      dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=len(strings))]
    ),
    string_val=strings,
  )
  return summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def _png(x_HWC):
  file = io.BytesIO()
  Image.fromarray(x_HWC[..., 0] if x_HWC.shape[-1] == 1 else x_HWC).save(file, format='png')
  return file.getvalue()
