"""Makes the shards of one worker one by one, and finishes the store when all shards are there.

The order: open and check everything; lock; write the plan; clear up; encode and write each shard
that is not finished; when no shard of any worker is missing, write the labels, the list of skipped
pictures and the manifest. Nothing is written before the checks have passed. A run that was killed
at any moment goes on from its last shard.
"""

from collections.abc import Iterable, Iterator
from concurrent import futures
import contextlib
import dataclasses
from importlib import metadata

from absl import logging
import jax

from diversedit_jax import __version__, types
from diversedit_jax.data import pictures, sources
from diversedit_jax.data.pictures import base
from diversedit_jax.data.store import layout, writer
from diversedit_jax.frozen import encoders, rae, vae_files
from diversedit_jax.preparation import encode, locks, making, options, output, progress

_PROGRAMS = ('jax', 'jaxlib', 'numpy', 'pillow', 'array_record')
_SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """The result of a worker.

  plan: plan of the store.
  manifest: manifest of the finished store; None while shards of other workers are missing.
  made: number of shards that this run wrote.
  missing: shards that are missing.
  skipped: what was left out, with reasons, by the listing and in all shards of a finished store,
    or in the worker's own shards of an unfinished one.
  """

  plan: layout.Plan
  manifest: layout.Manifest | None
  made: int
  missing: tuple[int, ...]
  skipped: tuple[base.Skipped, ...]

  def text(self) -> str:
    """The result for a console."""
    plan, skipped = self.plan, self.skipped
    lines = [f'source    {plan.source}, {plan.examples} pictures, {len(plan.label_names)} classes']
    for name, column in plan.columns.items():
      twins = ', with twins' if column.twins else ''
      lines.append(f'{name:<9} {column.dtype} {list(column.shape)}{twins}')
    lines.append(f'shards    {plan.shards}, {self.made} of them made now')
    if self.manifest is None:
      some = ', '.join(str(shard) for shard in self.missing[:10])
      lines.append(f'unfinished: {len(self.missing)} shards of other workers are missing: {some}')
    else:
      lines.append(f'examples  {self.manifest.count}, content {self.manifest.content_sha256}')
    lines.append(f'skipped   {len(skipped)}{" (see skipped.csv)" if self.manifest else ""}')
    lines += [f'  {s.name!r}: {s.reason}' for s in skipped[:_SHOWN]]
    lines += [f'  ... and {len(skipped) - _SHOWN} more'] if len(skipped) > _SHOWN else []
    return '\n'.join(lines)


def run(asked: options.Options) -> Outcome:
  """Opens what was asked for and does one worker's part.

  Raises:
    UserError: something cannot be done as asked; finished shards are kept.
  """
  output.check_place(asked.output, pictures.folder_of(asked.source, asked.split))
  made = None
  if asked.vae is not None:
    autoencoder = vae_files.load(
      asked.vae, scale=asked.vae_scale, shift=asked.vae_shift, dtype=asked.vae_dtype or 'float32'
    )
    options.check_size(asked, autoencoder.config)
    made = making.encoded(autoencoder, asked.size)
  collection = pictures.open_pictures(
    asked.source, classes=asked.classes, labels=asked.labels, split=asked.split
  )
  if asked.rae is not None:
    made = making.tokens(_latents(asked, collection))
  return prepare(asked, collection, made)


def prepare(
  asked: options.Options, collection: base.Pictures, made: making.Making | None
) -> Outcome:
  """Does what `run` does, with a collection that is open and what makes latents."""
  root, plan = asked.output, options.make_plan(asked, collection, made)
  output.check(root, plan)
  listed = collection.listing.skipped
  _refuse(asked.strict, [s for s in listed if s.bad])
  found = {shard: writer.finished(root, plan, shard) for shard in range(plan.shards)}
  missing = [shard for shard, facts in found.items() if facts is None]
  output.check_space(root, plan, missing)
  logging.info(
    '%s: %d pictures, %d classes, %d shards of at most %d, %d missing',
    plan.source,
    plan.examples,
    len(plan.label_names),
    plan.shards,
    plan.records_per_shard,
    len(missing),
  )
  try:
    root.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise types.UserError(f'--output={root} cannot be made: {error.strerror}') from error
  with locks.worker(root, asked.worker, asked.workers):
    with locks.store(root):
      output.begin(root, plan, asked.worker, asked.workers)
    mine = {shard: found[shard] for shard in range(asked.worker, plan.shards, asked.workers)}
    count, skipped = _make(asked, plan, mine, collection, made)
    missing = [s for s in range(plan.shards) if writer.finished(root, plan, s) is None]
    manifest = None
    if not missing:
      manifest = _finish(root, plan, listed)
      skipped = [
        base.Skipped(*row) for s in range(plan.shards) for row in layout.read_facts(root, s).skipped
      ]
  return Outcome(
    plan=plan, manifest=manifest, made=count, missing=tuple(missing), skipped=(*listed, *skipped)
  )


def _latents(asked, collection):
  """The latents of the encoder that was asked for."""
  side, patch = asked.size, asked.rae_patch or rae.PATCH
  if side % patch:
    raise types.UserError(
      f'--size={side} is not divisible by {patch}, the pixels of a token (--rae_patch)'
    )
  shown = sources.PictureSource(
    collection, size=side, crop=asked.crop, orientation=asked.orientation
  )
  request = encoders.Request(
    source=shown,
    grid=(side // patch, side // patch),
    image_shape=shown.shape,
    weights=asked.rae_weights or '',
    dtype=asked.rae_dtype or 'float32',
    key='--rae_weights',
  )
  return rae.open_latents(asked.rae, request, asked.rae_statistics or '')


def versions() -> dict[str, str]:
  """Versions of the programs that decide the numbers, by name."""
  return {'diversedit_jax': __version__, **{name: metadata.version(name) for name in _PROGRAMS}}


def _make(asked, plan, mine, collection, made):
  """Makes the shards of `mine` without facts; returns how many, and what is skipped in `mine`."""
  skipped = [base.Skipped(*row) for facts in mine.values() if facts for row in facts.skipped]
  _refuse(asked.strict, skipped)
  todo = [shard for shard, facts in mine.items() if facts is None]
  if not todo:
    return 0, skipped
  total, left = (sum(len(plan.entries(shard)) for shard in shards) for shards in (mine, todo))
  encoder = None if made is None else encode.Encoder(made, asked.batch_size)
  threads = asked.decoding_threads()
  device = None if encoder is None else jax.local_devices()[0]
  meter = progress.Meter(total, total - left, len(skipped), device=device)
  with futures.ThreadPoolExecutor(threads) as pool:
    pipeline = encode.Pipeline(
      collection=collection,
      plan=plan,
      encoder=encoder,
      pool=pool,
      threads=threads,
      batch_size=asked.batch_size if encoder is None else encoder.batch_size,
    )
    for shard in todo:
      writer.reopen(asked.output, shard)
      with contextlib.closing(pipeline.results(shard)) as results:
        facts = writer.write_shard(
          asked.output, plan, shard, _watched(results, meter, asked.strict)
        )
      skipped += [base.Skipped(*row) for row in facts.skipped]
  meter.log()
  return len(todo), skipped


def _watched(results: Iterable, meter: progress.Meter, strict: bool) -> Iterator:
  """Passes the results on and counts them; a bad picture is an error if `strict`."""
  for result in results:
    bad = isinstance(result, base.Skipped)
    _refuse(strict and bad, [result])
    meter.add(bad)
    yield result


def _refuse(strict, skipped):
  if strict and skipped:
    more = f' (and {len(skipped) - 1} more)' if len(skipped) > 1 else ''
    raise types.UserError(
      f'--strict: {skipped[0].name!r} cannot be used: {skipped[0].reason}{more}; repair or remove '
      'it, or leave out --strict to skip such pictures and list them in skipped.csv'
    )


def _finish(root, plan, listed):
  made_by = versions()
  with locks.store(root):
    with contextlib.suppress(types.UserError):  # A manifest means that no shard was made since.
      made_by = layout.read_manifest(root).versions
    manifest = writer.finish(root, plan, listed, made_by)
    locks.remove_stale(root)
  return manifest
