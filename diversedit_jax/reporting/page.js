'use strict';
// What the page adds to figures that stand without it: a readout under the pointer and the arrow
// keys, a logarithmic scale, sliders over steps, and runs that are hidden or brought out.

const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const SIZE = 1000;

function make(name, attributes = {}, text = '') {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

const digits = value => {
  const size = Math.abs(value);
  if (value === Math.round(value) && size < 1e9) return value.toLocaleString('en');
  return size !== 0 && (size < 1e-4 || size >= 1e6) ? value.toExponential(3) : String(+value.toPrecision(4));
};

function nearest(sorted, value) {
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle; else high = middle;
  }
  return value - sorted[low] <= sorted[high] - value ? low : high;
}

function chart(figure) {
  const told = JSON.parse(figure.querySelector('script').textContent);
  const plot = figure.querySelector('.plot'), svg = plot.querySelector('svg');
  const groups = all('g', svg), swatches = told.lines.map(line => swatch(line.number));
  const steps = [...new Set(told.lines.flatMap(line => line.x))].sort((a, b) => a - b);
  const cursor = plot.appendChild(make('div', {class: 'cursor', hidden: ''}));
  const readout = plot.appendChild(make('div', {class: 'readout', hidden: ''}));
  const [first, last] = told.across;
  let at = steps.length - 1;
  plot.tabIndex = 0;
  for (const [key, value] of Object.entries({
    role: 'slider', 'aria-valuemin': 0, 'aria-valuemax': at, 'aria-valuenow': at,
    'aria-label': `${figure.querySelector('h3').textContent}: values by ${told.along}, arrow keys move`,
  })) plot.setAttribute(key, value);

  const shown = i => !(groups[i].dataset.run && groups[i].classList.contains('off'));
  function values(step) {
    return told.lines.flatMap((line, i) => {
      if (!shown(i) || step < line.x[0] || step > line.x[line.x.length - 1]) return [];
      const k = nearest(line.x, step);
      return [{i, name: line.name, x: line.x[k], y: line.y[k]}];
    }).sort((a, b) => b.y - a.y);
  }
  function show() {
    const step = steps[at], found = values(step);
    const left = svg.getBoundingClientRect().left - plot.getBoundingClientRect().left;
    const place = left + svg.getBoundingClientRect().width * (step - first) / (last - first || 1);
    readout.replaceChildren(make('b', {}, `${told.along} ${digits(step)}`));
    for (const one of found) {
      const row = readout.appendChild(make('div'));
      row.append(swatches[one.i].cloneNode(true), make('span', {}, digits(one.y)));
      const off = Math.abs(one.x - step) <= 0.01 * (last - first) ? '' : ` (${told.along} ${digits(one.x)})`;
      if (told.lines.length > 1) row.append(make('span', {class: 'what'}, one.name + off));
    }
    cursor.hidden = readout.hidden = false;
    cursor.style.left = `${place}px`;
    const right = place > plot.clientWidth / 2;
    readout.style.left = right ? 'auto' : `${place + 10}px`;
    readout.style.right = right ? `${plot.clientWidth - place + 10}px` : 'auto';
    plot.setAttribute('aria-valuenow', at);
    plot.setAttribute('aria-valuetext', `${told.along} ${digits(step)}: ` +
      found.map(one => `${one.name} ${digits(one.y)}`).join(', '));
  }
  const hide = () => { cursor.hidden = readout.hidden = true; };
  function point(event) {
    const box = svg.getBoundingClientRect();
    at = nearest(steps, first + (last - first) * (event.clientX - box.left) / box.width);
    show();
  }
  plot.addEventListener('pointermove', point);
  plot.addEventListener('pointerdown', point);
  plot.addEventListener('pointerleave', hide);
  plot.addEventListener('focus', () => { if (plot.matches(':focus-visible')) show(); });
  plot.addEventListener('blur', hide);
  plot.addEventListener('keydown', event => {
    const end = steps.length - 1, far = Math.max(1, Math.round(end / 10));
    const to = {
      ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
      PageDown: at - far, PageUp: at + far, Home: 0, End: end,
    }[event.key];
    if (event.key === 'Escape') hide();
    if (to === undefined) return;
    event.preventDefault();
    at = Math.min(Math.max(to, 0), end);
    show();
  });
  if (told.log) logarithmic(figure, told, groups);
}

function logarithmic(figure, told, groups) {
  const button = make('button', {type: 'button', class: 'scale-switch', 'aria-pressed': 'false'}, 'log');
  button.setAttribute('aria-label', `Logarithmic scale: ${figure.querySelector('h3').textContent}`);
  figure.querySelector('figcaption').append(button);
  const lines = groups.map(group => group.querySelector('.line'));
  const dots = groups.map(group => group.querySelector('.dots'));
  button.addEventListener('click', () => {
    const log = button.getAttribute('aria-pressed') === 'false';
    button.setAttribute('aria-pressed', log);
    const scale = log ? Math.log10 : value => value;
    const [low, high] = (log ? told.log : told.up).map(scale), [first, last] = told.across;
    told.lines.forEach((line, i) => {
      const points = line.x.map((x, k) => [
        Math.round(SIZE * (x - first) / (last - first || 1)),
        Math.round(SIZE * (1 - (scale(line.y[k]) - low) / (high - low))),
      ].join(' '));
      lines[i].setAttribute('d', 'M' + points.join('L'));
      if (dots[i]) dots[i].setAttribute('d', points.map(point => `M${point}h0`).join(''));
    });
    for (const part of all('.up, .grid', figure)) {
      part.classList.toggle('off', part.classList.contains('log') !== log);
    }
  });
}

function swatch(number) {
  const space = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(space, 'svg'), path = document.createElementNS(space, 'path');
  svg.setAttribute('class', 'swatch');
  svg.setAttribute('viewBox', '0 0 20 8');
  path.setAttribute('d', 'M0 4h20');
  path.setAttribute('class', `line c${number % 8} d${Math.floor(number / 8) % 3}`);
  svg.append(path);
  return svg;
}

function film(whole) {
  const slider = whole.querySelector('.slider');
  if (!slider) return;
  const input = slider.querySelector('input'), output = slider.querySelector('output');
  const stops = whole.dataset.stops.split(' ').map(Number);
  slider.hidden = false;
  function show() {
    const stop = stops[input.value];
    output.textContent = digits(stop);
    input.setAttribute('aria-valuetext', `${slider.dataset.along} ${digits(stop)}`);
    for (const reel of all('.reel', whole)) {
      const frames = all('.frame', reel);
      const reached = frames.filter(frame => Number(frame.dataset.at) <= stop);
      const current = reached[reached.length - 1] || frames[0];
      for (const frame of frames) frame.hidden = frame !== current;
    }
  }
  input.addEventListener('input', show);
  show();
}

function map(whole) {
  const depth = Number(whole.dataset.depth), values = whole.dataset.values.split(' ').map(Number);
  const image = whole.querySelector('img'), words = whole.parentElement.querySelector('.mean');
  const mean = words.textContent, cell = whole.appendChild(make('div', {class: 'cell', hidden: ''}));
  let row = 0, column = 0;
  words.setAttribute('aria-live', 'polite');
  image.tabIndex = 0;
  function show() {
    const size = image.clientWidth / depth;
    const value = (values[row * depth + column] / 1000).toFixed(3);
    words.textContent = `blocks ${row + 1} and ${column + 1}: ${value}`;
    Object.assign(cell.style, {
      left: `${image.offsetLeft + column * size}px`, top: `${(depth - 1 - row) * size}px`,
      width: `${size}px`, height: `${size}px`,
    });
    cell.hidden = false;
  }
  const hide = () => { cell.hidden = true; words.textContent = mean; };
  const within = value => Math.min(Math.max(value, 0), depth - 1);
  function point(event) {
    const box = image.getBoundingClientRect();
    column = within(Math.floor(depth * (event.clientX - box.left) / box.width));
    row = within(depth - 1 - Math.floor(depth * (event.clientY - box.top) / box.height));
    show();
  }
  image.addEventListener('pointermove', point);
  image.addEventListener('pointerdown', point);
  image.addEventListener('pointerleave', hide);
  image.addEventListener('blur', hide);
  image.addEventListener('focus', () => { if (image.matches(':focus-visible')) show(); });
  image.addEventListener('keydown', event => {
    const by = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0]}[event.key];
    if (!by) return;
    event.preventDefault();
    row = within(row + by[0]);
    column = within(column + by[1]);
    show();
  });
}

function switches(buttons) {
  const of = number => all(`[data-run="${number}"]`);
  for (const button of buttons) {
    const number = button.dataset.switch;
    button.addEventListener('click', () => {
      const shown = button.getAttribute('aria-pressed') === 'false';
      button.setAttribute('aria-pressed', shown);
      for (const part of of(number)) part.classList.toggle('off', !shown);
    });
    const bring = on => all('.chart g[data-run]').forEach(
      group => group.classList.toggle('dim', on && group.dataset.run !== number));
    button.addEventListener('pointerenter', () => bring(true));
    button.addEventListener('pointerleave', () => bring(false));
    button.addEventListener('focus', () => { if (button.matches(':focus-visible')) bring(true); });
    button.addEventListener('blur', () => bring(false));
  }
}

// A table that is wider than its frame is moved by the arrow keys, so it has to be reached.
function reachable() {
  for (const frame of all('.wide')) {
    if (frame.scrollWidth > frame.clientWidth) frame.tabIndex = 0; else frame.removeAttribute('tabindex');
  }
}

reachable();
window.addEventListener('resize', reachable);
document.addEventListener('toggle', reachable, true);
all('.chart').forEach(chart);
all('.film').forEach(film);
all('.map').forEach(map);
switches(all('.runs button'));
