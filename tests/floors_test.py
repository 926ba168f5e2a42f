"""A file imports only from lower floors or from its own folder (docs/architecture.md)."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = 'diversedit_jax'

FLOORS = {
  name: floor
  for floor, names in enumerate(
    (
      'types',
      'rng trees progress signals paths buckets cores faults meeting',
      'locks options cli slices together',
      'cluster sharding interpolants losses data weights integrity commits',
      'models restore_targets',
      'frozen sampling checkpoint',
      'methods convert evaluation preparation',
      'analysis training',
      'planning',
      'experiment',
      'reporting',
      'modes config_file',
      'main prepare evaluate_npz',
    )
  )
  for name in names.split()
}


def unit(parts):
  """'losses' for diversedit_jax/losses/x.py and for `diversedit_jax.losses.x`."""
  return parts[0].removesuffix('.py') if parts else ''


def imported_units(tree):
  for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'relative imports hide the floor'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    for name in names:
      parts = name.split('.')
      if parts[0] == 'configs':
        yield 'configs'
      elif parts[0] == PACKAGE and len(parts) > 1:
        yield parts[1]


def test_files_import_only_from_below():
  wrong = []
  for path in sorted((ROOT / PACKAGE).rglob('*.py')):
    own = unit(path.relative_to(ROOT / PACKAGE).parts)
    if own == '__init__':
      continue
    assert own in FLOORS, f'{own} has no floor: add it here and to docs/architecture.md'
    for other in imported_units(ast.parse(path.read_text())):
      allowed = other in (own, '__version__')
      if not allowed and FLOORS.get(other, 99) >= FLOORS[own]:
        wrong.append(f'{path.relative_to(ROOT)} (floor {FLOORS[own]}) imports {other}')
  assert not wrong, '\n'.join(wrong)


def test_losses_never_see_a_module():
  for path in (ROOT / PACKAGE / 'losses').glob('*.py'):
    assert 'flax' not in path.read_text(), f'{path.name}: losses take arrays and return arrays'
