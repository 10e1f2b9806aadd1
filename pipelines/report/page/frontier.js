'use strict';
// The frontier: axes, what is drawn, the front of what is drawn, hover, click and keys.
const views = new Map(data.views.map(view => [view.key, view]));
const valuesOf = view => view.values || data.metrics.map(row => row[view.column]);
const shown = {
  x: (data.pair || [])[0] || (data.views[0] || {}).key, y: (data.pair || [])[1] || (data.views[0] || {}).key,
  hidden: new Set(), lines: true, front: true, stars: true, seeds: true, bands: true, xlog: false, ylog: false,
};
let drawn = { xs: [], ys: [], front: [], traces: [], order: [] };
const many = data.points.length > 700;

function runOf(n) { return data.runs[data.points[n].run]; }
function isShown(n) { return !shown.hidden.has(runOf(n).method); }

// Non-dominated among the drawn candidates, both axes higher is better; of raw columns there is no front.
function frontOf(xs, ys) {
  const [x, y] = [views.get(shown.x), views.get(shown.y)];
  if (x.reference === null || y.reference === null || x.key === y.key) return [];
  const places = data.points.map((point, n) => n).filter(n =>
    data.points[n].role === 'checkpoint' && !data.points[n].excluded && isShown(n) && known(xs[n]) && known(ys[n]));
  places.sort((a, b) => xs[b] - xs[a] || ys[b] - ys[a]);
  const front = [];
  let best = -Infinity, at = null;
  for (const n of places) {
    if (ys[n] > best) { front.push(n); best = ys[n]; at = xs[n]; } else if (ys[n] === best && xs[n] === at) front.push(n);
  }
  return front.reverse();
}

function staircase(front, xs, ys) {
  const [left, bottom] = [views.get(shown.x).reference, views.get(shown.y).reference];
  const inside = front.filter(n => xs[n] > left && ys[n] > bottom);
  if (!inside.length) return { x: [], y: [] };
  const out = { x: [left], y: [] };
  for (const n of inside) { out.y.push(ys[n], ys[n]); out.x.push(xs[n], xs[n]); }
  out.y.push(bottom);
  return out;
}

function hoverText(n, xs, ys) {
  const point = data.points[n], run = runOf(n);
  const lines = [`<b>${plotText(run.label)}</b>, step ${point.step}`, plotText(methodTitle(run.method))];
  if (point.role !== 'checkpoint') lines[1] = { target: 'before unlearning', reference: 'retrained', rerun: 're-run' }[point.role];
  lines.push(`x ${number(xs[n])}&nbsp;&nbsp; y ${number(ys[n])}`);
  settingsOf(run).slice(0, 8).forEach(([key, value]) => lines.push(`${plotText(key)}: ${plotText(value)}`));
  const metrics = data.columns.map((name, k) => [name, data.metrics[n][k]]).filter(([, value]) => known(value));
  if (metrics.length <= 12) metrics.forEach(([name, value]) => lines.push(`${plotText(name)}: ${number(value)}`));
  else lines.push(`<i>all ${metrics.length} metrics beside the plot</i>`);
  return lines.join('<br>');
}

function progress(n, last) {
  const steps = last.get(data.points[n].run);
  return steps > 0 ? data.points[n].step / steps : 1;
}

function trajectories(xs, ys) {
  const lines = new Map();
  data.runs.forEach((run, k) => {
    const own = byRun[k].filter(n => data.points[n].role === 'checkpoint' && known(xs[n]) && known(ys[n]));
    if (own.length < 2 || shown.hidden.has(run.method)) return;
    if (!lines.has(run.method)) lines.set(run.method, { x: [], y: [] });
    own.forEach(n => { lines.get(run.method).x.push(xs[n]); lines.get(run.method).y.push(ys[n]); });
    lines.get(run.method).x.push(null);
    lines.get(run.method).y.push(null);
  });
  return [...lines].map(([name, line]) => ({
    type: 'scatter', mode: 'lines', ...line, hoverinfo: 'skip', showlegend: false, legendgroup: name,
    line: { color: methodColour(name), width: 1.2 }, opacity: many ? 0.25 : 0.5,
  }));
}
const byRun = data.runs.map(() => []);
data.points.forEach((point, n) => byRun[point.run].push(n));
byRun.forEach(own => own.sort((a, b) => data.points[a].step - data.points[b].step));

function pointTraces(xs, ys, front) {
  const onFront = new Set(front);
  const last = new Map();
  data.points.forEach(point => last.set(point.run, Math.max(last.get(point.run) || 0, point.step)));
  return data.methods.filter(method => data.points.some((point, n) =>
    point.role === 'checkpoint' && runOf(n).method === method.name)).map(method => {
    const own = data.points.map((point, n) => n).filter(n =>
      data.points[n].role === 'checkpoint' && runOf(n).method === method.name && known(xs[n]) && known(ys[n]));
    const small = many ? 4 : 6;
    return {
      type: 'scatter', mode: 'markers', name: plotText(method.title), legendgroup: method.name, method: method.name,
      visible: shown.hidden.has(method.name) ? 'legendonly' : true,
      x: own.map(n => xs[n]), y: own.map(n => ys[n]), customdata: own,
      text: own.map(n => hoverText(n, xs, ys)), hovertemplate: '%{text}<extra></extra>',
      marker: {
        symbol: method.symbol, color: methodColour(method.name),
        size: own.map(n => small + (many ? 4 : 7) * progress(n, last) + (onFront.has(n) ? 2 : 0)),
        opacity: own.map(n => onFront.has(n) ? 1 : data.points[n].excluded ? 0.2 : (many ? 0.3 : 0.35) + 0.5 * progress(n, last)),
        line: { color: colour('ink'), width: own.map(n => n === state.point ? 3 : onFront.has(n) ? 1.6 : 0) },
      },
    };
  });
}

function starTraces(xs, ys) {
  const [low, high] = [Math.min(...xs.filter(known)), Math.max(...xs.filter(known))];
  const [low_y, high_y] = [Math.min(...ys.filter(known)), Math.max(...ys.filter(known))], top = high_y - 0.01 * (high_y - low_y);
  // Names point inwards where a star stands near the edge.
  const side = x => x > high - 0.1 * (high - low) ? 'left' : x < low + 0.1 * (high - low) ? 'right' : 'center';
  return [['target', 'before unlearning', colour('ink'), 21], ['reference', 'retrained', colour('gold'), 16]].map(
    ([role, name, fill, size]) => {
      const own = data.points.map((point, n) => n).filter(n => data.points[n].role === role && known(xs[n]) && known(ys[n]));
      return {
        type: 'scatter', mode: 'markers+text', name, x: own.map(n => xs[n]), y: own.map(n => ys[n]), customdata: own,
        text: own.map(() => name), textposition: own.map(n => (role === 'target' || ys[n] > top ? 'top ' : 'bottom ') + side(xs[n])), cliponaxis: false,
        textfont: { size: 12, color: colour('ink') }, hovertext: own.map(n => hoverText(n, xs, ys)),
        hovertemplate: '%{hovertext}<extra></extra>',
        marker: { symbol: 'star', size, color: fill, line: { color: role === 'target' ? colour('paper') : colour('ink'), width: 1.2 } },
      };
    }).filter(trace => trace.x.length);
}

function mean(values) { return values.reduce((sum, value) => sum + value, 0) / values.length; }
function deviation(values) {
  const middle = mean(values);
  return values.length < 2 ? 0 : Math.sqrt(values.reduce((sum, v) => sum + (v - middle) ** 2, 0) / (values.length - 1));
}

// Runs that differ by their seed alone, at one step: mean and standard deviation in both directions. A front member's
// re-runs stand for themselves: the member was chosen for being good, so it is no part of their mean.
function seedTraces(xs, ys) {
  const groups = new Map();
  data.points.forEach((point, n) => {
    const run = runOf(n);
    if (run.family === null || !isShown(n) || !known(xs[n]) || !known(ys[n])) return;
    if (point.role !== 'rerun' && point.role !== 'checkpoint') return;
    const key = `${run.family}|${point.step}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(n);
  });
  const out = { x: [], y: [], ex: [], ey: [], text: [], point: [] }, tie = { x: [], y: [] };
  for (const all of groups.values()) {
    const again = all.filter(n => data.points[n].role === 'rerun');
    const own = again.length ? again : all;
    if (!again.length && new Set(own.map(n => runOf(n).seed)).size < 2) continue;
    const [mx, my] = [mean(own.map(n => xs[n])), mean(own.map(n => ys[n]))];
    out.x.push(mx); out.y.push(my); out.point.push(own[0]);
    out.ex.push(deviation(own.map(n => xs[n]))); out.ey.push(deviation(own.map(n => ys[n])));
    out.text.push(`${own.length} ${again.length ? 're-run' : 'seed'}${own.length > 1 ? 's: mean, standard deviation' : ''}<br>` +
      `x ${number(mx)}&nbsp;&nbsp; y ${number(my)}`);
    if (again.length) {
      const parent = all.find(n => data.points[n].role === 'checkpoint');
      if (known(parent)) { tie.x.push(xs[parent], mx, null); tie.y.push(ys[parent], my, null); }
    }
  }
  if (!out.x.length) return [];
  const bar = array => ({ type: 'data', array, color: colour('ink'), thickness: 1.2, width: 4, visible: true });
  return [
    { type: 'scatter', mode: 'lines', ...tie, hoverinfo: 'skip', showlegend: false, line: { color: colour('soft'), width: 1, dash: 'dot' } },
    {
      type: 'scatter', mode: 'markers', name: 'seeds: mean, deviation', x: out.x, y: out.y, customdata: out.point,
      text: out.text, hovertemplate: '%{text}<extra></extra>', error_x: bar(out.ex), error_y: bar(out.ey),
      marker: { symbol: 'x-thin', size: 8, line: { color: colour('ink'), width: 2 } },
    },
  ];
}

function bandTraces() {
  return data.bands.filter(band => new Set([...band.axes, shown.x, shown.y]).size === 2 && shown.x !== shown.y).flatMap((band, k) => {
    const turn = band.axes[0] === shown.x ? 0 : 1;
    const stairs = percent => {
      const corners = (band.surfaces[percent] || []).map(corner => [corner[turn], corner[1 - turn]]).sort((a, b) => a[0] - b[0]);
      if (!corners.length) return { x: [0], y: [0] };
      const out = { x: [0], y: [corners[0][1]] };
      corners.forEach(([x, y], n) => { out.x.push(x, x); out.y.push(y, n + 1 < corners.length ? corners[n + 1][1] : 0); });
      return out;
    };
    const hue = isDark() ? '180,190,205' : '60,75,95', dash = ['solid', 'dash', 'dot', 'dashdot'][k % 4];
    const common = { type: 'scatter', mode: 'lines', hoverinfo: 'skip', legendgroup: `band${k}` };
    return [
      { ...common, ...stairs('75'), line: { width: 0 }, showlegend: false },
      { ...common, ...stairs('25'), line: { width: 0 }, fill: 'tonexty', fillcolor: `rgba(${hue},0.22)`, showlegend: false },
      { ...common, ...stairs('50'), line: { width: 1.4, color: `rgba(${hue},0.9)`, dash }, name: `attained by half (band: quarter to three quarters): ${plotText(band.label)}` },
    ];
  });
}

function axisTitle(view) { return plotText(view.label) + (view.kind === 'raw' ? '' : '  \u2192'); }

function drawFrontier() {
  const [x, y] = [views.get(shown.x), views.get(shown.y)];
  const [xs, ys] = [valuesOf(x), valuesOf(y)];
  const front = frontOf(xs, ys);
  const traces = [];
  if (shown.bands) traces.push(...bandTraces());
  if (shown.front && front.length) {
    traces.push({
      type: 'scatter', mode: 'lines', name: 'front', ...staircase(front, xs, ys), hoverinfo: 'skip',
      line: { color: colour('ink'), width: 1.6 }, fill: 'tozeroy', fillcolor: isDark() ? 'rgba(255,255,255,0.04)' : 'rgba(0,0,0,0.035)',
    });
  }
  if (shown.lines) traces.push(...trajectories(xs, ys));
  traces.push(...pointTraces(xs, ys, front));
  if (shown.seeds) traces.push(...seedTraces(xs, ys));
  if (shown.stars) traces.push(...starTraces(xs, ys));
  drawn = { xs, ys, front, traces, order: [] };
  drawn.order = data.points.map((point, n) => n)
    .filter(n => isShown(n) && data.points[n].role === 'checkpoint' && known(xs[n]) && known(ys[n]))
    .sort((a, b) => xs[a] - xs[b] || ys[a] - ys[b]);
  const plot = byId('frontier-plot');
  const [rx, ry] = [range(xs, x, shown.xlog), range(ys, y, shown.ylog)];
  const box = layout({
    hovermode: 'closest', legend: { orientation: 'h', y: -0.13, yanchor: 'top', x: 0, font: { size: 12.5 } },
    xaxis: { title: { text: axisTitle(x) }, type: shown.xlog ? 'log' : 'linear', ...rx },
    yaxis: { title: { text: axisTitle(y) }, type: shown.ylog ? 'log' : 'linear', ...ry },
    uirevision: [shown.x, shown.y, shown.xlog, shown.ylog].join(), dragmode: 'zoom', margin: { l: 64, r: 16, t: 14, b: 54 },
  });
  Plotly.react(plot, traces, box, plotConfig);
  noteFrontier(x, y, front);
}

// Around what is drawn, not around the whole staircase: its ends lie at the reference point.
function range(values, view, log) {
  const own = values.filter((value, n) => known(value) && (isShown(n) || data.points[n].role !== 'checkpoint'));
  if (log || !own.length) return {};
  let [low, high] = [Math.min(...own), Math.max(...own)];
  const span = Math.max(high - low, 0.02 * (Math.abs(high) || 1));
  if (view.reference !== null && low - 0.35 * span <= view.reference && view.reference < low) low = view.reference;
  return { range: [low - 0.06 * span, high + 0.08 * span] };
}

function noteFrontier(x, y, front) {
  const areas = data.areas[`${x.key}|${y.key}`];
  const parts = [];
  if (x.reference === null || y.reference === null) parts.push('Columns as measured have no front: higher is not always better.');
  else if (x.key === y.key) parts.push('Both axes are the same.');
  else {
    parts.push(`Up and right is better. ${front.length} of ${drawn.order.length} checkpoints are non-dominated (outlined); larger points are later steps.`);
    if (areas && !shown.hidden.size) parts.push(`Hypervolume ${number(areas[''])} beyond (${number(x.reference)}, ${number(y.reference)}).`);
    else if (areas) parts.push('Hypervolume alone: ' + data.methods.filter(m => !shown.hidden.has(m.name) && known(areas[m.name])).map(m => `${m.title} ${number(areas[m.name])}`).join(', ') + '.');
  }
  const lacking = data.points.filter((point, n) => point.role === 'checkpoint' && !(known(drawn.xs[n]) && known(drawn.ys[n]))).length;
  if (lacking) parts.push(`${lacking} checkpoints have no value on these axes.`);
  byId('frontier-note').textContent = parts.join(' ');
}

function showCard(n) {
  const card = byId('point-card');
  if (!known(n)) {
    card.replaceChildren(make('h3', {}, 'Point'), make('p', { class: 'soft' }, 'Point at the plot, or focus it and use the arrow keys: the configuration and every metric appear here. A click or Enter opens the run.'));
    return;
  }
  const point = data.points[n], run = runOf(n);
  const pairs = list => make('dl', {}, ...list.flatMap(([key, value]) => [make('dt', {}, key), make('dd', {}, value)]));
  const role = { checkpoint: methodTitle(run.method), target: 'before unlearning', reference: 'retrained', rerun: `re-run, ${methodTitle(run.method)}` }[point.role];
  const what = [['step', String(point.step)], ['seed', known(run.seed) ? String(run.seed) : 'unknown']];
  if (drawn.front.includes(n)) what.push(['front', 'non-dominated']);
  if (point.excluded) what.push(['not on the front', point.excluded]);
  const metrics = data.columns.map((name, k) => [name, data.metrics[n][k]]).filter(([, value]) => known(value));
  card.replaceChildren(make('h3', {}, run.label), make('p', { class: 'soft' }, role), pairs(what.concat(settingsOf(run))),
    make('h3', {}, 'metrics'), pairs(metrics.map(([name, value]) => [name, number(value, 5)])));
}

function traceOf(n) {
  const curve = drawn.traces.findIndex(trace => trace.customdata && trace.customdata.includes(n));
  return curve < 0 ? null : { curveNumber: curve, pointNumber: drawn.traces[curve].customdata.indexOf(n) };
}

function fillAxes() {
  const kinds = [['objective', 'objectives of the search'], ['forgetting', 'forgetting, higher is better'], ['utility', 'utility, higher is better'], ['raw', 'columns as measured']];
  for (const [id, side] of [['x-axis', 'x'], ['y-axis', 'y']]) {
    const select = byId(id);
    kinds.forEach(([kind, title]) => {
      const own = data.views.filter(view => view.kind === kind);
      if (own.length) select.append(make('optgroup', { label: title }, ...own.map(view => make('option', { value: view.key }, view.label))));
    });
    select.value = shown[side];
    const log = toggle(`${side}-log`, on => { shown[`${side}log`] = on; drawFrontier(); });
    const fit = () => {
      log.disabled = !views.get(shown[side]).log;
      log.title = log.disabled ? 'for columns as measured with numbers above 0 and over a decade apart' : '';
      if (log.disabled) { shown[`${side}log`] = false; pressed(log, false); }
    };
    select.addEventListener('change', () => { shown[side] = select.value; fit(); drawFrontier(); redrawTable(); });
    fit();
  }
}

function toggleMethod(name) {
  if (!shown.hidden.delete(name)) shown.hidden.add(name);
  drawMethods();
  drawFrontier();
  redrawTable();
}
function drawMethods() {
  const box = byId('methods'), focused = document.activeElement && document.activeElement.dataset.method;
  const present = new Set(data.points.filter(point => point.role === 'checkpoint').map(point => data.runs[point.run].method));
  box.replaceChildren(...data.methods.filter(method => present.has(method.name)).map(method => make('button', {
    type: 'button', 'aria-pressed': String(!shown.hidden.has(method.name)), 'data-method': method.name, onclick: () => toggleMethod(method.name),
  }, swatch(method.name), method.title)));
  if (focused) [...box.children].filter(button => button.dataset.method === focused).forEach(button => button.focus());
}

if (byId('frontier')) {
  fillAxes();
  drawMethods();
  for (const part of ['lines', 'front', 'stars', 'seeds', 'bands']) toggle(`show-${part}`, on => { shown[part] = on; drawFrontier(); });
  byId('show-bands').hidden = !data.bands.length;
  drawFrontier();
  showCard(null);
  const plot = byId('frontier-plot'), box = byId('frontier-box');
  plot.on('plotly_hover', event => { if (known(event.points[0].customdata)) showCard(event.points[0].customdata); });
  plot.on('plotly_unhover', () => showCard(state.point));
  plot.on('plotly_click', event => {
    const n = event.points[0].customdata;
    if (known(n)) chooseRun(data.points[n].run, n, true);
  });
  plot.on('plotly_legendclick', event => {
    const name = event.data[event.curveNumber].method;
    if (!name) return true;
    toggleMethod(name);
    return false;
  });
  plot.on('plotly_legenddoubleclick', () => false);
  let place = null;
  box.addEventListener('keydown', event => {
    if (event.target !== box || !drawn.order.length) return;
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (move) {
      const at = drawn.order.indexOf(place);
      place = drawn.order[at < 0 ? (move > 0 ? 0 : drawn.order.length - 1) : (at + move + drawn.order.length) % drawn.order.length];
      showCard(place);
      const found = traceOf(place);
      if (found) Plotly.Fx.hover(plot, [found]);
    } else if (event.key === 'Enter' && known(place)) chooseRun(data.points[place].run, place, true);
    else return;
    event.preventDefault();
  });
  redraws.push(() => { drawMethods(); drawFrontier(); });
  chosenListeners.push(() => { drawFrontier(); showCard(state.point); });
}
