"""Names that are never a class and never a picture: what systems and programs leave behind.

Operating systems, file servers, NAS boxes, archivers, editors and downloads that did not end. The
names are compared in lower case.
"""

_NAMES = frozenset(
  (
    *('__macosx', 'icon\r', 'network trash folder', 'temporary items'),  # macOS
    *('thevolumesettingsfolder', 'thefindbycontentfolder'),
    *('thumbs.db', 'ehthumbs.db', 'ehthumbs_vista.db', 'desktop.ini', '$recycle.bin'),  # Windows
    *('system volume information', 'found.000', 'found.001'),
    *('lost+found', 'lost.dir', 'aquota.user', 'aquota.group'),  # Linux, Android
    *('@eadir', '@tmp', '@recycle', '@recently-snapshot', '#recycle', '#snapshot', '~snapshot'),
    '__pycache__',
  )
)
# .DS_Store, ._x.jpg, .Trash-1000, .AppleDouble, .snapshot, .zfs, .nfs0001, .ipynb_checkpoints, ...
_STARTS = ('.', '~$')
_ENDS = (  # Endings of files alone: a folder that ends so may be a class.
  *('~', '.bak', '.orig', '.swp', '.tmp', '.part', '.partial', '.crdownload', '.aria2'),
  '.thm',  # A camera's thumbnail beside a film or a negative; a JPEG.
)


def foreign(name: str) -> str | None:
  """The part of a POSIX name up to the first that is never a class, a folder's with '/'; or None.

  'cat/@eaDir/1.jpg' gives 'cat/@eaDir/', 'cat/.DS_Store' itself, and 'cat/1.jpg' None.
  """
  parts = name.split('/')
  for i, part in enumerate(parts):
    lower = part.lower()
    left = lower in _NAMES or (lower.startswith(_STARTS) and part != '..')
    if left or (i + 1 == len(parts) and lower.endswith(_ENDS)):
      return '/'.join(parts[: i + 1]) + '/' * (i + 1 < len(parts))
  return None
