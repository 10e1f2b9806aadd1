'use strict';
// The table of all points: sorting by any header, filter, a page of rows at a time.
const PAGE = 200;
const sorting = { key: 'front', rising: false };
let limit = PAGE;

function tableColumns() {
  const [x, y] = [views.get(shown.x), views.get(shown.y)];
  const columns = [
    { key: 'run', title: 'run', value: n => runOf(n).label },
    { key: 'method', title: 'method', value: n => data.points[n].role === 'checkpoint' ? methodTitle(runOf(n).method) : { target: 'before unlearning', reference: 'retrained', rerun: 're-run' }[data.points[n].role] },
    { key: 'step', title: 'step', value: n => data.points[n].step, digits: 8 },
    { key: 'front', title: 'front', value: n => drawn.front.includes(n) ? 1 : 0, tell: value => value ? 'yes' : '' },
  ];
  for (const view of x.key === y.key ? [x] : [x, y]) {
    const values = valuesOf(view);
    columns.push({ key: view.key, title: view.label, value: n => values[n] });
  }
  const axes = new Set(data.views.filter(view => view.key.startsWith('axis:')).map(view => view.key.slice(5)));
  const all = pressed(byId('table-all'));
  data.columns.forEach((name, k) => {
    if (all || axes.has(name)) columns.push({ key: 'raw:' + name, title: name, value: n => data.metrics[n][k] });
  });
  return columns.filter((column, n) => columns.findIndex(other => other.key === column.key) === n);
}

function compare(a, b) {
  if (!known(a) || !known(b)) return known(a) ? -1 : known(b) ? 1 : 0;
  const order = typeof a === 'string' ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  return sorting.rising ? order : -order;
}

function redrawTable() {
  if (!byId('table')) return;
  const columns = tableColumns();
  const chosen = columns.find(column => column.key === sorting.key) || columns[0];
  const wanted = byId('table-filter').value.trim().toLowerCase(), onlyFront = pressed(byId('table-front'));
  const text = n => [runOf(n).label, methodTitle(runOf(n).method), ...settingsOf(runOf(n)).map(pair => pair.join(' '))].join(' ').toLowerCase();
  const rows = data.points.map((point, n) => n).filter(n => isShown(n) || data.points[n].role !== 'checkpoint')
    .filter(n => (!onlyFront || drawn.front.includes(n)) && (!wanted || text(n).includes(wanted)));
  const values = new Map(rows.map(n => [n, chosen.value(n)]));
  rows.sort((a, b) => compare(values.get(a), values.get(b)) || a - b);
  const focused = document.activeElement && document.activeElement.dataset.column;
  const head = make('tr', {}, ...columns.map(column => make('th', {
    scope: 'col', 'aria-sort': column.key === sorting.key ? (sorting.rising ? 'ascending' : 'descending') : 'none',
    class: column.key === 'run' || column.key === 'method' ? '' : 'number',
  }, make('button', { type: 'button', 'data-column': column.key, onclick: () => sortBy(column.key) }, column.title))));
  const body = rows.slice(0, limit).map(n => make('tr', { class: n === state.point ? 'selected' : '', 'data-point': n },
    ...columns.map(column => {
      const value = column.value(n);
      if (column.key === 'run') return make('td', {}, make('button', { type: 'button', class: 'open', onclick: () => chooseRun(data.points[n].run, n, true) }, value));
      if (typeof value === 'string') return make('td', {}, value);
      return make('td', { class: 'number' }, column.tell ? column.tell(value) : number(value, column.digits || 4));
    })));
  byId('table').replaceChildren(make('thead', {}, head), make('tbody', {}, ...body));
  byId('table-note').textContent = `${Math.min(limit, rows.length)} of ${rows.length} rows`;
  byId('table-more').hidden = rows.length <= limit;
  if (focused) [...byId('table').querySelectorAll('th button')].filter(b => b.dataset.column === focused).forEach(b => b.focus());
}

function sortBy(key) {
  sorting.rising = sorting.key === key ? !sorting.rising : ['run', 'method', 'step'].includes(key);
  sorting.key = key;
  redrawTable();
}

if (byId('table')) {
  byId('table-filter').addEventListener('input', redrawTable);
  toggle('table-front', redrawTable);
  toggle('table-all', redrawTable);
  byId('table-more').addEventListener('click', () => { limit += 1000; redrawTable(); });
  redrawTable();
  chosenListeners.push(redrawTable);
}
