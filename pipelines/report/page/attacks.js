'use strict';
// What attacks brought back: a line a model from before to after, the band is what the retrained model gains.
let attackAt = 0;
const everyAttack = data.attacks.flatMap((one, k) => [...new Set(one.rows.map(row => row.attack))].map(attack => [k, attack]));

function drawAttack() {
  const [k, attack] = everyAttack[attackAt], one = data.attacks[k];
  const rows = one.rows.filter(row => row.attack === attack).reverse();
  const measured = rows.filter(row => known(row.before) && known(row.after));
  const names = rows.map(row => plotText(row.model)), hue = isDark() ? onDark['#0072B2'] : '#0072B2';
  const line = { x: [], y: [] };
  measured.forEach(row => { line.x.push(row.before, row.after, null); line.y.push(plotText(row.model), plotText(row.model), null); });
  const point = (name, key, symbol, fill) => ({
    type: 'scatter', mode: 'markers', name, x: measured.map(row => row[key]), y: measured.map(row => plotText(row.model)),
    marker: { symbol, size: 11, color: fill, line: { color: hue, width: 2 } },
    text: measured.map(row => `ratio ${known(row.ratio) ? number(row.ratio, 3) : 'none'}`), hovertemplate: `%{y}<br>${name} %{x:.4g}<br>%{text}<extra></extra>`,
  });
  const traces = [{ type: 'scatter', mode: 'lines', ...line, hoverinfo: 'skip', showlegend: false, line: { color: hue, width: 2 } },
    point('before', 'before', 'circle', colour('paper')), point('after', 'after', 'circle', hue)];
  const shapesDrawn = [], first = measured[0];
  if (first && known(first.reference_before) && known(first.reference_after)) {
    const [low, high] = [first.reference_before, first.reference_after];
    shapesDrawn.push({ type: 'rect', yref: 'paper', y0: 0, y1: 1, x0: Math.min(low, high), x1: Math.max(low, high), fillcolor: colour('gold'), opacity: 0.3, line: { width: 0 }, layer: 'below' });
    shapesDrawn.push({ type: 'line', yref: 'paper', y0: 0, y1: 1, x0: high, x1: high, line: { color: colour('gold'), width: 2 }, layer: 'below' });
  }
  if (known(one.known) && first && first.kind !== 'prompt') shapesDrawn.push({ type: 'line', yref: 'paper', y0: 0, y1: 1, x0: one.known, x1: one.known, line: { color: colour('ink'), width: 1.5, dash: 'dot' } });
  byId('attack-plot').style.height = `${150 + 30 * rows.length}px`;
  Plotly.react(byId('attack-plot'), traces, layout({
    shapes: shapesDrawn, legend: { orientation: 'h', y: 1.02, yanchor: 'bottom' }, margin: { l: 60, r: 16, t: 34, b: 46 }, hovermode: 'closest',
    xaxis: { title: { text: plotText(first ? first.metric : one.metric) + '  (knows more \u2192)' }, rangemode: 'tozero' },
    yaxis: { categoryorder: 'array', categoryarray: names, showline: false },
  }), { ...plotConfig, displayModeBar: false });
  Plotly.Plots.resize(byId('attack-plot'));
  byId('attack-note').textContent = `${attack}: ${one.what[attack] || ''}. Gold: what the retrained model gains, its line where it ends.` +
    (known(one.known) ? ' Dotted: the model before unlearning.' : '') +
    Object.entries(one.skipped).map(([name, reason]) => ` ${name} left out: ${reason}.`).join('') +
    rows.filter(row => !known(row.ratio) && row.reason).slice(0, 3).map(row => ` ${row.model}: ${row.reason}.`).join('');
}

function attackTable() {
  const head = ['model', 'attack', 'measure', 'before', 'after', 'retrained before', 'retrained after', 'ratio', 'note'];
  const rows = data.attacks.flatMap(one => one.rows);
  byId('attack-table').replaceChildren(
    make('thead', {}, make('tr', {}, ...head.map((name, n) => make('th', { scope: 'col', class: n > 2 && n < 8 ? 'plain number' : 'plain' }, name)))),
    make('tbody', {}, ...rows.map(row => make('tr', {}, make('td', {}, row.model), make('td', {}, row.attack), make('td', {}, row.metric),
      ...['before', 'after', 'reference_before', 'reference_after', 'ratio'].map(key => make('td', { class: 'number' }, number(row[key], 3))),
      make('td', { class: 'wrap' }, row.reason || '')))));
}

function attackButtons() {
  byId('attack-choice').replaceChildren(...everyAttack.map(([k, attack], n) => make('button', {
    type: 'button', 'aria-pressed': String(n === attackAt),
    onclick: () => { attackAt = n; attackButtons(); drawAttack(); byId('attack-choice').children[n].focus(); },
  }, data.attacks.length > 1 ? `${attack} (${data.attacks[k].folder})` : attack)));
}

if (byId('robustness') && everyAttack.length) {
  attackButtons();
  drawAttack();
  attackTable();
  redraws.push(drawAttack);
}
