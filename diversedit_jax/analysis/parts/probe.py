"""What a linear map reads from each block: the class of the example, and its time.

Probes are fitted on examples of the training split and scored on the held-out ones, on token means
that are standardised by the training examples. Class: multinomial logistic regression (C = 1),
accuracy, at each time. Time: ridge regression (its strength by leave-one-out), R2, where every
example has a time of its own, spread evenly over (0, 1). The network is told the null label: with
the true one every block would know the class.
"""

import warnings

import numpy as np

from diversedit_jax import rng
from diversedit_jax.analysis import panels, registry
from diversedit_jax.analysis import scope as scope_lib

_STRENGTHS = np.logspace(-3, 3, 7)
_SMALL = 1_000_000  # Values of features.
_GOLDEN = (5**0.5 - 1) / 2


def class_accuracy(
  x_NP: np.ndarray, y_N: np.ndarray, x_MP: np.ndarray, y_M: np.ndarray
) -> tuple[float, bool]:
  """Held-out accuracy of logistic regression, and whether its fit has converged.

  x_NP, y_N: features and labels that it is fitted on. x_MP, y_M: those that it is scored on.
  """
  from sklearn import exceptions, linear_model, pipeline, preprocessing

  made = pipeline.make_pipeline(
    preprocessing.StandardScaler(), linear_model.LogisticRegression(max_iter=300)
  )
  with _threads(x_NP), warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always', exceptions.ConvergenceWarning)
    made.fit(x_NP, y_N)
  found = any(issubclass(w.category, exceptions.ConvergenceWarning) for w in said)
  return float(made.score(x_MP, y_M)), not found


def time_r2(x_NP: np.ndarray, t_N: np.ndarray, x_MP: np.ndarray, t_M: np.ndarray) -> float:
  """Held-out R2 of ridge regression of the time; arguments as of `class_accuracy`."""
  from sklearn import linear_model, pipeline, preprocessing

  made = pipeline.make_pipeline(
    preprocessing.StandardScaler(), linear_model.RidgeCV(alphas=_STRENGTHS)
  )
  with _threads(x_NP):
    return float(made.fit(x_NP, t_N).score(x_MP, t_M))


def _threads(x_NP):
  """One thread for small products, which several only slow down, tenfold where cores are shared."""
  import threadpoolctl  # scikit-learn's own.

  return threadpoolctl.threadpool_limits(1 if x_NP.size < _SMALL else None)


@registry.register('probe', default=True)
def run(scope: scope_lib.Scope) -> registry.Findings:
  """Accuracy of the class by block and time where there are classes, and R2 of the time."""
  config = scope.config
  fitted_on = scope_lib.spread(len(scope.training), config.probe_examples)
  scored_on = scope.indices
  labels = _labels(scope.training, fitted_on), _labels(scope.held_out, scored_on)
  chance = max(np.mean(labels[1] == k) for k in np.unique(labels[0]))
  times = config.times if len(np.unique(labels[0])) > 1 else ()
  accuracy: dict[float, list[float]] = {}
  unfinished = []
  held_out = scope.features(**scope_lib.UNTOLD) if times else ()
  for t, test_LMP in zip(times, held_out, strict=True):
    train_LNP = _features(scope, scope.training, fitted_on, t)
    accuracy[t] = []
    for block, (x_NP, x_MP) in enumerate(zip(train_LNP, test_LMP, strict=True), 1):
      share, converged = class_accuracy(x_NP, labels[0], x_MP, labels[1])
      accuracy[t].append(share)
      unfinished += [] if converged else [f'block {block}, t = {t:g}']
  splits = [
    (_features(scope, source, indices, spaced), spaced)
    for source, indices in ((scope.training, fitted_on), (scope.held_out, scored_on))
    for spaced in [_spaced(len(indices))]
  ]
  (train_LNP, t_N), (test_LMP, t_M) = splits
  r2 = [time_r2(a, t_N, b, t_M) for a, b in zip(train_LNP, test_LMP, strict=True)]
  of_class = panels.Curves(
    title='linear probe of the class',
    x=scope.blocks,
    x_label='block',
    y_label='held-out accuracy',
    series={f't = {t:g}': values for t, values in accuracy.items()},
    ordered=True,
    low=0,
    high=1.02,
    reference=(float(chance), 'chance'),
  )
  of_time = panels.Curves(
    title='linear probe of the time',
    x=scope.blocks,
    x_label='block',
    y_label='held-out R2',
    series={'time': r2},
    low=min(0.0, *r2),
    high=1.02,
  )
  shown = [of_class, of_time] if times else [of_time]
  return registry.Findings(
    figures={'probe': shown},
    summary={
      'class_accuracy': {f't={t:g}': values for t, values in accuracy.items()},
      'chance': float(chance),  # The share of the most frequent class.
      'time_r2': r2,
      'not_converged': unfinished,
    },
    protocol={
      'fitted_on': f'{len(fitted_on)} examples of {scope.training.name}, evenly spread',
      'scored_on': f'{len(scored_on)} examples of {scope.held_out.name}, evenly spread',
      'labels': 'null',
      'class_probe': 'standardised token means, logistic regression, C = 1',
      'time_probe': 'standardised token means, ridge, strength by leave-one-out',
    },
    sheet=shown[:1],
  )


def _labels(source, indices):
  return source.gather(indices)['labels']


def _features(scope, source, indices, t):
  """Token means [L, n, D]; their noise is not that of the other parts."""
  key = rng.stream(scope.key, f'probe/{source.name}')
  size = scope.config.batch_size
  batches = scope.subject.batches(source, indices, t, key=key, size=size, **scope_lib.UNTOLD)
  return np.concatenate(list(batches), axis=1)


def _spaced(n):
  """Times in (0, 1), the same for the same n, evenly spread and without order (Weyl)."""
  return ((np.arange(n) + 0.5) * _GOLDEN % 1).astype(np.float32)
