'use strict';
// Data, theme, small builders. Texts reach the page as text nodes alone; what goes into a plot's labels is escaped.
const data = JSON.parse(document.getElementById('report-data').textContent);
const byId = id => document.getElementById(id);
const known = value => value !== null && value !== undefined;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'class') node.className = value;
    else if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (known(value)) node.setAttribute(name, value);
  }
  node.append(...children.filter(known));
  return node;
}

function plotText(text) {
  return String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
}

function number(value, digits = 4) {
  if (!known(value)) return '';
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(2);
  return String(Number(value.toPrecision(digits)));
}

const colour = name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
const isDark = () => document.documentElement.dataset.theme === 'dark';
// Okabe and Ito's colours, and the same hues lighter, for dark paper.
const onDark = {
  '#0072B2': '#3ea6f0', '#D55E00': '#ff8033', '#009E73': '#21cf9f', '#CC79A7': '#f0a3cd', '#56B4E9': '#a5dcff',
  '#E69F00': '#ffc24d', '#777777': '#b4b4b4',
};
const methods = new Map(data.methods.map(method => [method.name, method]));
function methodColour(name) {
  const plain = methods.has(name) ? methods.get(name).colour : '#777777';
  return isDark() ? onDark[plain] : plain;
}
const methodTitle = name => methods.has(name) ? methods.get(name).title : name;
const methodSymbol = name => methods.has(name) ? methods.get(name).symbol : 'circle';

const shapes = {
  circle: 'M7 1a6 6 0 1 0 .01 0z', square: 'M2 2h10v10H2z', 'triangle-up': 'M7 1l6 11H1z', diamond: 'M7 0l6 7-6 7-6-7z',
  'triangle-down': 'M7 13L1 2h12z', cross: 'M5 1h4v4h4v4H9v4H5V9H1V5h4z',
  x: 'M3.5 1L7 4.500 10.500 1 13 3.500 9.500 7 13 10.500 10.500 13 7 9.500 3.500 13 1 10.500 4.500 7 1 3.500z',
};
function swatch(name) {
  const space = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(space, 'svg');
  svg.setAttribute('viewBox', '0 0 14 14');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(space, 'path');
  path.setAttribute('d', shapes[methodSymbol(name)]);
  path.setAttribute('fill', methodColour(name));
  svg.append(path);
  return svg;
}

function layout(more = {}) {
  const axis = {
    gridcolor: colour('grid'), zerolinecolor: colour('line'), linecolor: colour('soft'), tickcolor: colour('soft'),
    showline: true, ticks: 'outside', ticklen: 4, automargin: true, zeroline: false,
  };
  const { xaxis, yaxis, ...rest } = more;
  return {
    paper_bgcolor: colour('paper'), plot_bgcolor: colour('paper'), margin: { l: 58, r: 14, t: 12, b: 48 },
    font: { family: 'system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif', size: 13, color: colour('ink') },
    hoverlabel: {
      bgcolor: colour('panel'), bordercolor: colour('line'), font: { color: colour('ink'), size: 12.5 }, align: 'left',
    },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}
const plotConfig = {
  displaylogo: false, responsive: true,
  modeBarButtonsToRemove: ['lasso2d', 'select2d', 'autoScale2d'], toImageButtonOptions: { format: 'svg' },
};

// Parts of the page that are drawn anew when the theme or the chosen run changes.
const redraws = [];
const state = { run: null, point: null };
const chosenListeners = [];

function pressed(button, value) {
  if (value !== undefined) button.setAttribute('aria-pressed', String(value));
  return button.getAttribute('aria-pressed') === 'true';
}
function toggle(id, then) {
  const button = byId(id);
  button.addEventListener('click', () => { pressed(button, !pressed(button)); then(pressed(button)); });
  return button;
}

function showTheme() {
  byId('theme').textContent = isDark() ? 'Light' : 'Dark';
  byId('theme').setAttribute('aria-label', isDark() ? 'Use light colours' : 'Use dark colours');
}
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  showTheme();
  redraws.forEach(draw => draw());
}
byId('theme').addEventListener('click', () => setTheme(isDark() ? 'light' : 'dark'));
asked.addEventListener('change', () => setTheme(asked.matches ? 'dark' : 'light'));
showTheme();

// A run's place in data.runs, the point it was chosen by (or null), and whether to go to its section.
function chooseRun(run, point, go) {
  state.run = run;
  state.point = known(point) ? point : null;
  chosenListeners.forEach(tell => tell());
  if (go) {
    byId('run').scrollIntoView();
    byId('run').focus({ preventScroll: true });
  }
}

function settingsOf(run) {
  return Object.entries(run.settings)
    .filter(([, value]) => known(value) && value !== '')
    .map(([key, value]) => [key, typeof value === 'number' ? number(value) : String(value)]);
}
