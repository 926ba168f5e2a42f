"""The page: one HTML file that needs no network, no server and, for its numbers, no script."""

import base64
from collections.abc import Sequence
import datetime
import hashlib
from importlib import resources

import diversedit_jax
from diversedit_jax.reporting import analysis, markup, over_steps, runs, scores, tables

_MANY = 6  # Runs of which more are drawn smaller.


def write(report: Sequence[runs.Run], title: str, made: datetime.datetime) -> str:
  """The whole page.

  Args:
    report: the runs, at least one. title: of the page. made: time of day, shown.
  """
  notes: list[str] = []
  charts = lambda drawn: [markup.tag('div', drawn, class_='charts')] if drawn else []
  sections = (
    ('Overview', tables.overview(report)),
    ('Losses', charts(over_steps.losses(report))),
    ('Samples', over_steps.samples(report, notes)),
    ('Scores', [*charts(over_steps.scores(report)), *scores.section(report)]),
    ('Diversity', over_steps.diversity(report)),
    ('Analysis', analysis.section(report, notes)),
    ('Speed', charts(over_steps.speed(report))),
    ('Goodput', tables.goodput(report)),
    ('Config', tables.config(report)),
    ('Environment', tables.environment(report)),
    ('Not recorded', tables.missing(report, notes)),
  )
  drawn = [(name, content) for name, content in sections if any(content)]
  style, script = (_file(f'page.{kind}') for kind in ('css', 'js'))
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
  policy += f"base-uri 'none'; form-action 'none'; script-src 'sha256-{digest}'"
  head = markup.tag(
    'head',
    markup.tag('meta', charset='utf-8'),
    markup.tag('meta', http_equiv='Content-Security-Policy', content=policy),
    markup.tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
    markup.tag('meta', name='color-scheme', content='light dark'),
    markup.tag('title', title),
    markup.tag('style', markup.Html(style)),
  )
  made_by = f'{made.isoformat(" ", "minutes")}, by diversedit_jax {diversedit_jax.__version__}'
  body = markup.tag(
    'body',
    markup.tag('header', markup.tag('h1', title), markup.tag('p', _first_line(report), made_by)),
    markup.tag(
      'nav',
      [markup.tag('a', name, href=f'#{_anchor(name)}') for name, _ in drawn],
      aria_label='Sections',
    ),
    _switches(report) if len(report) > 1 else None,
    markup.tag('main', [_section(name, content) for name, content in drawn]),
    markup.tag('script', markup.Html(script)),
    class_='many' if len(report) > _MANY else None,
  )
  return f'<!doctype html>\n{markup.tag("html", head, body, lang="en")}\n'


def _file(name) -> str:
  return (resources.files(__package__) / name).read_text(encoding='utf-8')


def _anchor(name):
  return name.lower().replace(' ', '-')


def _section(name, content):
  anchor = _anchor(name)
  heading = markup.tag('h2', name, id=f'{anchor}-title')
  return markup.tag('section', heading, content, id=anchor, aria_labelledby=f'{anchor}-title')


def _first_line(report):
  if len(report) > 1:
    return f'{len(report)} runs side by side. Made '
  steps = report[0].facts['steps']
  return f'{steps["done"]:,} of {steps["planned"]:,} steps. Made '


def _switches(report):
  """A button for each run, which hides and shows it; without a script they are the legend."""
  buttons = [
    markup.tag(
      'button', tables.swatch_of(run), type='button', aria_pressed='true', data_switch=run.number
    )
    for run in report
  ]
  return markup.tag('div', buttons, class_='runs', role='group', aria_label='Runs shown')
