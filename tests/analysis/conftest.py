"""What the tests of figures share."""

from matplotlib import figure
import pytest


@pytest.fixture
def drawn(monkeypatch):
  """The figures that were saved, so that tests can read their axes."""
  saved = []
  save = figure.Figure.savefig

  def savefig(self, *args, **kwargs):
    saved.append(self)
    save(self, *args, **kwargs)

  monkeypatch.setattr(figure.Figure, 'savefig', savefig)
  return saved
