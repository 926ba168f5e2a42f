"""The page of a report in Chromium, from a disk: what it draws, and the keys that move it.

Left out where Selenium (`pip install -e '.[browser]'`) or Chromium and its driver are missing.
"""

import contextlib
import datetime
import shutil

from helpers import recorded_runs
import pytest

from diversedit_jax.reporting import page, runs

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip('selenium.webdriver')
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
DRIVER = shutil.which('chromedriver')
FLAGS = (
  'headless no-sandbox disable-gpu no-first-run hide-scrollbars disable-background-networking '
  'disable-component-update disable-sync'
)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  folder = tmp_path_factory.mktemp('page')
  found = runs.find(
    [
      str(recorded_runs.write(folder / 'first')),
      str(recorded_runs.write(folder / '<img src=x onerror=alert(1)>', points=5)),
    ]
  )
  report = runs.read_all(found, 12)
  written = folder / 'index.html'
  written.write_text(page.write(report, 'Two <b>runs</b>', datetime.datetime(2026, 12, 1)))
  return written


@contextlib.contextmanager
def opened(file, folder, width=1440, scheme='light', script=True):
  if CHROMIUM is None or DRIVER is None:
    pytest.skip('there is no Chromium with its driver')
  options = webdriver.ChromeOptions()
  options.binary_location = CHROMIUM
  for flag in (*FLAGS.split(), f'user-data-dir={folder}'):
    options.add_argument(f'--{flag}')
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  service = webdriver.chrome.service.Service(DRIVER)
  browser = webdriver.Chrome(options=options, service=service)
  try:
    command = browser.execute_cdp_cmd
    size = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': width < 600}
    command('Emulation.setDeviceMetricsOverride', size)
    media = {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]}
    command('Emulation.setEmulatedMedia', media)
    command('Emulation.setScriptExecutionDisabled', {'value': not script})
    browser.get(file.as_uri())
    yield browser
    assert browser.get_log('browser') == []
  finally:
    browser.quit()


def press(browser, key):
  webdriver.ActionChains(browser).send_keys(getattr(webdriver.Keys, key)).perform()


def focus(browser, selector):
  """Tab until the element has the focus, as someone without a mouse does."""
  browser.execute_script('document.activeElement.blur()')
  script = f'return document.activeElement.matches({selector!r})'
  for _ in range(60):
    press(browser, 'TAB')
    if browser.execute_script(script):
      return
  raise AssertionError(f'{selector} is not reached')


@pytest.mark.parametrize('width', [390, 1440])
def test_it_fits_in_light_and_in_dark(file, tmp_path, width):
  colours = {}
  for scheme in ('light', 'dark'):
    with opened(file, tmp_path / scheme, width, scheme) as browser:
      ask = lambda script, browser=browser: browser.execute_script(f'return {script}')
      assert ask('document.documentElement.scrollWidth') == width
      assert browser.title == 'Two <b>runs</b>' and ask('document.images.length') > 20
      assert ask('[...document.images].every(x => x.complete && x.naturalWidth > 0)')
      assert ask("document.querySelectorAll('[src=x], h1 b').length") == 0
      colours[scheme] = ask('getComputedStyle(document.body).backgroundColor')
      sizes = ask("[...document.querySelectorAll('.up span')].map(x => x.clientWidth)")
      assert max(sizes) <= 40  # Numbers fit beside the axis.
      wide = "[...document.querySelectorAll('.wide')]"
      assert width > 600 or ask(f'{wide}.some(x => x.tabIndex === 0)')
      # What has to be moved, and nothing else, is reached by Tab.
      assert ask(f'{wide}.every(x => (x.scrollWidth > x.clientWidth) === (x.tabIndex === 0))')
  brightness = {
    scheme: sum(map(int, colour[4:-1].split(','))) for scheme, colour in colours.items()
  }
  assert brightness['light'] > 700 > 120 > brightness['dark']


def test_keys_move_what_can_be_moved(file, tmp_path):
  with opened(file, tmp_path / 'profile') as browser:
    ask = lambda script: browser.execute_script(f'return {script}')
    shown = (
      "[...document.querySelectorAll('.samples .frame:not([hidden]) .at')].map(x => x.textContent)"
    )
    assert ask(shown) == ['step 30', 'step 30']
    focus(browser, '.samples input')
    press(browser, 'LEFT')
    assert ask(shown) == ['step 20', 'step 24']  # Each run shows the last that it had by then.
    assert ask("document.querySelector('.samples output').textContent") == '24'
    press(browser, 'HOME')
    assert ask(shown) == ['step 10', 'step 6']

    focus(browser, '.plot')
    readout = "document.activeElement.querySelector('.readout').innerText"
    assert ask(readout).split('\n')[0] in ('step 30', 'block 4') and 'first' in ask(readout)
    press(browser, 'HOME')
    assert ask(readout).split('\n')[0] in ('step 6', 'step 10', 'block 1')
    assert 'onerror' in ask("document.activeElement.getAttribute('aria-valuetext')")
    press(browser, 'ESCAPE')
    assert ask("document.activeElement.querySelector('.readout').hidden")

    focus(browser, '.scale-switch')
    line = "document.activeElement.closest('.chart').querySelector('.line').getAttribute('d')"
    before = ask(line)
    press(browser, 'SPACE')
    assert ask(line) != before
    press(browser, 'SPACE')
    assert ask(line) == before  # The script draws what Python drew.

    focus(browser, '[data-switch="0"]')
    press(browser, 'ENTER')
    hidden = 'getComputedStyle(document.querySelector(\'.reel[data-run="0"]\')).display'
    assert ask(hidden) == 'none'

    press(browser, 'ENTER')
    focus(browser, '.map img')
    press(browser, 'RIGHT')
    words = "document.activeElement.closest('.map').nextSibling.textContent"
    assert ask(words).startswith('blocks 1 and 2: ')


def test_a_pointer_reads_values(file, tmp_path):
  with opened(file, tmp_path / 'profile') as browser:
    plot = browser.find_element('css selector', '.plot')
    webdriver.ActionChains(browser).move_to_element(plot).perform()
    readout = browser.find_element('css selector', '.readout').text
    assert readout.startswith('step 12\n') and 'first (step 10)' in readout


def test_without_a_script_the_numbers_stand(file, tmp_path):
  with opened(file, tmp_path / 'profile', script=False) as browser:
    text = browser.find_element('tag name', 'main').text
    assert '30 of 30' in text and 'few samples' in text
    assert browser.find_element('css selector', '.samples .frame:not([hidden]) img').is_displayed()
    assert not browser.find_element('css selector', '.samples .slider').is_displayed()
