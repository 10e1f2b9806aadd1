'use strict';
// The chosen run: its configuration, status and scored steps; and the training curves of several runs.
const curveRuns = new Set();
const dashes = ['solid', 'dash', 'dot', 'dashdot', 'longdash', 'longdashdot'];

function describeRun() {
  const card = byId('run-card');
  if (state.run === null) {
    card.replaceChildren(make('p', { class: 'soft' }, 'No run.'));
    return;
  }
  const run = data.runs[state.run];
  const facts = [['method', methodTitle(run.method)], ['status', run.status || 'unknown'], ['seed', known(run.seed) ? String(run.seed) : 'unknown'],
    ...settingsOf(run).filter(([key]) => key !== 'seed' && key !== 'method.name')];
  if (state.point !== null) facts.push(['chosen step', String(data.points[state.point].step)]);
  const children = [make('h3', {}, run.label), make('dl', {}, ...facts.flatMap(([key, value]) => [make('dt', {}, key), make('dd', {}, value)]))];
  const own = data.points.map((point, n) => n).filter(n => data.points[n].run === state.run)
    .sort((a, b) => data.points[a].step - data.points[b].step);
  if (own.length && byId('frontier')) children.push(stepsTable(own));
  if (run.config) {
    children.push(make('details', {}, make('summary', {}, 'whole configuration'), make('pre', {}, JSON.stringify(run.config, null, 2))));
  }
  card.replaceChildren(...children);
}

function stepsTable(own) {
  const [x, y] = [views.get(shown.x), views.get(shown.y)];
  const columns = [['step', n => data.points[n].step], ['front', n => drawn.front.includes(n) ? 'yes' : ''],
    [x.label, n => drawn.xs[n]], [y.label, n => drawn.ys[n]]];
  return make('details', own.length > 12 ? {} : { open: '' }, make('summary', {}, `${own.length} scored steps`),
    make('table', {}, make('thead', {}, make('tr', {}, ...columns.map(([name]) => make('th', { scope: 'col', class: 'number' }, name)))),
      make('tbody', {}, ...own.map(n => make('tr', { class: n === state.point ? 'selected' : '' }, ...columns.map(([, value]) => {
        const told = value(n);
        return make('td', { class: 'number' }, typeof told === 'string' ? told : number(told, 5));
      }))))));
}

function fillRuns() {
  const select = byId('run-choice');
  data.runs.forEach((run, k) => {
    if (byRun[k].length || data.curves[run.key]) select.append(make('option', { value: k }, `${run.label} (${methodTitle(run.method)})`));
  });
  select.addEventListener('change', () => chooseRun(Number(select.value), null, false));
  chosenListeners.push(() => { select.value = String(state.run); });
}

function dashOf(k) {
  const own = data.runs.map((run, n) => n).filter(n => data.runs[n].method === data.runs[k].method && curveRuns.has(n));
  return dashes[Math.max(0, own.indexOf(k)) % dashes.length];
}

function drawChips() {
  const focused = document.activeElement && document.activeElement.dataset.run;
  const own = data.runs.map((run, k) => k).filter(k => data.curves[data.runs[k].key]);
  byId('curve-runs').replaceChildren(...own.map(k => make('button', {
    type: 'button', 'aria-pressed': String(curveRuns.has(k)), 'data-run': k,
    onclick: () => { if (!curveRuns.delete(k)) curveRuns.add(k); drawChips(); drawCurves(); },
  }, swatch(data.runs[k].method), data.runs[k].label)));
  if (focused) [...byId('curve-runs').children].filter(b => b.dataset.run === focused).forEach(b => b.focus());
}

function panelTraces(prefix) {
  const traces = [];
  for (const k of curveRuns) {
    const run = data.runs[k], curves = data.curves[run.key];
    const names = Object.keys(curves.series).filter(name => name.startsWith(prefix));
    names.forEach((name, n) => traces.push({
      type: 'scatter', mode: 'lines', x: curves.steps, y: curves.series[name],
      name: plotText(run.label + (names.length > 1 ? ' ' + name.slice(prefix.length) : '')),
      line: { color: methodColour(run.method), dash: dashOf(k), width: n ? 1.1 : 2.2 },
      hovertemplate: `${plotText(run.label)}, ${plotText(name)}<br>step %{x}: %{y:.4g}<extra></extra>`,
    }));
    const probes = Object.entries(curves.probes);
    if (prefix === 'learning_rate' && probes.length) traces.push(...probeTraces(run, curves, probes));
  }
  return traces;
}

// A probe is taken before the step's rate is set, so it lies at the rate that the step then used.
function probeTraces(run, curves, probes) {
  return [[true, 'circle', 'accepted'], [false, 'x', 'refused']].map(([accepted, symbol, title]) => {
    const own = probes.filter(([, outcome]) => (outcome === 'accepted') === accepted)
      .map(([step, outcome]) => [Number(step), curves.series.learning_rate[curves.steps.indexOf(Number(step))], outcome])
      .filter(([, rate]) => known(rate));
    return {
      type: 'scatter', mode: 'markers', x: own.map(p => p[0]), y: own.map(p => p[1]), text: own.map(p => plotText(p[2])),
      name: `probe ${title}`, marker: { symbol, size: 8, color: methodColour(run.method), line: { color: colour('ink'), width: 1 } },
      hovertemplate: 'AutoLR probe at step %{x}: %{text}<extra></extra>',
    };
  }).filter(trace => trace.x.length);
}

// The one positive number that all lines have, or null: around it alone an axis would make up a scale.
function constant(traces) {
  const values = new Set(traces.flatMap(trace => trace.y.filter(known)));
  const [value] = values;
  return values.size === 1 && value > 0 ? value : null;
}

function drawCurves() {
  const log = pressed(byId('curves-log'));
  const missing = [];
  data.panels.forEach(([name, title, prefix]) => {
    const traces = panelTraces(prefix);
    let figure = byId('curve-' + name);
    if (!traces.length) {
      missing.push(title.toLowerCase());
      if (figure) { Plotly.purge(figure); figure.parentElement.remove(); }
      return;
    }
    if (!figure) {
      figure = make('div', { class: 'chart', id: 'curve-' + name });
      const following = data.panels.slice(data.panels.findIndex(panel => panel[0] === name) + 1)
        .map(panel => byId('curve-' + panel[0])).find(known);
      byId('curve-panels').insertBefore(make('figure', {}, make('h3', {}, title), figure), following ? following.parentElement : null);
    }
    const signed = name === 'cosine', flat = log || signed ? null : constant(traces);
    Plotly.react(figure, traces, layout({
      showlegend: traces.length > 1 && traces.length <= 8, legend: { orientation: 'h', y: -0.28, font: { size: 11 } },
      xaxis: { title: { text: 'step', standoff: 4 } },
      yaxis: { type: log && !signed ? 'log' : 'linear', exponentformat: 'power', ...(signed ? { range: [-1.05, 1.05] } : flat ? { range: [0, 1.6 * flat] } : {}) },
      margin: { l: 52, r: 10, t: 6, b: 36 }, hovermode: 'closest',
    }), { ...plotConfig, displayModeBar: false });
  });
  const thinned = [...curveRuns].some(k => data.curves[data.runs[k].key].every > 1);
  byId('curves-note').textContent = (curveRuns.size ? '' : 'Choose a run. ') +
    (curveRuns.size && missing.length ? `Not logged by these runs: ${missing.join(', ')}. ` : '') +
    (thinned ? 'Of long runs only every few steps are drawn.' : '');
}

fillRuns();
chosenListeners.unshift(describeRun);
if (byId('curves')) {
  const own = data.runs.map((run, k) => k).filter(k => data.curves[data.runs[k].key]);
  const seen = new Set();
  own.forEach(k => { if (own.length <= 4 || !seen.has(data.runs[k].method)) curveRuns.add(k); seen.add(data.runs[k].method); });
  toggle('curves-log', drawCurves);
  drawChips();
  drawCurves();
  redraws.push(() => { drawChips(); drawCurves(); });
  chosenListeners.push(() => {
    if (state.run === null || !data.curves[data.runs[state.run].key] || curveRuns.has(state.run)) return;
    curveRuns.add(state.run);
    drawChips();
    drawCurves();
  });
}
